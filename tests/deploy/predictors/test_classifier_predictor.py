"""Images in, labels with probabilities out; missing and corrupt images are named."""

import io

import numpy as np
import pytest
from PIL import Image

from fbnetv3.deploy import ClassifierPredictor, load
from fbnetv3.errors import DataError, UsageError, WeightsError


@pytest.fixture(scope="module")
def predictor(exported):
    return load(exported("torch-export"))


def test_paths_arrays_and_pillow_images_give_the_same(predictor, held_out, tmp_path):
    image = held_out[0][0]
    image.save(tmp_path / "digit.png")
    array = np.asarray(image)
    same = [
        image,
        array,
        array[:, :, None],
        np.stack([array] * 3, 2),
        tmp_path / "digit.png",
        f"{tmp_path}/digit.png",
    ]
    results = predictor(same)
    assert [p.class_index for p in results[0]] == [p.class_index for p in results[1]]
    for predictions in results[1:]:
        assert [p.probability for p in predictions] == pytest.approx(
            [p.probability for p in results[0]], abs=1e-5
        )
    assert results[0][0].label == str(held_out[1][0])


def test_one_image_gives_predictions_and_a_list_gives_a_list(predictor, held_out):
    images, targets = held_out
    single, batch = predictor(images[3]), predictor(images[:4])
    assert len(single) == 5 and len(batch) == 4
    assert single[0].label == batch[3][0].label == str(targets[3])
    assert predictor([]) == []


def test_probabilities(predictor, held_out):
    predictions = predictor(held_out[0][0], top=99)
    assert len(predictions) == 10
    assert sum(p.probability for p in predictions) == pytest.approx(1)
    assert predictions == sorted(predictions, key=lambda p: -p.probability)
    assert predictor(held_out[0][0], top=2) == predictions[:2]
    assert all(p.label == predictor.classes[p.class_index] for p in predictions)


def test_large_logits_do_not_overflow(digits):
    class LargeLogits:
        name = "large"

        def run(self, batch):
            return np.eye(10, dtype=np.float32)[:1] * 1e5

    (best, *_) = ClassifierPredictor(LargeLogits(), digits.preprocessing, digits.classes)(
        np.zeros((8, 8), np.uint8)
    )
    assert (best.label, best.probability) == ("0", 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_name_the_image(digits, held_out, tmp_path, value):
    class SecondBroken:
        name = "second"

        def run(self, batch):
            logits = np.zeros((len(batch), 10), np.float32)
            logits[1, 3] = value
            return logits

    predictor = ClassifierPredictor(SecondBroken(), digits.preprocessing, digits.classes)
    images = held_out[0][:2]
    with pytest.raises(WeightsError, match=r"^images\[1\]: the logits of the network are NaN or infinite"):
        predictor(images)
    images[1].save(tmp_path / "digit.png")
    with pytest.raises(WeightsError, match="digit.png: the logits"):
        predictor([images[0], tmp_path / "digit.png"])


@pytest.mark.parametrize(
    "image, message",
    [
        ("nowhere.png", "nowhere.png: no such file"),
        (".", "cannot be read .Is a directory"),
        (np.zeros((8, 8)), "an array of type float64 .* is not an image; expected uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"shape \(3, 8, 8\) is not an image.*channels last"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"shape \(2, 8, 8, 3\) is not an image.*one array per image"),
        (np.zeros((0, 8), np.uint8), "has no pixels"),
        (7, "is a int; an image is a path"),
        (Image.new("L", (0, 4)), "has no pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_wrong_images(image, message, predictor):
    with pytest.raises(DataError, match=message):
        predictor(image)


def test_a_wrong_image_in_a_list_is_named(predictor, held_out, tmp_path):
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    with pytest.raises(DataError, match=r"torn.jpg: corrupt image"):
        predictor([held_out[0][0], tmp_path / "torn.jpg"])
    with pytest.raises(DataError, match=r"images\[33\]: is a NoneType"):
        predictor([held_out[0][0]] * 33 + [None])


@pytest.mark.parametrize("argument", ["top", "batch_size"])
@pytest.mark.parametrize("value", [0, -1])
def test_numbers_must_be_positive(argument, value, predictor, held_out):
    with pytest.raises(UsageError, match=f"{argument}: {value} must be at least 1"):
        predictor(held_out[0][0], **{argument: value})


@pytest.mark.parametrize(("tag", "turn"), [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)])
def test_exif_orientation_is_applied(tag, turn, predictor, held_out, tmp_path):
    """A digit that is stored turned, and whose EXIF data say so, is recognized like the upright one."""
    exif = Image.Exif()
    exif[0x0112] = tag
    for number, image in enumerate(held_out[0][:8]):
        image.save(tmp_path / "upright.png")
        image.transpose(turn).save(tmp_path / "turned.png", exif=exif)
        in_memory = Image.open(tmp_path / "turned.png")
        upright, *turned = predictor([tmp_path / "upright.png", tmp_path / "turned.png", in_memory])
        assert turned == [upright] * 2
        assert upright[0].label == str(held_out[1][number])


def test_contents_of_files_and_file_objects(predictor, held_out, tmp_path):
    path = tmp_path / "digit.png"
    held_out[0][0].save(path)
    content = path.read_bytes()
    expected = predictor(path)
    with path.open("rb") as file:
        sources = [content, bytearray(content), memoryview(content), io.BytesIO(content), file]
        assert predictor(sources) == [expected] * 5
    assert predictor(content) == expected


def test_contents_that_are_no_image_are_named_by_position(predictor, tmp_path):
    for content in (b"", b"nonsense", io.BytesIO(b"nonsense")):
        with pytest.raises(DataError, match=r"images\[0\]: corrupt image"):
            predictor([content])
    (tmp_path / "text").write_text("text")
    with (
        (tmp_path / "text").open() as file,
        pytest.raises(DataError, match="gives str; open it in binary mode"),
    ):
        predictor(file)


def test_unreadable_images_can_be_skipped(predictor, held_out, caplog):
    images = [b"corrupt", held_out[0][0], "nowhere.png", None, held_out[0][1], b"corrupt"]
    expected = predictor(held_out[0][:2])
    for batch_size in (1, 2, 32):
        results = predictor(images, batch_size=batch_size, on_error="skip")
        assert results[1][0].label == expected[0][0].label and results[4][0].label == expected[1][0].label
        assert [result is None for result in results] == [True, False, True, True, False, True]
    assert "skipped: nowhere.png: no such file" in caplog.text and "skipped: images[5]" in caplog.text
    assert predictor(b"corrupt", on_error="skip") is None
    assert predictor([b"corrupt"] * 2, on_error="skip") == [None, None]


def test_what_to_do_about_errors_is_checked(predictor, held_out):
    with pytest.raises(UsageError, match="on_error: 'ignore' must be one of raise, skip"):
        predictor(held_out[0][0], on_error="ignore")


def test_logits_that_are_not_finite_are_never_skipped(digits, held_out):
    class NaN:
        name = "NaN"

        def run(self, batch):
            return np.full((len(batch), 10), np.nan, np.float32)

    predictor = ClassifierPredictor(NaN(), digits.preprocessing, digits.classes)
    with pytest.raises(WeightsError, match="NaN or infinite"):
        predictor([held_out[0][0]], on_error="skip")
