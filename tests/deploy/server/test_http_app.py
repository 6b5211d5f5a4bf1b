"""The HTTP interface: what is accepted, what is answered, and how requests fail."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="pip install '.[serve]'")
pytest.importorskip("prometheus_client", reason="pip install '.[serve]'")

from starlette.testclient import TestClient

from fbnetv3.deploy import DetectorPredictor, load
from fbnetv3.deploy.predictors.detector_predictor import ShortSideResize
from fbnetv3.deploy.server.http_app import create_app
from fbnetv3.deploy.server.inference_service import InferenceService
from fbnetv3.deploy.server.served_model import ServedClassifier, ServedDetector
from fbnetv3.deploy.server.server_limits import ServerLimits
from fbnetv3.deploy.server.server_metrics import ServerMetrics


def encode(image, format="PNG"):
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def client_of(*models, **limits):
    service = InferenceService(
        {model.name: model for model in models}, ServerLimits(**limits), ServerMetrics()
    )
    return TestClient(create_app(service), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def predictor(exported):
    return load(exported("onnx"))


@pytest.fixture(scope="module")
def client(predictor):
    with client_of(ServedClassifier("digits", predictor), max_bytes=100_000, max_pixels=10_000) as client:
        yield client


@pytest.fixture(scope="module")
def digit(held_out):
    return encode(held_out[0][0])


def post_image(client, content, path="/predict", content_type="image/png"):
    return client.post(path, content=content, headers={"Content-Type": content_type})


def expected_predictions(predictor, image, top=5):
    return [
        {
            "label": p.label,
            "probability": pytest.approx(p.probability, abs=1e-5),
            "class_index": p.class_index,
        }
        for p in predictor(image, top=top)
    ]


@pytest.mark.parametrize("path", ["/predict", "/models/digits/predict"])
@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", "image/anything"])
def test_a_raw_image(client, predictor, digit, path, content_type):
    answer = post_image(client, digit, path, content_type)
    expected = {"model": "digits", "results": [{"predictions": expected_predictions(predictor, digit)}]}
    assert (answer.status_code, answer.json()) == (200, expected)


def test_json_with_base64(client, predictor, digit):
    text = base64.b64encode(digit).decode()
    (result,) = client.post("/predict", json={"image": text, "top": 2}).json()["results"]
    assert result["predictions"] == expected_predictions(predictor, digit, top=2)
    answer = client.post("/predict?top=3", json={"images": [f"data:image/png;base64,{text}"] * 3})
    assert answer.json()["results"] == [{"predictions": expected_predictions(predictor, digit, top=3)}] * 3


def test_a_form_with_several_files_past_one_that_is_no_image(client, predictor, digit, held_out):
    other = encode(held_out[0][1])
    files = [("a", ("a.png", digit)), ("b", ("b.png", b"no image")), ("c", ("c.png", other))]
    answer = client.post("/predict", files=files, data={"top": "1"})
    first, second, third = answer.json()["results"]
    assert answer.status_code == 200
    assert first["predictions"] == expected_predictions(predictor, digit, top=1)
    assert second == {"error": "b.png: corrupt image (not a format that Pillow can read)"}
    assert third["predictions"] == expected_predictions(predictor, other, top=1)


def test_several_images_form_batches(predictor, digit):
    with client_of(ServedClassifier("digits", predictor), max_batch=4, max_delay=5) as client:
        client.post("/predict", files=[("image", digit)] * 8)
        text = client.get("/metrics").text
    assert 'fbnetv3_batch_size_count{model="digits"} 2.0' in text
    assert 'fbnetv3_batch_size_sum{model="digits"} 8.0' in text


REFUSED = {
    "no JSON": ("application/json", b"{", 400, "the body is not valid JSON"),
    "deep JSON": ("application/json", b"[" * 90_000, 400, "the body is not valid JSON"),
    "JSON without images": ("application/json", b"{}", 400, '"image" or "images"'),
    "no text": ("application/json", b'{"images": [3]}', 400, "strings in base64"),
    "no base64": ("application/json", b'{"image": "%"}', 400, "images[0]: is not valid base64"),
    "a URL": ("application/json", b'{"image": "http://169.254.169.254/"}', 400, "nothing is downloaded"),
    "a local file": ("application/json", b'{"image": "file:///etc/passwd"}', 400, "nothing is downloaded"),
    "no images": ("application/json", b'{"images": []}', 422, "has no image"),
    "a form without boundary": ("multipart/form-data", b"x", 400, "form cannot be read"),
    "a corrupt form": ("multipart/form-data; boundary=x", b"--y", 400, "form cannot be read"),
    "an empty body": ("image/png", b"", 422, "has no image"),
    "no image": ("image/png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "corrupt image"),
    "a form of a page": ("application/x-www-form-urlencoded", b"x=1", 415, "content type application/x-www"),
    "too many bytes": ("image/png", bytes(100_001), 413, "more than 100,000 bytes"),
    "too many pixels": (
        "image/png",
        encode(Image.new("L", (101, 100))),
        422,
        "too many pixels: 101 x 100, more than 0.01 million",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_bodies(client, case):
    content_type, content, status, message = REFUSED[case]
    answer = post_image(client, content, content_type=content_type)
    assert answer.status_code == status and message in answer.json()["error"]


@pytest.mark.parametrize(
    ("query", "message"),
    [("top=0", "top: 0 must be at least 1"), ("top=x", "top: x must be an integer"), ("top=1.5", "an integer"),
     ("threshold=0.5", "one class per image"), ("threshold=nan", "must be a number")],
)  # fmt: skip
def test_invalid_options(client, digit, query, message):
    answer = post_image(client, digit, f"/predict?{query}")
    assert answer.status_code in (400, 422) and message in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/models/digitz/predict", 404, "unknown model 'digitz': did you mean digits?"),
        ("GET", "/nothing", 404, "Not Found"),
        ("GET", "/predict", 405, "Method Not Allowed"),
    ],
)
def test_unknown_paths(client, method, path, status, message):
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()) == (status, {"error": message})


def test_bodies_without_a_length_are_limited(client):
    answer = client.post("/predict", content=(bytes(10_000) for _ in range(11)))
    assert answer.status_code == 413


def test_models_and_health(client):
    description = client.get("/models/digits").json()
    assert description["task"] == "classification" and description["classes"] == list("0123456789")
    assert client.get("/models").json() == {"models": [description]}
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}


def test_a_server_that_has_not_started_is_not_ready(predictor):
    assert client_of(ServedClassifier("digits", predictor)).get("/health/ready").status_code == 503


def test_metrics_count_requests_and_images(predictor, digit):
    with client_of(ServedClassifier("digits", predictor)) as client:
        for content in (digit, digit, b"x"):
            post_image(client, content)
        text = client.get("/metrics").text
    for line in (
        'fbnetv3_requests_total{model="digits",status="200"} 2.0',
        'fbnetv3_requests_total{model="digits",status="422"} 1.0',
        'fbnetv3_images_total{model="digits",result="ok"} 2.0',
        'fbnetv3_images_total{model="digits",result="error"} 1.0',
        'fbnetv3_request_seconds_count{model="digits"} 3.0',
        'fbnetv3_waiting_images{model="digits"} 0.0',
    ):
        assert line in text
    assert "process_resident_memory_bytes" in text


def test_several_models_have_names(predictor, digit):
    models = ServedClassifier("a", predictor), ServedClassifier("b", predictor)
    with client_of(*models) as client:
        assert post_image(client, digit, "/models/b/predict").json()["model"] == "b"
        answer = post_image(client, digit)
    assert answer.status_code == 404 and "/models/NAME/predict of a, b" in answer.json()["error"]


class OneBox:
    """A detector's runtime that finds one object, the left half of each image."""

    name = "one box"

    def run_outputs(self, input_name, batch):
        count, height, width, _ = batch.shape
        box = np.array([[0, 0, width / 2, height]], np.float32).repeat(count, 0)
        return [box, np.full(count, 0.75, np.float32), np.ones(count, np.int64), np.arange(count)]


def test_detections(held_out):
    detector = DetectorPredictor(OneBox(), ShortSideResize(32, 64), ["cat", "dog"])
    with client_of(ServedDetector("animals", detector)) as client:
        image = encode(Image.new("RGB", (100, 80)))
        answer = post_image(client, image)
        assert post_image(client, image, "/predict?threshold=0.8").json()["results"] == [
            {"predictions": []}
        ]
        assert post_image(client, image, "/predict?top=1").status_code == 422
    expected = {"label": "dog", "score": 0.75, "class_index": 1, "box": [0, 0, 50, 80]}
    assert answer.json() == {"model": "animals", "results": [{"predictions": [expected]}]}


def test_a_bug_is_not_shown_to_clients(predictor, digit):
    class Broken(ServedClassifier):
        def run(self, images):
            raise RuntimeError("secret")

    with client_of(Broken("digits", predictor)) as client:
        answer = post_image(client, digit)
        assert client.get("/health/ready").status_code == 200
    assert answer.status_code == 500 and "secret" not in json.dumps(answer.json())
