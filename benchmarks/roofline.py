"""How near a deployed FBNetV3 comes to what the machine can do, layer kinds apart, with a picture.

The limits are measured in the same run: the peak of a matrix product (torch, float32), and the bandwidth of copying
arrays that no cache holds. A layer cannot be faster than its multiplications and its memory traffic (input, weights and
output, each moved once) allow. ONNX Runtime's own profile says what each layer takes.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from inference import PIXELS, export, images_of, name_of
from measure import fact

GOALS = {1: 0.6, 16: 0.7}  # of the peak
COLORS = {"1x1": "blue", "depthwise": "orange", "stem": "green", "squeeze": "purple", "other": "grey"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="fbnetv3_b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    peak, bandwidth = gemm_peak(), copy_bandwidth(args.threads)
    print(f"limits with {args.threads} threads: {peak:.0f} GFLOP/s in a matrix product, {bandwidth:.1f} GB/s copying")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        export(args.network, file)
        for batch in GOALS:
            seconds, flops = whole(args.network, file, batch, args.rounds)
            peak = max(peak, gemm_peak())  # of several moments, the machine's best
            share = flops / seconds / 1e9 / peak
            name = f"{args.network} at {PIXELS}, batch {batch}, {args.threads} threads: share of the peak"
            fact(name, share, GOALS[batch], f"{1e3 * seconds:.2f} ms, {flops / seconds / 1e9:.0f} GFLOP/s")
        layers = profiled(file, Path(folder), args.rounds)
    table(layers, peak, bandwidth)
    if args.picture:
        draw(layers, peak, bandwidth, args)


def gemm_peak(size=2048, rounds=5):
    """GFLOP/s of the fastest of several products of square matrices."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / fastest(lambda: torch.mm(a, b), rounds) / 1e9


def copy_bandwidth(threads, megabytes=256):
    """GB/s read and written by copying arrays."""
    source = torch.empty(megabytes * 2**18)
    target = torch.empty_like(source)
    return 2 * source.nbytes / fastest(lambda: target.copy_(source), 10) / 1e9


def fastest(call, rounds):
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def whole(network, file, batch, rounds):
    """Median seconds of a batch by our predictor's runtime, and the floating point operations in it."""
    import fbnetv3
    from fbnetv3.deploy.formats.runtimes import OnnxRuntime

    runtime, images, times = OnnxRuntime(file), images_of(batch), []
    for _ in range(rounds + 3):
        start = time.perf_counter()
        runtime.run(images)
        times.append(time.perf_counter() - start)
    return float(np.median(times[3:])), 2 * batch * fbnetv3.cost(name_of(network), PIXELS).macs_conv


def profiled(file, folder, rounds):
    """Each layer of one image: kind, floating point operations, bytes, seconds (the median)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    images = images_of(1)
    for _ in range(rounds):
        session.run(None, {"images": images})
    seconds, shapes = defaultdict(list), {}
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event["name"].endswith("_kernel_time"):
            seconds[event["name"]].append(event["dur"] / 1e6)
            shapes[event["name"]] = event["args"]
    return [(*work(shapes[name]), float(np.median(times))) for name, times in seconds.items()]


def work(about):
    """Kind, floating point operations and bytes of a layer from the shapes in its profile."""
    inputs = [next(iter(shape.values())) for shape in about["input_type_shape"] if shape]
    outputs = [next(iter(shape.values())) for shape in about["output_type_shape"] if shape]
    moved = 4 * sum(int(np.prod(shape)) for shape in (*inputs, *outputs))
    if about["op_name"] != "Conv":
        return "other", 0, moved
    (_, channels, height, _), weight = inputs[:2]
    flops = 2 * int(np.prod(outputs[0])) * int(np.prod(weight[1:]))
    if height == 1:
        return "squeeze", flops, moved
    if weight[1] == 1 < channels:
        return "depthwise", flops, moved
    return ("1x1" if weight[2] == 1 else "stem"), flops, moved


def table(layers, peak, bandwidth):
    print("\nkind        layers      ms   GFLOP/s   share of the peak   of what its traffic allows")
    for kind in dict.fromkeys(layer[0] for layer in layers):
        chosen = [layer[1:] for layer in layers if layer[0] == kind]
        flops, seconds = (sum(layer[i] for layer in chosen) for i in (0, 2))
        limit = sum(max(f / peak, m / bandwidth) / 1e9 for f, m, _ in chosen)
        rate = flops / seconds / 1e9
        print(f"{kind:10} {len(chosen):7} {1e3 * seconds:7.2f} {rate:9.1f} {rate / peak:16.2f} {limit / seconds:20.2f}")


def draw(layers, peak, bandwidth, args):
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), constrained_layout=True)
    intensity = np.logspace(-1, 2.5, 100)
    axes.loglog(intensity, np.minimum(peak, bandwidth * intensity), color="black", lw=1)
    axes.text(intensity[-1], peak * 1.07, f"{peak:.0f} GFLOP/s", ha="right", fontsize=9)
    axes.text(0.12, 0.12 * bandwidth * 1.35, f"{bandwidth:.0f} GB/s", rotation=38, fontsize=9)
    for kind, color in COLORS.items():
        chosen = [layer for layer in layers if layer[0] == kind and layer[1]]
        if chosen:
            flops, moved, seconds = (np.array(column) for column in list(zip(*chosen, strict=True))[1:])
            area = 12 + 250 * seconds / sum(layer[3] for layer in layers)
            axes.scatter(flops / moved, flops / seconds / 1e9, area, color=f"tab:{color}", alpha=0.6, lw=0, label=kind)
    axes.set_xlabel("floating point operations a byte of input, weights and output")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(f"Layers of {args.network} at {PIXELS} pixels, one image, {args.threads} threads", fontsize=10)
    axes.grid(alpha=0.3, which="both", lw=0.4)
    axes.legend(loc="lower right", fontsize=9)
    figure.savefig(args.picture, dpi=110)


if __name__ == "__main__":
    main()
