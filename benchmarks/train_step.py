"""A training step of FBNetV3-B as our tools run it, against timm's network in a plain loop with timm's defaults.

Each side has a process of its own, as it would in use; they take turns. Goals: at 224 pixels, batch 16, at least 2.0
times as fast; at 32 pixels, batch 64, at least 1.3 times.
"""

import argparse
import subprocess
import sys

import torch
from measure import compare, report
from torch.nn import functional as F

CASES = ((224, 16), (32, 64))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--side", choices=("ours", "theirs"), help="serve steps to the process that compares")
    parser.add_argument("--case", type=int, nargs=2, metavar=("PIXELS", "BATCH"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.side:
        serve(args.side, *args.case)
        return
    check_gradients()
    for case in CASES:
        sides = [Side(side, args.threads, *case) for side in ("ours", "theirs")]
        report("training step at {} pixels, batch {}".format(*case), compare(*sides, rounds=args.rounds))
        for side in sides:
            side.close()


class Side:
    """A process that takes a training step with each call."""

    def __init__(self, side, threads, pixels, batch):
        command = [sys.executable, __file__, "--side", side, "--threads", threads, "--case", pixels, batch]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen([str(part) for part in command], **pipes)

    def __call__(self):
        self.process.stdin.write("step\n")
        if self.process.stdout.readline() != "done\n":
            raise SystemExit("error: a side ended early; its message stands above")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def serve(side, pixels, batch):
    """A step for each line that comes in."""
    model, layout = build(side)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    images = torch.randn(batch, 3, pixels, pixels).contiguous(memory_format=layout)
    targets = torch.randint(1000, (batch,))
    for _ in sys.stdin:
        optimizer.zero_grad()
        F.cross_entropy(model(images), targets).backward()
        optimizer.step()
        print("done", flush=True)


def build(side):
    """The network of a side and its memory order: ours as tools/train_net.py has it, theirs as it comes."""
    if side == "theirs":
        import timm

        return timm.create_model("fbnetv3_b"), torch.contiguous_format
    import fbnetv3
    from fbnetv3.engine.memory import keep_freed_memory

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
