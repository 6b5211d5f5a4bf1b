"""Inference of FBNetV3-B and G at 224 pixels against timm's networks and against OpenVINO: the same weights and input.

"eager" is what tools/classify.py runs without an export: channels-last, norms folded into convolutions. "deployed" is
`fbnetv3.deploy.load` of an ONNX export. timm's networks come as they are, OpenVINO gets our ONNX file in float32. Each
side has a process of its own; they take turns. Needs timm and openvino.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from measure import Side, compare, report, serve

NETWORKS, BATCHES, PIXELS = ("fbnetv3_b", "fbnetv3_g"), (1, 16), 224
# Ours, the other side, and how many times as fast ours is meant to be, by batch.
COMPARED = (
    ("eager", "timm", {1: 1.3, 16: 1.3}),
    ("deployed", "timm", {1: 3.3, 16: 3.0}),
    ("deployed", "openvino", {1: 1.0, 16: 1.0}),
)
SIDES = ("eager", "deployed", "timm", "openvino")
TURN, PAUSE = 0.3, 0.05  # seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=BATCHES)
    parser.add_argument("--side", choices=SIDES, help="serve to the process that compares")
    parser.add_argument("--case", nargs=3, metavar=("NETWORK", "BATCH", "FILE"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.side:
        network, batch, file = args.case
        run, images = side_of(args.side, network, Path(file)), images_of(int(batch))
        serve(lambda: len(run(images)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for network in args.networks:
            file = Path(folder) / f"{network}.onnx"
            export(network, file)
            check_answers(network, file)
            for batch in args.batches:
                race(network, batch, file, args)


def race(network, batch, file, args):
    """All comparisons at a batch size."""
    shared = ("--threads", args.threads, "--case", network, batch, file)
    sides = {side: Side("--side", side, *shared) for side in SIDES}
    for ours, theirs, goals in COMPARED:
        once = min(compare(sides[ours], sides[theirs], rounds=3)[side] for side in ("ours", "theirs"))
        found = compare(sides[ours], sides[theirs], args.rounds, max(1, round(TURN / once)), PAUSE)
        report(f"{network} at {PIXELS}, batch {batch}, {args.threads} threads, {ours}", found, goals[batch], theirs)
    for side in sides.values():
        side.close()


def images_of(batch):
    return np.random.default_rng(0).standard_normal((batch, 3, PIXELS, PIXELS), np.float32)


def side_of(side, network, file):
    """What takes images (N, 3, H, W) as an array; its answer is an array too."""
    from fbnetv3.deploy.formats.runtimes import OnnxRuntime, TorchRuntime

    if side == "timm":
        return TorchRuntime(theirs(network)).run
    if side == "eager":
        return TorchRuntime(ours(network), optimize=True).run
    return OnnxRuntime(file).run if side == "deployed" else openvino(file)


def openvino(file):
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(str(file), "CPU", {"PERFORMANCE_HINT": "LATENCY", **settings})
    request = compiled.create_infer_request()
    return lambda images: request.infer({0: images})[compiled.output(0)]


def theirs(network):
    import timm

    torch.manual_seed(0)
    return timm.create_model(network).eval()


def name_of(network):
    """Our network that pads as timm's; of G there is one alone."""
    return network if network == "fbnetv3_g" else f"{network}_same_padding"


def ours(network):
    import fbnetv3

    model = fbnetv3.create_model(name_of(network))
    fbnetv3.load_weights(model, theirs(network).state_dict())
    return model.eval()


def export(network, file):
    from fbnetv3.deploy.formats.export_formats import captured, folded, write_onnx

    write_onnx(captured(folded(ours(network)), torch.zeros(2, 3, PIXELS, PIXELS), [0]), file)


def check_answers(network, file):
    images = images_of(2)
    found = {side: side_of(side, network, file)(images) for side in SIDES}
    expected = found["timm"]
    for side, answer in found.items():
        difference = np.abs(answer - expected).max() / np.abs(expected).max()
        assert difference < 1e-4, f"{side} answers differently from timm, by {difference:.1e}"


if __name__ == "__main__":
    main()
