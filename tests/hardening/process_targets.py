"""Training runs, searches and downloads of a second or less, as functions for processes that tests kill."""

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
from fbnetv3.nars.algorithm.ask_tell import Search
from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.training import train_classifier
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
# Exit codes of the processes
USER_ERROR = 3
CRASH = 4


def tiny_config(folder):
    """Return a training run of a tiny network: 5 epochs of 5 steps, with a checkpoint after every second step."""
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
def exit_code():
    """Exit the process after the block with 0, USER_ERROR or CRASH; discard its output."""
    torch.set_num_threads(1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(devnull, stream)
    code = CRASH
    try:
        yield
        code = 0
    except UserError:
        code = USER_ERROR
    finally:
        sys.stdout.flush()
        os._exit(code)


def run_training(folder, resume=True):
    with exit_code():
        train_classifier(tiny_config(folder), resume=resume, progress=False)


def run_search(folder, resume=True, executor="serial"):
    with exit_code():
        search(
            SPACE,
            RecordingEvaluator(folder),
            Path(folder) / "out",
            **{**QUICK, "executor": executor},
            resume=resume,
        )


def ask_and_tell(folder, resume=True):
    """Evaluate what a search asks for, after reclaiming what an earlier process was asked for."""
    with exit_code():
        evaluator = RecordingEvaluator(folder)
        asked = Search(SPACE, Path(folder) / "out", **QUICK, continues=True)
        asked.reclaim()
        while candidates := asked.ask():
            for candidate in candidates:
                asked.tell(candidate, evaluator(candidate, candidate.epochs))
        asked.result()


class RecordingEvaluator:
    """The toy evaluator, slowed down, which appends the number of each evaluated trial to the file `calls`."""

    continues = True  # so that trials are paused, and some are continued

    def __init__(self, folder):
        self.calls = Path(folder) / "calls"

    def __call__(self, candidate, epochs):
        with self.calls.open("a") as f:
            f.write(f"{candidate.number}\n")
        time.sleep(0.01)
        return evaluate(candidate, epochs)


def run_download(url, cache, sha256=None):
    os.environ["FBNETV3_CACHE"] = str(cache)
    with exit_code():
        download(url, sha256)
