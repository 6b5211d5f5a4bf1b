"""Output folder of a run: the paths of its files, the files that describe the run, and the folder's lock."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from fbnetv3.config.loading import RUN_CONFIG
from fbnetv3.errors import OutputError, UsageError
from fbnetv3.modeling.safe_loading import load_checkpoint_file
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.run_state.checkpoints import Checkpoints, load_newest, numbered_checkpoints
from fbnetv3.training.run_state.run_description import describe_environment
from fbnetv3.utils.files import (
    FolderLock,
    expand_path,
    make_folder,
    remove_partial_files,
    write_json,
    write_text,
)

logger = logging.getLogger(__name__)


class RunFolder:
    """Paths in the output folder of a classifier's or detector's run."""

    def __init__(self, path: str | Path) -> None:
        self.path = expand_path(path)
        self.weights = self.path / "model_final.pth"  # after the last epoch
        self.best = self.path / "model_best.pth"  # with the best validation top-1 or AP
        self.checkpoints = self.path / "checkpoints"  # a folder
        self.metrics = self.path / "metrics.jsonl"  # of steps and of evaluations
        self.curve = self.path / "curve.png"  # loss and accuracy
        self.log = self.path / "log.txt"
        self.tensorboard = self.path / "tensorboard"  # a folder
        self.config = self.path / RUN_CONFIG  # all keys, including defaults
        self.environment = self.path / "environment.json"  # one entry for each start of the run
        self.result = self.path / "result.json"  # the row of results.csv
        self.augmented_images = self.path / "augmented_images.png"  # before the first step
        self.detections = self.path / "inference"  # a folder: of detectors, results of the last evaluation
        self.report = self.path / "evaluation"  # a folder: tables and figures of the last evaluation
        self.diverged = self.path / "diverged.pth"  # batch and weights of a step with a non-finite loss

    def has_run(self) -> bool:
        """Return whether the folder holds results that a new run would overwrite."""
        return self.weights.exists() or self.metrics.exists() or bool(Checkpoints(self.checkpoints).paths())

    def trained_weights(self) -> Path | None:
        """Return the final weights, else the newest complete checkpoint; None if there is neither."""
        if self.weights.exists():
            return self.weights
        paths = numbered_checkpoints(self.checkpoints)
        newest = load_newest(self.checkpoints, reversed(paths), load_checkpoint_file)
        return newest[0] if newest else None

    def started_from(self) -> str:
        """Return the weights from which the run started, MODEL.WEIGHTS of its config; "" if it is not known."""
        try:
            return str(yaml.safe_load(self.config.read_text())["MODEL"]["WEIGHTS"])
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError):
            return ""

    def prepare(self, cfg: CfgNode) -> None:
        """Create the folder, clean up after killed writers, and write config and environment."""
        make_folder(self.checkpoints, "set OUTPUT_DIR to a writable folder")
        for folder in (self.path, self.checkpoints):
            remove_partial_files(folder)
        write_text(self.config, cfg.dump())
        environments = []
        # Missing at the first start; corrupt if the file was not written by this class
        with contextlib.suppress(FileNotFoundError, ValueError):
            environments = json.loads(self.environment.read_text())
        if not isinstance(environments, list):
            environments = []
        write_json(self.environment, [*environments, describe_environment()])


def select_weights(cfg: CfgNode, keep: Collection[str] = ()) -> str:
    """Return the weights to evaluate or export with a config; "" if there are none.

    They are the result of the run in OUTPUT_DIR, if that started from the config's MODEL.WEIGHTS, else MODEL.WEIGHTS.
    If `keep`, the keys that are given on the command line, has MODEL.WEIGHTS, it comes first.

    Raises:
        UsageError: the run in OUTPUT_DIR has not saved any weights yet.
    """
    weights = cfg.MODEL.WEIGHTS
    run_folder = RunFolder(cfg.OUTPUT_DIR)
    if weights and ("MODEL.WEIGHTS" in keep or run_folder.started_from() != weights):
        return weights
    trained = run_folder.trained_weights()
    if weights and not trained:
        raise UsageError(
            f"{run_folder.path}: the run that started from {weights} has no weights yet; set MODEL.WEIGHTS on the "
            "command line to use those"
        )
    if trained and weights:
        logger.info("using %s, the result of the run that started from %s", trained, weights)
    return str(trained or weights)


@contextlib.contextmanager
def run_lock(run_folder: RunFolder, group: ProcessGroup, resume: bool) -> Iterator[Callable[[], None]]:
    """Reserve an output folder for one training run; rank 0 holds the lock.

    A folder that already contains a run is locked on entry, so that the checkpoint to resume from does not change while
    it is read. A new folder is created and locked by the function that the context manager yields. The run calls it
    once its config, data and weights have been validated, so a mistyped config leaves no folder behind.
    """
    lock = FolderLock(run_folder.path, "training run", "set OUTPUT_DIR to a different folder")
    path = run_folder.path
    had_run = group.broadcast(run_folder.has_run())
    if had_run and not resume:
        raise UsageError(
            f"{path}: already contains a run; resume it (--resume), or set OUTPUT_DIR to a different folder"
        )

    def acquire() -> None:
        if had_run:
            return
        _acquire_together(lock, group)
        # Between entry and here the folder was not locked
        if group.broadcast(run_folder.has_run()):
            advice = "set OUTPUT_DIR to a different folder, or resume that run (--resume)"
            raise UsageError(f"{path}: another run has just written to this folder; {advice}")

    try:
        if had_run:
            _acquire_together(lock, group)
        yield acquire
    finally:
        lock.release()


def _acquire_together(lock: FolderLock, group: ProcessGroup) -> None:
    """Acquire the lock in rank 0; all processes raise its error together."""
    error = None
    if group.is_rank_0:
        try:
            lock.acquire()
        except (UsageError, OutputError) as lock_error:
            error = lock_error
    if error := group.broadcast(error):
        raise error
