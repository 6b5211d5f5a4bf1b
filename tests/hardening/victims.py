"""What is killed: trainings, searches and downloads of a second or less, as functions that other processes run."""

import contextlib
import os
import sys
import time
from pathlib import Path

import torch.utils.tensorboard
from matplotlib.figure import Figure  # noqa: F401
from sklearn.datasets import load_digits  # noqa: F401
from sklearn.model_selection import train_test_split  # noqa: F401

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.errors import UserError
from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.training import run_training
from fbnetv3.utils.downloads import download
from tests.nars.toy import QUICK, SPACE, evaluate

TINY = """
name: tiny
resolution: 8
stages:
- rows:
  - {block: conv, kernel: 3, channels: 8, stride: 2}
- rows:
  - {block: mbconv, kernel: 3, expansion: 2, channels: 8, se: hsigmoid}
- rows:
  - {block: mbpool, expansion: 2, channels: 16}
"""
REFUSED, FAILED = 3, 4
"""Exit codes: the user was told something; anything else."""


def config_of(folder):
    """A training of a tiny network, 5 epochs of 5 steps, with a checkpoint after every second."""
    arch = Path(folder).parent / "tiny.yaml"
    if not arch.exists():
        arch.write_text(TINY)
    keys = {
        "MODEL.ARCH": arch,
        "MODEL.DROP_PATH_RATE": 0.1,
        "SOLVER.EPOCHS": 5,
        "SOLVER.WARMUP_EPOCHS": 0,
        "SOLVER.BATCH_SIZE": 256,
        "INPUT.CROP_PADDING": 1,
        "INPUT.MIXUP": 0.1,
        "EMA.ENABLED": True,
        "CHECKPOINT.STEPS": 2,
        "LOG.PERIOD": 1,
        "OUTPUT_DIR": folder,
    }
    pairs = [str(part) for pair in keys.items() for part in pair]
    return load_config(configs_folder() / "digits" / "fbnetv3_digits.yaml", pairs)


@contextlib.contextmanager
def judged():
    """Ends the process with a code that says what has happened; what it prints is seen by nobody."""
    torch.set_num_threads(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    code = FAILED
    try:
        yield
        code = 0
    except UserError:
        code = REFUSED
    finally:
        sys.stdout.flush()
        os._exit(code)


def train(folder, resume=True):
    with judged():
        run_training(config_of(folder), resume=resume, progress=False)


def run_search(folder, resume=True, executor="serial"):
    with judged():
        search(SPACE, Noting(folder), Path(folder) / "out", **{**QUICK, "executor": executor}, resume=resume)


class Noting:
    """The toy's evaluator, which writes down what it is asked, and takes its time."""

    def __init__(self, folder):
        self.calls = Path(folder) / "calls"

    def __call__(self, candidate, epochs):
        with self.calls.open("a") as f:
            f.write(f"{candidate.number}\n")
        time.sleep(0.01)
        return evaluate(candidate, epochs)


def fetch(url, cache, sha256=None):
    os.environ["FBNETV3_CACHE"] = str(cache)
    with judged():
        download(url, sha256)
