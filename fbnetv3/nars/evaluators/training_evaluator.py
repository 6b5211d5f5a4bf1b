"""An evaluator that trains each candidate. Imported by name, because `fbnetv3.training` is a higher layer."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from fbnetv3.arch import ArchDef, compute_cost, save_arch
from fbnetv3.config import load_config
from fbnetv3.data.datasets import ImageDataset, reuse_datasets
from fbnetv3.errors import UsageError
from fbnetv3.modeling.cpu.malloc import keep_freed_memory
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.training.builders import Inputs, build_model, resolve_arch
from fbnetv3.training.classifier_training import check_training_config, train
from fbnetv3.training.run_state.metrics import read_learning_curve, selection_accuracy
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.nested_keys import flatten
from fbnetv3.utils.text import describe_error

# Networks and inputs that are small enough for a check in less than a second
_MAX_CHECKED_MACS = 2e9
_MAX_CHECKED_SIDE = 256  # pixels


class TrainingEvaluator:
    """Trains a candidate and returns its top-1 accuracy after each epoch, in percent.

    If the recipe uses EMA, the averaged weights are evaluated.

    The learning rate schedule spans a full training run; a shorter evaluation is its beginning. A trial that was
    interrupted or paused continues from its newest checkpoint, which is deleted when the training is complete.

    Args:
        config: training config of all candidates; it must name the network if only recipes are searched.
        overrides: config keys and values that override the config's.
    """

    continues = True

    def __init__(self, config: str, overrides: Mapping[str, Any] | None = None) -> None:
        self.config = config
        self.overrides = flatten(overrides or {})
        # Fail early on config errors; a one-epoch run cannot have a warmup
        cfg = load_config(
            config, _to_pairs({"SOLVER.WARMUP_EPOCHS": 0, "SOLVER.EPOCHS": 1, **self.overrides})
        )
        self.trial_device: str = cfg.DEVICE
        # TensorBoard's files would be deleted at the end of each trial
        self._trackers = [name for name in cfg.LOG.TRACKERS if name != "tensorboard"]
        self._datasets: dict[tuple[str, str, str], ImageDataset] = {}  # of the trials in this process

    def check(self, candidate: Candidate) -> None:
        """Raise the error that every trial would fail with, such as a missing dataset or conflicting overrides.

        The network of the candidate is built and run once, unless that takes long.
        """
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=()):
            cfg = self._trial_config(candidate, Path(folder))
            _check_network(cfg, check_training_config(cfg))

    def prepare_worker(self) -> None:
        """Change the allocator's settings, which last as long as the process."""
        keep_freed_memory()

    def __call__(self, candidate: Candidate, epochs: int) -> Sequence[float]:
        """Train a candidate to `epochs` epochs and return its top-1 accuracy after each of them, in percent."""
        assert candidate.folder is not None  # executors give every trial a folder
        run = RunFolder(candidate.folder)
        # An interrupted attempt may already have trained to the end
        if len(_read_learning_curve(run)) < epochs:
            cfg = self._trial_config(candidate, run.path)
            with reuse_datasets(self._datasets):
                train(cfg, [lambda result: result["epoch"] < epochs], resume=True)
        for file in (run.weights, run.best):
            file.unlink(missing_ok=True)
        if epochs == candidate.full_epochs:
            self.clean_up([run.path])
        return _read_learning_curve(run)[:epochs]

    def clean_up(self, folders: Iterable[Path]) -> None:
        """Delete the checkpoints in the folders of trials, which are not continued anymore."""
        for folder in folders:
            shutil.rmtree(RunFolder(folder).checkpoints, ignore_errors=True)

    def _trial_config(self, candidate: Candidate, folder: Path) -> CfgNode:
        """Build the training config of a candidate, and write its architecture to `folder`."""
        keys: dict[str, Any] = {
            "OUTPUT_DIR": folder,
            "SEED": candidate.seed,
            "SOLVER.EPOCHS": candidate.full_epochs,
            "EVAL.PERIOD": 1,
            "CHECKPOINT.KEEP": 1,
            # A search has a report of its own on its trials
            "EVAL.REPORT": "off",
            "LOG.RESULTS": False,
        }
        if candidate.recipe is not None:
            keys |= flatten(candidate.recipe.to_config())
        if candidate.arch is not None:
            keys["MODEL.ARCH"] = folder / "arch.yaml"
        conflicts = sorted(set(keys) & set(self.overrides))
        if conflicts:
            raise UsageError(
                f"evaluator_args: overrides: {conflicts[0]} is set by the search for each trial: remove it"
            )
        # Written only once the keys are known to be valid
        if candidate.arch is not None:
            save_arch(candidate.arch, keys["MODEL.ARCH"])
        keys |= {**self.overrides, "LOG.TRACKERS": self._trackers}
        return load_config(self.config, _to_pairs(keys))


def _check_network(cfg: CfgNode, inputs: Inputs) -> None:
    """Run the config's network on two blank images; raise UsageError unless it takes them and returns logits."""
    arch = resolve_arch(cfg, cfg.MODEL.ARCH)
    classes, side = inputs.train.classes, inputs.preprocessing.resolution
    is_large = isinstance(arch, ArchDef) and compute_cost(arch, side).macs > _MAX_CHECKED_MACS
    if side > _MAX_CHECKED_SIDE or is_large:
        return
    images = torch.zeros(2, cfg.MODEL.IN_CHANS, side, side)
    with torch.inference_mode():
        model = build_model(cfg, arch, classes, torch.device("cpu"), weights="")
        try:
            shape = tuple(model.eval()(images).shape)
        except Exception as error:  # blocks may be the user's
            raise UsageError(
                f"{arch.name} does not accept images of {cfg.MODEL.IN_CHANS} channels and {side} pixels "
                f"({describe_error(error)}): correct its blocks, MODEL.IN_CHANS or INPUT.RESOLUTION"
            ) from None
    if shape != (2, len(classes)):
        raise UsageError(
            f"{arch.name} returns an output of shape {shape} for 2 images and {len(classes)} classes: correct its head"
        )


def _read_learning_curve(run: RunFolder) -> list[float]:
    return [selection_accuracy(entry) for entry in read_learning_curve(run.metrics)]


def _to_pairs(keys: Mapping[str, Any]) -> list[str]:
    return [text for key, value in keys.items() for text in (key, str(value))]
