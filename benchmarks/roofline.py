"""Roofline of a deployed FBNetV3: its share of the machine's peak, by layer kind, with a figure.

The limits are measured in the same run: the peak of a matrix product (torch, float32), and the bandwidth of copying
arrays larger than any cache. No layer can be faster than its arithmetic and its memory traffic (input, weights and
output, each moved once) allow. The time of each layer comes from ONNX Runtime's profiler.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from inference import PIXELS, arch_name, export, random_images
from measure import report_value

from fbnetv3.utils.plotting import new_figure, save_figure

GOALS = {1: 0.65, 16: 0.75}  # share of the peak, by batch size
COLORS = {"1x1": "blue", "depthwise": "orange", "stem": "green", "squeeze": "purple"}
WARMUP_RUNS = 3


class Layer(NamedTuple):
    """Kind, floating-point operations, bytes of memory traffic, and seconds."""

    kind: str
    flops: int
    traffic: int
    seconds: float


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="fbnetv3_b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--figure", type=Path, help="PNG file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    peak = measure_peak()
    bandwidth = measure_bandwidth()
    print(
        f"limits with {args.threads} threads: {peak:.0f} GFLOP/s in a matrix product, {bandwidth:.1f} GB/s copying"
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export(args.network, file)
        for batch, goal in GOALS.items():
            seconds, flops = measure_network(args.network, file, batch, args.rounds)
            gflops_per_second = flops / seconds / 1e9
            peak = max(peak, measure_peak())  # the best of several times
            name = f"{args.network} at {PIXELS}, batch {batch}, {args.threads} threads: share of the peak"
            details = f"{1e3 * seconds:.2f} ms, {gflops_per_second:.0f} GFLOP/s"
            report_value(name, gflops_per_second / peak, goal, details)
        layers = profile_layers(file, Path(folder), args.rounds)
    print_table(layers, peak, bandwidth)
    print_limit(layers, peak, bandwidth)
    if args.figure:
        draw_roofline(layers, peak, bandwidth, args)


def measure_peak(size=2048, rounds=5):
    """Return GFLOP/s of the fastest of several products of square matrices."""
    a = torch.randn(size, size)
    b = torch.randn(size, size)
    return 2 * size**3 / fastest_seconds(lambda: torch.mm(a, b), rounds) / 1e9


def measure_bandwidth(megabytes=256):
    """Return GB/s read and written by copying arrays."""
    source = torch.empty(megabytes * 2**18)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest_seconds(lambda: target.copy_(source), 10) / 1e9


def fastest_seconds(function, rounds):
    return min(call_seconds(function) for _ in range(rounds))


def call_seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure_network(network, file, batch, rounds):
    """Return the median seconds of a batch in ONNX Runtime, and its floating-point operations."""
    import fbnetv3
    from fbnetv3.deploy.formats.onnx_format import OnnxRuntime

    runtime = OnnxRuntime(file)
    images = random_images(batch)
    times = [call_seconds(lambda: runtime.run(images)) for _ in range(rounds + WARMUP_RUNS)]
    macs = fbnetv3.cost(arch_name(network), PIXELS).macs_conv
    return float(np.median(times[WARMUP_RUNS:])), 2 * batch * macs


def profile_layers(file, folder, rounds):
    """Profile each layer for one image; seconds are medians."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    images = random_images(1)
    for _ in range(rounds):
        session.run(None, {"images": images})
    times = defaultdict(list)
    arguments = {}
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event["name"].endswith("_kernel_time"):
            times[event["name"]].append(event["dur"] / 1e6)
            arguments[event["name"]] = event["args"]
    return [
        Layer(*count_work(arguments[name]), float(np.median(seconds))) for name, seconds in times.items()
    ]


def count_work(arguments):
    """Return kind, floating-point operations and bytes of a layer, from the shapes in its profile.

    The kind of a convolution is its shape, that of other layers their operator.
    """
    inputs = [next(iter(shape.values())) for shape in arguments["input_type_shape"] if shape]
    outputs = [next(iter(shape.values())) for shape in arguments["output_type_shape"] if shape]
    traffic = 4 * sum(int(np.prod(shape)) for shape in (*inputs, *outputs))
    if arguments["op_name"] != "Conv":
        return arguments["op_name"], 0, traffic
    (_, channels, height, _), weight = inputs[:2]
    flops = 2 * int(np.prod(outputs[0])) * int(np.prod(weight[1:]))
    if height == 1:
        return "squeeze", flops, traffic
    if weight[1] == 1 < channels:
        return "depthwise", flops, traffic
    return ("1x1" if weight[2] == 1 else "stem"), flops, traffic


def print_table(layers, peak, bandwidth):
    """Print GFLOP/s by layer kind, its share of the peak, and the limit from arithmetic and traffic over the time."""
    print(
        "\nkind              layers      ms   us each   GFLOP/s   share of the peak   share of the roofline"
    )
    kinds = dict.fromkeys(layer.kind for layer in layers)
    groups = [[layer for layer in layers if layer.kind == kind] for kind in kinds]
    for group in sorted(groups, key=lambda group: -sum(layer.seconds for layer in group)):
        seconds = sum(layer.seconds for layer in group)
        limit = sum(max(layer.flops / peak, layer.traffic / bandwidth) / 1e9 for layer in group)
        rate = sum(layer.flops for layer in group) / seconds / 1e9
        print(
            f"{group[0].kind:16} {len(group):7} {1e3 * seconds:7.2f} {1e6 * seconds / len(group):9.1f} {rate:9.1f} "
            f"{rate / peak:16.2f} {limit / seconds:20.2f}"
        )


def print_limit(layers, peak, bandwidth):
    """Print what remains at most if every layer is as fast as the roofline allows, also without changes of layout."""
    flops = sum(layer.flops for layer in layers)
    parts = {
        "all layers": layers,
        "without reorders": [layer for layer in layers if not layer.kind.startswith("Reorder")],
    }
    for name, group in parts.items():
        limit = sum(max(layer.flops / peak, layer.traffic / bandwidth) / 1e9 for layer in group)
        seconds = sum(layer.seconds for layer in group)
        print(
            f"{name}: {1e3 * seconds:.2f} ms with the profiler; at the roofline {1e3 * limit:.2f} ms, "
            f"{flops / limit / 1e9 / peak:.2f} of the peak"
        )


def draw_roofline(layers, peak, bandwidth, args):
    """Draw GFLOP/s of each layer over its arithmetic intensity; areas are proportional to time."""
    figure = new_figure(7, 4.5, dpi=110)
    axes = figure.subplots()
    intensity = np.logspace(-1, 2.5, 100)
    axes.loglog(intensity, np.minimum(peak, bandwidth * intensity), color="black", lw=1)
    axes.text(intensity[-1], peak * 1.07, f"{peak:.0f} GFLOP/s", ha="right", fontsize=9)
    axes.text(0.12, 0.12 * bandwidth * 1.35, f"{bandwidth:.0f} GB/s", rotation=38, fontsize=9)
    total_seconds = sum(layer.seconds for layer in layers)
    for kind, color in COLORS.items():
        group = [layer for layer in layers if layer.kind == kind and layer.flops]
        if group:
            flops, traffic, seconds = (np.array(column) for column in list(zip(*group, strict=True))[1:])
            area = 12 + 250 * seconds / total_seconds
            axes.scatter(
                flops / traffic,
                flops / seconds / 1e9,
                area,
                color=f"tab:{color}",
                alpha=0.6,
                lw=0,
                label=kind,
            )
    axes.set_xlabel("floating-point operations per byte of input, weights and output")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(
        f"Layers of {args.network} at {PIXELS} pixels, one image, {args.threads} threads", fontsize=10
    )
    axes.grid(alpha=0.3, which="both", lw=0.4)
    axes.legend(loc="lower right", fontsize=9)
    save_figure(figure, args.figure)


if __name__ == "__main__":
    main()
