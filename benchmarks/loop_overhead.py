"""How much of a training's steps is neither data, forward, backward nor the optimiser's step. Goal: less than 2 %.

A real run of the tool's, with its metrics file, TensorBoard and interrupts; only evaluation and checkpoints, which come
once an epoch, are timed apart.
"""

import argparse
import tempfile
import time
from collections import Counter
from functools import wraps
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.data import Batch
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.training import Trainer, run_training
from fbnetv3.training.training_hooks import Checkpointing

spent = Counter()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default=configs_folder() / "digits" / "fbnetv3_digits.yaml")
    parser.add_argument("overrides", nargs="*", help="KEY VALUE, as for tools/train_net.py")
    args = parser.parse_args()
    keep_freed_memory()
    DataLoader.__iter__ = timed_iterator(DataLoader.__iter__)
    for owner, name, what in (
        (Trainer, "_train_epoch", "all"),
        (Trainer, "_backward", "forward and backward"),
        (torch.optim.SGD, "step", "the optimiser's step"),
        (Batch, "on", "data"),
        (Checkpointing, "_save", "checkpoints"),
    ):
        setattr(owner, name, timed(what, getattr(owner, name)))
    with tempfile.TemporaryDirectory() as folder:
        short = ["SOLVER.EPOCHS", "4", "SOLVER.WARMUP_EPOCHS", "1", "EVAL.PERIOD", "4"]
        run_training(load_config(args.config, [*short, *args.overrides, "OUTPUT_DIR", str(Path(folder) / "run")]))
    for what, seconds in spent.most_common():
        print(f"{what:22} {seconds:8.2f} s")
    overhead = spent["all"] - sum(spent[what] for what in ("forward and backward", "the optimiser's step", "data"))
    print(f"the loop itself        {overhead:8.2f} s, {overhead / spent['all']:.2%} of all steps")


def timed(what, call):
    @wraps(call)
    def inner(*args, **kwargs):
        start = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            spent[what] += time.perf_counter() - start

    return inner


def timed_iterator(make):
    """Of training's batches; evaluation's do not lie in what is timed."""

    def inner(loader):
        iterator = make(loader)
        training = hasattr(loader.sampler, "batches")
        while True:
            start = time.perf_counter()
            batch = next(iterator, None)
            if training:
                spent["data"] += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    return inner


if __name__ == "__main__":
    main()
