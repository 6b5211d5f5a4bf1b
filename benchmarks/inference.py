"""Inference of FBNetV3-B and G at 224 pixels, against timm's networks and OpenVINO: the same weights and input.

"eager" is what tools/classify.py runs without an export: channels-last, BatchNorm folded into convolutions. "deployed"
is `fbnetv3.deploy.load` of an ONNX export, which ONNX Runtime runs, "auto" the faster of ONNX Runtime and OpenVINO, as
`load` chooses it with runtime="auto". timm's networks run unchanged; OpenVINO runs the same ONNX file in float32.
Each side has its own process; they take turns. Needs timm and openvino.

With `--device cuda`, all but OpenVINO run on a GPU; each call includes the copies of images and logits. Goals are those
of a CPU.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import SideProcess, compare, report_comparison, serve_calls

from fbnetv3.modeling.torch_device import find_device

NETWORKS = ("fbnetv3_b", "fbnetv3_g")
BATCHES = (1, 16)
PIXELS = 224
SIDES = ("eager", "deployed", "auto", "timm", "openvino")
# Side of fbnetv3, peer, and the ratio to reach by batch size
COMPARISONS = (
    ("eager", "timm", {1: 1.3, 16: 1.3}),
    ("deployed", "timm", {1: 3.3, 16: 3.3}),
    ("auto", "timm", {1: 3.3, 16: 3.3}),
    ("auto", "openvino", {1: 1.0, 16: 1.0}),
)
TURN_SECONDS = 0.3
PAUSE_SECONDS = 0.05


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=BATCHES)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or auto")
    parser.add_argument("--side", choices=SIDES, help="serve calls to the comparing process")
    parser.add_argument("--case", nargs=3, metavar=("NETWORK", "BATCH", "FILE"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.device = str(find_device(args.device))
    if args.side:
        network, batch, file = args.case
        run = build_side(args.side, network, Path(file), args.device)
        images = random_images(int(batch))
        serve_calls(lambda: len(run(images)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for network in args.networks:
            file = Path(folder) / f"{network}.onnx"
            export(network, file)
            check_outputs(network, file, args.device)
            for batch in args.batches:
                compare_sides(network, batch, file, args)


def compare_sides(network, batch, file, args):
    """Run all comparisons at one batch size."""
    shared = ("--threads", args.threads, "--device", args.device, "--case", network, batch, file)
    sides = {side: SideProcess("--side", side, *shared) for side in sides_on(args.device)}
    for side, peer, goals in COMPARISONS:
        if peer not in sides:
            continue
        trial = compare(sides[side], sides[peer], rounds=3)
        repeat = max(1, round(TURN_SECONDS / min(trial["fbnetv3"], trial["peer"])))
        result = compare(sides[side], sides[peer], args.rounds, repeat, PAUSE_SECONDS)
        is_on_cpu = args.device == "cpu"
        where = f"{args.threads} threads" if is_on_cpu else args.device
        name = f"{network} at {PIXELS}, batch {batch}, {where}, {side}"
        report_comparison(name, result, goals[batch] if is_on_cpu else None, peer)
    for process in sides.values():
        process.close()


def sides_on(device):
    return [side for side in SIDES if device == "cpu" or side != "openvino"]


def random_images(batch):
    return np.random.default_rng(0).standard_normal((batch, 3, PIXELS, PIXELS), np.float32)


def build_side(side, network, file, device):
    """Return a function from images (N, 3, H, W) to logits, both as arrays."""
    from fbnetv3.deploy.formats.onnx_format import OnnxRuntime
    from fbnetv3.deploy.formats.torch_export_format import TorchRuntime

    if side == "auto":
        return choose_runtime(file).run
    if side == "timm":
        return TorchRuntime(build_timm_network(network), device=device).run
    if side == "eager":
        return TorchRuntime(build_network(network), optimize=True, device=device).run
    return OnnxRuntime(file, device).run if side == "deployed" else compile_openvino(file)


def choose_runtime(file):
    """Choose as `load` does, among runtimes whose outputs `check_outputs` has compared."""
    from fbnetv3.deploy.formats.onnx_format import OnnxFormat
    from fbnetv3.deploy.runtime_choice import AUTO, choose_fastest, runtime_openers

    runs = [partial(lambda images, runtime: runtime.run(images), random_images(batch)) for batch in BATCHES]
    openers = runtime_openers(OnnxFormat(), file, "float32", AUTO)
    return choose_fastest(openers, lambda runtime, reference: True, runs)


def compile_openvino(file):
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(str(file), "CPU", {"PERFORMANCE_HINT": "LATENCY", **settings})
    request = compiled.create_infer_request()
    return lambda images: request.infer({0: images})[compiled.output(0)]


def build_timm_network(network):
    import timm

    torch.manual_seed(0)
    return timm.create_model(network).eval()


def arch_name(network):
    """Return the architecture with timm's padding; FBNetV3-G has it by default."""
    return network if network == "fbnetv3_g" else f"{network}_same_padding"


def build_network(network):
    """Build fbnetv3's network with the weights of timm's network."""
    import fbnetv3

    model = fbnetv3.create_model(arch_name(network))
    fbnetv3.load_weights(model, build_timm_network(network).state_dict())
    return model.eval()


def export(network, file):
    from fbnetv3.deploy.formats.export_format import export_program
    from fbnetv3.deploy.formats.graph_preparation import prepare_for_export
    from fbnetv3.deploy.formats.onnx_format import write_onnx

    model = prepare_for_export(build_network(network))
    write_onnx(export_program(model, torch.zeros(2, 3, PIXELS, PIXELS), [0]), file)


def check_outputs(network, file, device):
    """Check that all sides compute the same logits up to rounding, which for torch on a GPU is to TF32."""
    images = random_images(2)
    outputs = {side: build_side(side, network, file, device)(images) for side in sides_on(device)}
    expected = outputs["timm"]
    tolerance = 1e-4 if device == "cpu" else 1e-2
    for side, logits in outputs.items():
        difference = np.abs(logits - expected).max() / np.abs(expected).max()
        assert difference < tolerance, f"the logits of {side} differ from timm's by {difference:.1e}"


if __name__ == "__main__":
    main()
