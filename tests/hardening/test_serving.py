"""A server under hostile images, cut connections and slow clients, and at its end: each request has one answer."""

import io
import random
import socket
import struct
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="pip install '.[serve]'")
pytest.importorskip("onnxruntime", reason="pip install '.[export]'")

from fbnetv3.data import build_dataset
from fbnetv3.deploy import export_classifier, load
from fbnetv3.model_zoo.pretrained import load_classifier_from_name
from tests.hardening.conftest import SCALE, SEED
from tests.hardening.test_hostile_images import IMAGES, forge_png
from tests.http_client import RunningServer, send

CLIENTS = 8
REQUESTS = 400 * SCALE


def encode(image, format="PNG"):
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    network = load_classifier_from_name("digits/fbnetv3_digits")
    arguments = network.model, network.preprocessing, network.classes
    return export_classifier(*arguments, tmp_path_factory.mktemp("exported") / "digits").folder


@pytest.fixture(scope="module")
def digits(folder):
    """Images of digits with the labels that the predictor gives them."""
    dataset = build_dataset("digits", "", "val")
    images = [dataset[i][0] for i in range(40)]
    labels = [best.label for best, *_ in load(folder)(images)]
    return [(encode(image), label) for image, label in zip(images, labels, strict=True)]


PNG = encode(Image.new("L", (300, 200)))
# Content, its type, and the status of the answer
HOSTILE = [
    *((content, "image/png", 422) for content in IMAGES.values() if content),
    (b"", "image/png", 422),
    (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "image/svg+xml", 422),
    (encode(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF"), "image/tiff", 422),
    (PNG[: len(PNG) // 2], "image/png", 422),
    (forge_png(7000, 7000), "image/png", 422),  # above the limit of the server, not of Pillow
    (encode(Image.new("1", (60_000, 1))), "image/png", 200),
    (encode(Image.new("1", (1, 60_000))), "image/png", 200),
    (bytes(6_000_001), "image/png", 413),
    (b'{"images": "', "application/json", 400),
    (b"x=1", "application/x-www-form-urlencoded", 415),
    (b"\x93NUMPY\x01\x00\x76\x00{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999, 9999)}", "image/x", 422),
]  # fmt: skip


class Client:
    """Sends requests of random kinds over one connection where possible, and counts the answers by status."""

    def __init__(self, server, digits, seed):
        self.server = server
        self.digits = digits
        self.random = random.Random(seed)
        self.answers = Counter()

    def run(self, count):
        kinds = [self.digit] * 14 + [self.hostile] * 5 + [self.cut, self.slow, self.garbage]
        for _ in range(count):
            self.random.choice(kinds)()
        return self.answers

    def digit(self):
        """Several requests on one connection, each answered with its own digit."""
        with self.server.connect() as connection:
            for content, label in self.random.sample(self.digits, 3):
                status, answer = send(connection, "POST", "/predict?top=1", content)
                self.answers[status] += 1
                if status == 200:  # rather than 503, overloaded
                    assert answer["results"][0]["predictions"][0]["label"] == label
                else:
                    assert status == 503 and "waiting" in answer["error"]

    def hostile(self):
        content, content_type, expected = self.random.choice(HOSTILE)
        try:
            status, answer = self.server.post(content, content_type)
        except (ConnectionError, TimeoutError):
            assert expected == 413  # a server may close instead of reading on
            return
        self.answers[status] += 1
        assert status in (expected, 503), (content[:40], answer)
        assert ("error" in answer) is (status != 200)

    def cut(self):
        """Close the connection in the middle of the headers or the body, or before the answer."""
        content, _ = self.random.choice(self.digits)
        request = head(len(content)) + content
        with socket.create_connection(("127.0.0.1", self.server.port)) as connection:
            connection.sendall(request[: self.random.choice([10, len(request) - 9, len(request)])])
            if self.random.random() < 0.5:  # reset it, rather than close it
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def slow(self):
        """Send the body in pieces."""
        content, label = self.random.choice(self.digits)
        with socket.create_connection(("127.0.0.1", self.server.port), 60) as connection:
            connection.sendall(head(len(content)))
            for start in range(0, len(content), 64):
                connection.sendall(content[start : start + 64])
                time.sleep(0.02)
            text = read_to_end(connection)
        self.answers[int(text.split()[1])] += 1
        assert text.count(b"HTTP/1.1 ") == 1 and f'"label":"{label}"'.encode() in text

    def garbage(self):
        """Send what is not HTTP."""
        with socket.create_connection(("127.0.0.1", self.server.port), 60) as connection:
            connection.sendall(b"\x16\x03\x01" + self.random.randbytes(50) + b"\r\n\r\n")
            assert read_to_end(connection).startswith(b"HTTP/1.1 400")


def head(length):
    return f"POST /predict?top=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n".encode()


def read_to_end(connection):
    parts = []
    while part := connection.recv(65_536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.timeout(120 + 60 * SCALE)
def test_chaos(folder, digits):
    """Every answer has the status and the prediction of its request, and the memory of the server stays flat."""
    with RunningServer(folder, "--max-megabytes", 6) as server:
        clients = [Client(server, digits, f"{SEED} {i}") for i in range(CLIENTS)]
        memory = []
        for rounds in (1, 9):
            # The first tenth is a warm-up, in which memory grows to its working size
            with ThreadPoolExecutor(CLIENTS) as pool:
                jobs = [pool.submit(client.run, rounds * REQUESTS // CLIENTS // 20) for client in clients]
                for job in jobs:
                    job.result()
            memory.append(server.metric("process_resident_memory_bytes") / 1e6)
        assert server.get("/health/ready")[0] == 200
        assert server.metric('fbnetv3_waiting_images{model="digits"}') == 0
        answered = sum((client.answers for client in clients), Counter())
        code, out, errors = server.stop()
    print(
        f"{answered.total()} answers {dict(answered)}; memory {memory[0]:.0f} and {memory[1]:.0f} MB; {out}"
    )
    assert answered[200] > answered.total() / 2
    assert memory[1] - memory[0] < 60
    # Requests of cut connections are counted by the server only
    assert code == 0 and int(out.split()[1]) >= answered.total()
    assert "Traceback" not in errors, errors


@pytest.mark.parametrize("number", range(2 * SCALE))
def test_sigterm_in_the_middle_of_requests(folder, digits, number):
    """Accepted requests get their answer, exactly one; new ones are refused; the exit code is 0."""
    with RunningServer(folder, "--max-delay", 150, "--max-batch", 5) as server:
        answers, outcomes = [], Counter()
        stopped = threading.Event()

        def request_until_the_end(seed):
            source = random.Random(seed)
            while True:
                content, label = source.choice(digits)
                try:
                    with socket.create_connection(("127.0.0.1", server.port), 60) as connection:
                        connection.sendall(head(len(content)) + content)
                        text = read_to_end(connection)
                except ConnectionError:
                    text = b""
                if not text:  # refused, or closed before it was accepted
                    outcomes["refused"] += 1
                    assert stopped.is_set()
                    return
                assert text.count(b"HTTP/1.1 200 OK") == 1 and f'"label":"{label}"'.encode() in text
                answers.append(label)

        with ThreadPoolExecutor(CLIENTS) as pool:
            jobs = [pool.submit(request_until_the_end, f"{SEED} {number} {i}") for i in range(CLIENTS)]
            time.sleep(1 + random.Random(f"{SEED} {number}").random())
            stopped.set()
            code, out, errors = server.stop()
            for job in jobs:
                job.result()
    assert code == 0 and not errors
    assert out == f"stopped; {len(answers)} requests were answered\n" and len(answers) > CLIENTS
    assert outcomes["refused"] == CLIENTS


def test_slow_requests_and_late_answers_end(folder, digits):
    """A server with a timeout of one second closes what does not arrive, and answers what takes too long."""
    content, _ = digits[0]
    with RunningServer(folder, "--timeout", 1) as server:
        with socket.create_connection(("127.0.0.1", server.port), 60) as silent:
            with socket.create_connection(("127.0.0.1", server.port), 60) as half:
                half.sendall(head(len(content)) + content[:20])
                text = read_to_end(half)
            assert text.startswith(b"HTTP/1.1 408") and b"not complete after 1 seconds" in text
            assert read_to_end(silent) == b""
        with socket.create_connection(("127.0.0.1", server.port), 60) as headers_only:
            headers_only.sendall(b"POST /predict HTTP/1.1\r\nHost: ")
            assert read_to_end(headers_only) == b""
        assert server.post(content)[0] == 200
    with RunningServer(folder, "--timeout", 1, "--max-delay", 3000) as server:
        status, answer = server.post(content)
        assert status == 504 and "not ready after 1 seconds" in answer["error"]


def test_an_overloaded_server_refuses_and_recovers(folder, digits):
    content, _ = digits[0]
    with RunningServer(folder, "--max-waiting", 2, "--max-delay", 1000) as server:
        with ThreadPoolExecutor(CLIENTS) as pool:
            answers = list(pool.map(lambda _: server.post(content), range(CLIENTS)))
        statuses = Counter(status for status, _ in answers)
        assert statuses == {200: 2, 503: CLIENTS - 2}
        assert server.post(content)[0] == 200
