"""A training step of FBNetV3-B as our tools run it, against timm's network in a plain loop with timm's defaults.

Each side has a process of its own, as it would in use; they take turns. Goals: at 224 pixels, batch 16, at least 2.0
times as fast; at 32 pixels, batch 64, at least 1.3 times.
"""

import argparse

import torch
from measure import Side, compare, report, serve
from torch.nn import functional as F

GOALS = {(224, 16): 2.0, (32, 64): 1.3}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--side", choices=("ours", "theirs"), help="serve steps to the process that compares")
    parser.add_argument("--case", type=int, nargs=2, metavar=("PIXELS", "BATCH"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.side:
        serve(step_of(args.side, *args.case))
        return
    check_gradients()
    for case in GOALS:
        shared = ("--threads", args.threads, "--case", *case)
        sides = [Side("--side", side, *shared) for side in ("ours", "theirs")]
        name = "training step at {} pixels, batch {}".format(*case)
        report(name, compare(*sides, rounds=args.rounds), GOALS[case], "timm")
        for side in sides:
            side.close()


def step_of(side, pixels, batch):
    """A training step of a side."""
    model, layout = build(side)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    images = torch.randn(batch, 3, pixels, pixels).contiguous(memory_format=layout)
    targets = torch.randint(1000, (batch,))

    def step():
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()

    return step


def build(side):
    """The network of a side and its memory order: ours as tools/train_net.py has it, theirs as it comes."""
    if side == "theirs":
        import timm

        return timm.create_model("fbnetv3_b"), torch.contiguous_format
    import fbnetv3
    from fbnetv3.modeling.cpu.malloc import keep_freed_memory

    keep_freed_memory()
    return fbnetv3.create_model("fbnetv3_b_same_padding").to(memory_format=torch.channels_last), torch.channels_last


def check_gradients():
    """Both compute the same loss and gradients from the same weights, in double precision."""
    import fbnetv3

    (ours, layout), (theirs, _) = build("ours"), build("theirs")
    fbnetv3.load_weights(ours, theirs.state_dict())
    images, found = torch.randn(4, 3, 64, 64, dtype=torch.float64), []
    for model, x in ((ours, images.contiguous(memory_format=layout)), (theirs, images)):
        loss = F.cross_entropy(model.double().train()(x), torch.arange(4))
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()))
    print("loss and norm of the gradients:", *found)
    assert all(abs(a - b) < 1e-9 * abs(b) for a, b in zip(*found, strict=True)), "the two networks differ"


if __name__ == "__main__":
    main()
