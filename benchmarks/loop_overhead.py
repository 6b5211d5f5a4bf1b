"""Fraction of training time spent on neither data, forward, backward nor the optimizer's step. Goal: less than 2%.

A complete run like that of tools/train_net.py, with metrics file, TensorBoard and signal handling. Evaluation and
checkpoints, once an epoch, are measured separately.

On a GPU (`--device cuda`) each part includes the work that it launches: the clock is read once the GPU has finished.
The parts therefore do not overlap as they do in training, where the GPU's work hides the loop's own.
"""

import argparse
import tempfile
from collections import Counter
from functools import wraps
from pathlib import Path

import torch
from measure import report_value
from torch.utils.data import DataLoader

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.data import Batch
from fbnetv3.data.samplers import EpochSampler
from fbnetv3.deploy.latency.timing import read_clock
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.modeling.torch_device import find_device
from fbnetv3.training import Trainer, train_classifier
from fbnetv3.training.training_hooks import CheckpointHook

seconds = Counter()  # by part

PARTS = (
    (Trainer, "_train_epoch", "all steps"),
    (Trainer, "_backward", "forward and backward"),
    (torch.optim.SGD, "step", "optimizer step"),
    (Batch, "to", "data"),
    (CheckpointHook, "_save", "checkpoints"),
)
WORK = ("forward and backward", "optimizer step", "data")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=configs_folder() / "digits" / "fbnetv3_digits.yaml")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 or auto")
    parser.add_argument("overrides", nargs="*", help="KEY VALUE pairs, as in tools/train_net.py")
    args = parser.parse_args()
    device = find_device(args.device)
    keep_freed_memory()
    DataLoader.__iter__ = timed_iterator(DataLoader.__iter__, device)
    for owner, name, part in PARTS:
        setattr(owner, name, timed(part, getattr(owner, name), device))
    with tempfile.TemporaryDirectory() as folder:
        short = ["SOLVER.EPOCHS", "4", "SOLVER.WARMUP_EPOCHS", "1", "EVAL.PERIOD", "4"]
        fixed = ["DEVICE", str(device), "OUTPUT_DIR", str(Path(folder) / "run")]
        train_classifier(load_config(args.config, [*short, *args.overrides, *fixed]))
    for part, total in seconds.most_common():
        print(f"{part:22} {total:8.2f} s")
    overhead = seconds["all steps"] - sum(seconds[part] for part in WORK)
    fraction = overhead / seconds["all steps"]
    report_value("loop overhead, of all steps", fraction, 0.02, f"{overhead:.2f} s", lower_is_better=True)


def timed(part, function, device):
    """Wrap a function to add its time to a part."""

    @wraps(function)
    def wrapper(*args, **kwargs):
        start = read_clock(device)
        try:
            return function(*args, **kwargs)
        finally:
            seconds[part] += read_clock(device) - start

    return wrapper


def timed_iterator(make_iterator, device):
    """Wrap `DataLoader.__iter__` to measure the wait for training batches; evaluation is outside the timed steps."""

    def wrapper(loader):
        iterator = make_iterator(loader)
        is_training = isinstance(loader.sampler, EpochSampler)
        while True:
            start = read_clock(device)
            batch = next(iterator, None)
            if is_training:
                seconds["data"] += read_clock(device) - start
            if batch is None:
                return
            yield batch

    return wrapper


if __name__ == "__main__":
    main()
