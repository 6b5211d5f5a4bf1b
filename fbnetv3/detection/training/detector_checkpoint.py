"""detectron2's checkpointer for this project's detectors and the released ones."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog
from torch import nn

from fbnetv3.detection.models.class_transfer import is_class_layer, transfer_class_rows
from fbnetv3.detection.models.released_names import rename_released_tensors
from fbnetv3.errors import WeightsError, is_out_of_memory
from fbnetv3.modeling.checkpoint_contents import (
    check_finite,
    common_wrapper_prefix,
    extract_averaged,
    extract_state_dict,
)
from fbnetv3.modeling.safe_loading import load_checkpoint_file
from fbnetv3.training.run_state.checkpoints import (
    State,
    has_numbered_name,
    load_newest,
    numbered_checkpoints,
    prune_checkpoints,
    save_checkpoint,
)
from fbnetv3.training.run_state.detector_record import detector_record_from_metadata
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.downloads import ZOO_PREFIX, is_url, local_path
from fbnetv3.utils.files import write_text
from fbnetv3.utils.text import first_few, one_line

logger = logging.getLogger(__name__)

EMA_KEY = "ema_state"  # the averaged weights, in checkpoints to resume from and in the released ones
RAW_KEY = "raw_model"  # the raw weights, in the final weights, whose "model" is the average
_LAST_CHECKPOINT = "last_checkpoint"  # detectron2's file with the name of the newest checkpoint

_BOX_SCORES = "roi_heads.box_predictor.cls_score.weight"
# Prefixes in classifiers' checkpoints: released, timm's, torchvision's, this project's
_CLASSIFIER_PREFIXES = ("backbone.stages.", "conv_stem.", "blocks.", "features.", "stages.", "head.")
_BACKBONE = re.compile(r"(?P<prefix>(?:[^.]+\.)*?)backbone\.")
_PARTS = ("backbone.", "proposal_generator.rpn_head.", "roi_heads.box_head.")


class FBNetV3Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer that prefers averaged weights and refuses checkpoints that do not fit the detector.

    detectron2's own checkpointer also loads released detectors, but not their averaged weights. This one loads the
    averaged weights unless a run resumes from the file, which needs the raw weights. Files are read as tensors and
    plain values, never as code; URLs and `zoo://` entries are downloaded to the cache. Files are written atomically,
    and a run resumes from the newest complete one.

    Args:
        model: the detector.
        save_dir: folder of the checkpoints.
        new_classes: initialize the last layers randomly if the file has a different number of classes.
        classes: names of the model's classes: with `new_classes`, rows of the last layers whose class the file has by
            name are kept, if it records its classes.
        keep: number of numbered checkpoints to keep; 0 for all.
        checkpointables: additional objects with a `state_dict`, keyed by their name in the file.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        new_classes: bool = False,
        classes: Sequence[str] = (),
        keep: int = 0,
        **checkpointables: Any,
    ) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.new_classes = new_classes
        self.classes = list(classes)
        self.keep = keep
        self._prefer_ema = False
        self._source = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write model, checkpointables and `kwargs` to `save_dir` on rank 0, then prune older checkpoints."""
        if not self.save_dir or not self.save_to_disk:
            return
        states = {key: value.state_dict() for key, value in self.checkpointables.items()}
        # Written atomically, unlike by detectron2
        path = Path(self.save_dir) / f"{name}.pth"
        save_checkpoint(path, {"model": self.model.state_dict(), **states, **kwargs})
        write_text(path.with_name(_LAST_CHECKPOINT), path.name)
        if self.keep:
            prune_checkpoints(path, self.keep)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the raw weights and all checkpointables from the state that `newest_checkpoint` returns."""
        try:
            self.model.load_state_dict(state["model"])
            for key, value in self.checkpointables.items():
                value.load_state_dict(state[key])
        except (KeyError, RuntimeError, ValueError) as error:
            if is_out_of_memory(error):
                raise
            raise WeightsError(
                f"{self.save_dir}: cannot resume: the checkpoint comes from a different network or run "
                f"({one_line(error)}); choose a different OUTPUT_DIR"
            ) from None

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the newest complete checkpoint in `save_dir` with all checkpointables, else the weights in `path`.

        detectron2's trainers call this; `train_detector` uses `newest_checkpoint` and `restore`.
        """
        newest = newest_checkpoint(Path(self.save_dir)) if resume else None
        return self.load(str(newest[0])) if newest else self.load(path, checkpointables=[])

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a file, a run's folder, a URL or a `zoo://` entry, and return its other contents; "" loads nothing.

        `checkpointables` are keys to load in addition to the weights; default: all. If there are none, averaged weights
        are preferred.

        Raises:
            WeightsError: the file is missing, corrupt, or does not fit the detector.
        """
        # Without optimizer state, no run resumes from the file: its averaged weights are better
        self._prefer_ema = not (self.checkpointables if checkpointables is None else checkpointables)
        self._source = path
        if is_url(path) or path.startswith(ZOO_PREFIX):
            path = str(local_path(path))
        if path and os.path.isdir(path):
            path = _weights_of_run(path)
        # Other schemes, such as detectron2://, are left to detectron2
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise WeightsError(f"{path}: no such file")
        return super().load(path, checkpointables)

    def _torch_load(self, f: str) -> object:
        return _read_checkpoint(Path(f))

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        state = checkpoint["model"]
        # The average may lack BatchNorm statistics: the raw ones complete it
        if self._prefer_ema:
            state = {**state, **extract_averaged(checkpoint, self._source, _detector_prefixes)}
        state = dict(state)
        check_finite(state, self._source)
        for prefix in (*_PARTS, "backbone.bottom_up."):
            rename_released_tensors(state, prefix)
        trained_classes = self._recorded_classes(checkpoint)
        if self.new_classes and self.classes and trained_classes and trained_classes != self.classes:
            state = transfer_class_rows(state, self.model.state_dict(), trained_classes, self.classes)
        if isinstance(getattr(self.model, "backbone", None), nn.Module):
            state = self._select_fitting(state)
        checkpoint["model"] = state
        return super()._load_model(checkpoint)

    def _recorded_classes(self, checkpoint: Mapping[str, Any]) -> list[str]:
        """Return the class names of the file's detector; empty if they are not known."""
        if self._source.startswith(ZOO_PREFIX):  # released detectors are trained on COCO
            return list(MetadataCatalog.get("coco_2017_val").thing_classes)
        record = detector_record_from_metadata(checkpoint, self._source)
        return list(record.classes) if record else []

    def _select_fitting(self, state: State) -> State:
        """Return a detector's state dict without the class layers to be initialized randomly; refuse any other."""
        model = self.model.state_dict()
        # Shapes may differ in the class layers only
        mismatched = {key for key in state if key in model and state[key].shape != model[key].shape}
        class_layers = {key for key in mismatched if is_class_layer(key)}
        problem = _find_mismatch(state, model, sorted(mismatched - class_layers))
        if class_layers and not self.new_classes:
            problem = problem or _describe_classes(state, model)
        if problem:
            raise WeightsError(f"{self._source}: {problem}")
        if class_layers:
            logger.warning(
                "%s: has a different number of classes; the last layers are randomly initialized",
                self._source,
            )
        return {key: value for key, value in state.items() if key not in class_layers}


def _find_mismatch(state: State, model: State, mismatched: Sequence[str]) -> str:
    """Return why a checkpoint does not fit a model, or ""; `mismatched` tensors have the wrong shape."""
    if not any(key in model and not key.startswith("backbone.") for key in state):
        if any(key.startswith(_CLASSIFIER_PREFIXES) for key in state):
            return (
                "is a classifier's checkpoint, not a detector's; to initialize the backbone and box head from it, "
                "set MODEL.FBNETV3.WEIGHTS and leave MODEL.WEIGHTS empty"
            )
        return f"has no tensors of this detector; its first tensors are {first_few(list(state))}"
    if mismatched:
        shapes = [
            f"{key} {tuple(state[key].shape)} instead of {tuple(model[key].shape)}" for key in mismatched
        ]
        return (
            f"was trained with a different architecture: {first_few(shapes)}; "
            "set MODEL.FBNETV3.ARCH and the MODEL.FPN and MODEL.ANCHOR_GENERATOR keys to the values it was trained with"
        )
    # Parts must be complete or absent
    for prefix in _PARTS:
        expected = _tensor_names(model, prefix)
        names = _tensor_names(state, prefix)
        # Other kinds of detectors lack the heads, but all have a backbone
        if expected == names or not (names or prefix == "backbone."):
            continue
        difference = ""
        if missing := expected - names:
            difference = f"lacks {len(missing)} tensors such as {min(missing)}"
        elif unexpected := names - expected:
            difference = f"has {len(unexpected)} unexpected tensors such as {min(unexpected)}"
        return (
            f"belongs to a different detector: it {difference}; "
            "set MODEL.BACKBONE.NAME and the MODEL.FBNETV3 keys to those it was trained with"
        )
    return ""


def _describe_classes(state: State, model: State) -> str:
    advice = "or, in Python, load it with new_classes=True, which initializes the last layers randomly"
    if _BOX_SCORES not in state or _BOX_SCORES not in model:
        return (
            "has a different number of classes than MODEL.RETINANET.NUM_CLASSES: set it to the number that the "
            f"detector was trained with, {advice}"
        )
    # The last class is the background
    count = len(state[_BOX_SCORES]) - 1
    own_count = len(model[_BOX_SCORES]) - 1
    return (
        f"has {count} classes, the network {own_count}: set MODEL.ROI_HEADS.NUM_CLASSES {count}, {advice}"
    )


def newest_checkpoint(folder: Path) -> tuple[Path, State] | None:
    """Return the path and state of the newest complete checkpoint in a folder; None if there are no checkpoints."""
    paths = numbered_checkpoints(folder)[::-1]
    with contextlib.suppress(OSError):
        tagged = folder / (folder / _LAST_CHECKPOINT).read_text().strip()
        if not has_numbered_name(tagged):  # such as detectron2's model_final.pth
            paths.insert(0, tagged)
    return load_newest(folder, paths, _read_finite_checkpoint)


def load_detector(
    model: nn.Module,
    source: str | os.PathLike,
    *,
    new_classes: bool = False,
    classes: Sequence[str] = (),
) -> nn.Module:
    """Load weights into a detector, the averaged ones if the checkpoint has them, and return the detector.

    Args:
        model: from detectron2's `build_model`.
        source: a file, a run's folder, a URL or a `zoo://` entry; written by detectron2 or this project, or released.
        new_classes: initialize the last layers randomly if the checkpoint has a different number of classes.
        classes: names of the model's classes; with `new_classes`, classes that the checkpoint records by these names
            are kept.
    """
    checkpointer = FBNetV3Checkpointer(model, new_classes=new_classes, classes=classes)
    checkpointer.load(os.fspath(source), checkpointables=[])
    return model


def _weights_of_run(folder: str) -> str:
    """Return the file with the final weights in a run's folder, or with the newest ones."""
    weights = RunFolder(folder).trained_weights()
    if weights is None:
        raise WeightsError(f"{folder}: is a folder without the weights of a run")
    return str(weights)


def _read_checkpoint(path: Path) -> State:
    contents = load_checkpoint_file(path)
    if not isinstance(contents, dict) or "model" not in contents:
        contents = {"model": contents}
    return {**contents, "model": extract_state_dict(contents["model"], str(path), _detector_prefixes)}


def _read_finite_checkpoint(path: Path) -> State:
    checkpoint = _read_checkpoint(path)
    check_finite(checkpoint["model"], str(path))
    return checkpoint


def _detector_prefixes(names: Iterable[str]) -> set[str]:
    """Return the prefixes of detectors among the names of a state dict; a detector has a backbone."""
    matches = [match for match in map(_BACKBONE.match, names) if match]
    return {match["prefix"] for match in matches} or common_wrapper_prefix(names)


def _tensor_names(state: State, prefix: str) -> set[str]:
    """Return the names with a prefix, without BatchNorm's counters, which frozen norms lack."""
    return {key for key in state if key.startswith(prefix) and not key.endswith("num_batches_tracked")}
