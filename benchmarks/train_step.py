"""Training step of FBNetV3-B as tools/train_net.py runs it, against timm's network in a plain loop.

Each side has its own process; they take turns. Goals on a CPU: at 224 pixels and batch 16 at least 2.0 times as fast,
at 32 pixels and batch 64 at least 1.3 times. On a GPU (`--device cuda`), a turn has several steps; the CPU launches
them without waiting for their results, as in training.
"""

import argparse

import torch
from measure import SideProcess, compare, report_comparison, serve_calls
from torch.nn import functional as F

from fbnetv3.modeling.torch_device import find_device

GOALS = {(224, 16): 2.0, (32, 64): 1.3}  # by pixels and batch size, on a CPU
GPU_STEPS = 10  # per turn


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or auto")
    parser.add_argument("--side", choices=("fbnetv3", "timm"), help="serve steps to the comparing process")
    parser.add_argument("--case", type=int, nargs=2, metavar=("PIXELS", "BATCH"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = find_device(args.device)
    is_on_cpu = device.type == "cpu"
    if args.side:
        serve_calls(build_step(args.side, *args.case, device), device)
        return
    check_gradients()
    repeat = 1 if is_on_cpu else GPU_STEPS
    for case, goal in GOALS.items():
        shared = ("--threads", args.threads, "--device", device, "--case", *case)
        sides = [SideProcess("--side", side, *shared) for side in ("fbnetv3", "timm")]
        name = "training step at {} pixels, batch {}".format(*case) + ("" if is_on_cpu else f", {device}")
        result = compare(*sides, args.rounds, repeat)
        report_comparison(name, result, goal if is_on_cpu else None, "timm")
        for side in sides:
            side.close()


def build_step(side, pixels, batch, device):
    """Return a function that runs a training step of one side, or launches it on a GPU."""
    model, memory_format = build_model(side)
    model.to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    images = torch.randn(batch, 3, pixels, pixels, device=device).contiguous(memory_format=memory_format)
    targets = torch.randint(1000, (batch,), device=device)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()

    return step


def build_model(side):
    """Return the network and its memory format: fbnetv3's as tools/train_net.py sets it, timm's default."""
    if side == "timm":
        import timm

        return timm.create_model("fbnetv3_b"), torch.contiguous_format
    import fbnetv3
    from fbnetv3.modeling.cpu.malloc import keep_freed_memory

    keep_freed_memory()
    model = fbnetv3.create_model("fbnetv3_b_same_padding")
    return model.to(memory_format=torch.channels_last), torch.channels_last


def check_gradients():
    """Check that both compute the same loss and gradients from the same weights, in double precision."""
    import fbnetv3

    model, memory_format = build_model("fbnetv3")
    peer, _ = build_model("timm")
    fbnetv3.load_weights(model, peer.state_dict())
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    results = []
    for network, inputs in ((model, images.contiguous(memory_format=memory_format)), (peer, images)):
        loss = F.cross_entropy(network.double().train()(inputs), torch.arange(4))
        loss.backward()
        gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
        results.append((loss.item(), gradients.norm().item()))
    print("loss and gradient norm of both sides:", *results)
    assert all(abs(a - b) < 1e-9 * abs(b) for a, b in zip(*results, strict=True)), "the two networks differ"


if __name__ == "__main__":
    main()
