"""A server against the bare predictor, on 127.0.0.1: images per second, and latency at half of the highest load.

The servers and the predictor run in processes of their own, with the same images and threads; the client is a small one
on asyncio that reuses its connections. Rounds of both sides alternate. Besides `fbnetv3 serve`, the same network can be
served with LitServe and FastAPI, for comparison. Weights are random, which does not affect the time.
"""

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from measure import SideProcess, report_comparison, report_value, serve_calls, summarize
from PIL import Image

from fbnetv3.deploy import export_classifier, load
from fbnetv3.model_zoo.pretrained import load_classifier_from_name

GOAL = 0.9  # images per second over those of the bare predictor
CLI = "from fbnetv3.commands.cli import main; main()"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "--models",
        nargs="+",
        default=["digits/fbnetv3_digits", "fbnetv3_b"],
        help="architectures or entries",
    )
    add("--servers", nargs="+", default=["serve"], choices=["serve", "fastapi", "litserve"])
    add(
        "--json",
        action="store_true",
        help="send JSON with base64, as the peers need it, instead of the file",
    )
    add("--images", type=int, default=64, help="images per round (default: %(default)s)")
    add(
        "--connections",
        type=int,
        default=32,
        help="concurrent requests at full load (default: %(default)s)",
    )
    add("--per-request", type=int, nargs="+", default=[1], help="images per request (default: 1)")
    add("--max-batch", type=int, default=16)
    add("--rounds", type=int, default=7)
    add("--threads", type=int, default=1)
    add("--predict", metavar="DIR", help=argparse.SUPPRESS)  # serve one side
    args = parser.parse_args()
    if args.servers != ["serve"] and not args.json:
        parser.error("fastapi and litserve need --json")
    if args.json and args.per_request != [1]:
        parser.error("--json takes one image per request")
    torch.set_num_threads(args.threads)
    if args.predict:
        predict_files(args)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            for model in args.models:
                measure_model(model, Path(temporary), args)


def measure_model(model, temporary, args):
    folder = temporary / model.replace("/", "_")
    network = export(model, folder)
    images = make_images(network.preprocessing, args.images)
    bare = SideProcess("--predict", folder, "--images", args.images, "--threads", args.threads)
    for server in args.servers:
        with running_server(server, folder, args) as (port, process_id):
            for per_request in args.per_request:
                name = f"{model}, {server}, {per_request} image{'s' * (per_request > 1)} per request"
                measure_server(name, port, process_id, bare, images, per_request, args)
    bare.close()


def measure_server(name, port, process_id, bare, images, per_request, args):
    """Report time and CPU time against the bare predictor, and the latency at half of the highest load."""
    requests = [
        build_request(images[start : start + per_request], args.json)
        for start in range(0, len(images), per_request)
    ]
    seconds, cpu_seconds = ({"fbnetv3": [], "peer": []} for _ in range(2))
    for turn in range(args.rounds + 1):
        bare_seconds = [float(text) for text in bare().split()]
        start, cpu_start = time.perf_counter(), group_cpu_seconds(process_id)
        asyncio.run(send_all(port, requests, args.connections))
        if turn:  # the first one warms up
            served_seconds = time.perf_counter() - start, group_cpu_seconds(process_id) - cpu_start
            for times, served, alone in zip(
                (seconds, cpu_seconds), served_seconds, bare_seconds, strict=True
            ):
                times["fbnetv3"].append(served / len(images))
                times["peer"].append(alone / len(images))
    result = summarize(seconds)
    goal = GOAL if ", serve," in name else None
    report_comparison(f"{name}: time per image", result, goal, "bare predictor")
    report_comparison(f"{name}: CPU time per image", summarize(cpu_seconds), goal, "bare predictor")
    report_value(
        f"{name}: images per second", 1 / result["fbnetv3"], details=f"bare {1 / result['peer']:.3g}"
    )
    latencies = []
    for _ in range(args.rounds):
        latencies += asyncio.run(send_at_rate(port, requests, 0.5 / (result["fbnetv3"] * per_request)))
    p50, p99 = np.percentile(latencies, [50, 99])
    report_value(f"{name}: p50 at half load, ms", 1e3 * p50, details=f"p99 {1e3 * p99:.3g} ms")


def export(model, folder):
    torch.manual_seed(0)
    network = load_classifier_from_name(model, weights="published" if "/" in model else "random")
    if "/" not in model:
        network = replace(network, preprocessing=replace(network.preprocessing, resolution=224, resize=256))
    export_classifier(network.model, network.preprocessing, network.classes, folder, name=network.name)
    return network


def make_images(preprocessing, count):
    """Return JPEGs of typical size for networks of photos, and small PNGs for others."""
    rng = np.random.default_rng(0)
    is_gray = preprocessing.channels == 1
    files = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8) if is_gray else (12, 16, 3), dtype=np.uint8))
        file = io.BytesIO()
        if is_gray:
            coarse.save(file, "PNG")
        else:
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def predict_files(args):
    """Serve the side of the bare predictor: the seconds and CPU seconds for all images from their files' contents."""
    predict = load(args.predict)
    images = make_images(predict.preprocessing, args.images)

    def call():
        start, cpu_start = time.perf_counter(), time.process_time()
        predict(images, batch_size=args.max_batch)
        return f"{time.perf_counter() - start} {time.process_time() - cpu_start}"

    serve_calls(call)


@contextlib.contextmanager
def running_server(server, folder, args):
    """Start a server; yield its port and the id of its process group, and stop it at the end."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    if server == "serve":
        options = [
            "--port",
            port,
            "--max-batch",
            args.max_batch,
            "--max-waiting",
            4 * max(args.per_request) * args.connections,
        ]
        command = [sys.executable, "-c", CLI, "serve", folder, *options]
    else:
        peers = Path(__file__).with_name("serve_peers.py")
        command = [sys.executable, peers, server, folder, port, args.max_batch, args.threads]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    try:
        wait_until_open(port, process)
        yield port, process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # LitServe has several processes
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_open(port, process):
    request = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    while process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(request)
            # LitServe answers 503 until its worker is ready
            if connection.recv(12).split()[1:] not in ([], [b"503"]):
                return
        time.sleep(0.1)
    raise SystemExit("error: the server ended early; see its message above")


def group_cpu_seconds(group):
    """Return the CPU time of all processes of a group, in all of their threads."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def build_request(images, as_json):
    """Return the bytes of a request: one image as it is or as JSON, several as a form."""
    if as_json:
        content_type = "application/json"
        body = json.dumps({"image": base64.b64encode(images[0]).decode()}).encode()
    elif len(images) == 1:
        content_type, body = "image/jpeg", images[0]
    else:
        parts = [
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + image + b"\r\n"
            for image in images
        ]
        content_type, body = "multipart/form-data; boundary=x", b"".join(parts) + b"--x--\r\n"
    lines = (
        "POST /predict HTTP/1.1",
        "Host: x",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join((*lines, "\r\n")).encode() + body


def _content_lengths(head):
    lines = head.lower().split(b"\r\n")
    return [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]


class Connection:
    """A connection that sends one request after another."""

    async def open(self, port):
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        return self

    async def send(self, request):
        """Send a request, and return the seconds until its answer is complete."""
        start = time.perf_counter()
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            (length,) = _content_lengths(head)
            problem = await self._reader.readexactly(length)
            raise SystemExit(
                f"error: the server answers {head.splitlines()[0].decode()}: {problem.decode()}"
            )
        (length,) = _content_lengths(head)
        await self._reader.readexactly(length)
        return time.perf_counter() - start

    def close(self):
        self._writer.close()


async def send_all(port, requests, num_connections):
    """Send requests as fast as the server answers them."""
    waiting = list(requests)

    async def work(connection):
        while waiting:
            await connection.send(waiting.pop())
        connection.close()

    connections = [await Connection().open(port) for _ in range(min(num_connections, len(requests)))]
    await asyncio.gather(*map(work, connections))


async def send_at_rate(port, requests, rate):
    """Send requests at random times, `rate` per second on average, and return the seconds of each."""
    gaps = np.random.default_rng(len(requests)).exponential(1 / rate, len(requests))
    idle = []

    async def send(request):
        start = time.perf_counter()
        connection = idle.pop() if idle else await Connection().open(port)
        await connection.send(request)
        idle.append(connection)
        return time.perf_counter() - start

    tasks = []
    for request, gap in zip(requests, gaps, strict=True):
        await asyncio.sleep(gap)
        tasks.append(asyncio.ensure_future(send(request)))
    latencies = await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return latencies


if __name__ == "__main__":
    main()
