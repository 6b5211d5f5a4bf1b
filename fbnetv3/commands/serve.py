"""Serve exported networks over HTTP: `fbnetv3 serve FOLDER ...`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fbnetv3.deploy.formats.export_format import require_packages
from fbnetv3.modeling.torch_device import CPU
from fbnetv3.utils.command_line import ArgumentParser, positive_int


def main(argv: Sequence[str] | None = None) -> None:
    """Load the networks, and answer requests until SIGTERM or Ctrl-C."""
    args = _parse_args(argv)
    with require_packages("starlette", "uvicorn", "prometheus-client", "python-multipart"):
        import python_multipart  # noqa: F401 - starlette imports it for the first form

        from fbnetv3.deploy.server.run_server import open_socket, run_server
    from fbnetv3.deploy.server.served_model import load_served_models
    from fbnetv3.deploy.server.server_limits import ServerLimits

    limits = ServerLimits(
        max_bytes=round(args.max_megabytes * 1e6),
        max_buffered_bytes=round(20 * args.max_megabytes * 1e6),
        max_pixels=round(args.max_megapixels * 1e6),
        max_waiting=args.max_waiting,
        timeout=args.timeout,
        max_batch=args.max_batch,
        max_delay=args.max_delay / 1000,
    )
    with open_socket(args.host, args.port) as listener:
        models = load_served_models(args.folders, args.runtime, args.device)
        host, port = listener.getsockname()[:2]
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        for name, model in models.items():
            print(f"{name}: {model.task}, {len(model.classes)} classes, {model.runtime_name}")
        print(f"serving on {address}; SIGTERM or Ctrl-C stops it", flush=True)
        num_answered = run_server(models, listener, limits)
    print(f"stopped; {num_answered} requests were answered")


def _port(text: str) -> int:
    """Parse the number of a port, as the `type` of an argparse argument."""
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text} must be an integer from 0 to 65,535")
    return int(text)


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(description="Answer HTTP requests with the predictions of exported networks.")
    add = parser.add_argument
    add(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="exported folders; each is served under its folder's name",
    )
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all")
    add("--port", type=_port, default=8000, help="port to listen on; 0 for any free one")
    add(
        "--runtime",
        metavar="NAME",
        help="runtime of the networks, such as openvino for ONNX files, or auto: the fastest on this machine (default: "
        "that of each folder's format)",
    )
    add(
        "--device",
        default=CPU,
        metavar="NAME",
        help="device to compute on, such as cuda or cuda:1, if the runtime can; auto: a GPU if there is one",
    )
    add("--max-batch", type=positive_int, default=16, metavar="N", help="images per call of the network")
    add(
        "--max-delay",
        type=float,
        default=2.0,
        metavar="MS",
        help="milliseconds that an image waits for others to form a batch with",
    )
    add("--max-megabytes", type=float, default=20.0, metavar="MB", help="maximum size of a request")
    add("--max-megapixels", type=float, default=40.0, metavar="MP", help="maximum size of an image")
    add(
        "--max-waiting",
        type=positive_int,
        default=128,
        metavar="N",
        help="images of a network that wait or run; further ones are refused with status 503",
    )
    add(
        "--timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds in which a request has to arrive, and in which it is answered",
    )
    return parser.parse_args(argv)
