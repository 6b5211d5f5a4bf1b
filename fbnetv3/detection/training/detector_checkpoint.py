"""Detectors' checkpoints: ours and the released ones, averaged weights first, and errors that say what to do."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from fbnetv3.detection.models.released_names import our_name
from fbnetv3.errors import WeightsError
from fbnetv3.modeling.weights import load_checkpoint_file, state_dict_of
from fbnetv3.training.run_state.checkpoints import save
from fbnetv3.utils.downloads import ZOO_PREFIX, is_url, local_path
from fbnetv3.utils.files import atomic_write

logger = logging.getLogger(__name__)

EMA_KEY = "ema_state"
# The last layers of detectron2's heads, whose shapes hang on the number of classes.
_PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_head.predictor.", "head.cls_score.")
_BOX_SCORES = "roi_heads.box_predictor.cls_score.weight"
# What the keys of a classifier's checkpoint begin with: the authors', timm's, torchvision's, ours.
_CLASSIFIERS = ("backbone.stages.xif", "conv_stem.", "blocks.", "features.", "stages.")
# Checkpoints that follow each other, by iteration.
_NUMBERED = re.compile(r"(?P<stem>\w*_)(?P<number>\d+)\.pth")
_PARTS = {"backbone.": "trunk", "proposal_generator.rpn_head.": "rpn_head", "roi_heads.box_head.": "box_head"}


class FBNetV3Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer, which besides prefers averaged weights and refuses what would not be a detector.

    Released detectors load with detectron2's own checkpointer too, though not their averaged weights. This one takes
    `ema_state`, where a file has it, unless a training goes on from the file: then the raw weights are needed. Files
    are read as tensors and plain values, never as code. URLs and `zoo://` entries are downloaded into our cache.

    It writes files whole or not at all, and goes on from the newest that is whole.

    Args:
        model, save_dir, checkpointables: as for detectron2's.
        new_classes: leave the last layers as they are where the file has another number of classes.
        keep: of checkpoints with a number in their names, how many of the newest to keep; 0 for all.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        new_classes: bool = False,
        keep: int = 0,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.new_classes, self.keep = new_classes, keep
        self._prefer_ema, self._source = False, ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write model, checkpointables and more into `save_dir`, in the main process; then remove old checkpoints.

        What claims to be of a later iteration goes too: training went on from before it, since it is damaged.

        Raises:
            OutputError: it cannot be written; earlier checkpoints stay.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        parts = {key: part.state_dict() for key, part in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        save(path, {"model": self.model.state_dict(), **parts, **kwargs})
        self.tag_last_checkpoint(path.name)
        named = _NUMBERED.fullmatch(path.name)
        if named and self.keep:
            found = _numbered(Path(self.save_dir), named["stem"])
            upto = [other for number, other in found if number <= int(named["number"])]
            later = [other for number, other in found if number > int(named["number"])]
            for old in later + upto[: -self.keep]:
                old.unlink(missing_ok=True)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note the name of the newest checkpoint, as detectron2 does."""
        with atomic_write(Path(self.save_dir) / "last_checkpoint") as f:
            f.write(last_filename_basename.encode())

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint in `save_dir` that is whole; see `newest_checkpoint`."""
        return newest_checkpoint(Path(self.save_dir))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what `newest` has found: weights as they were in training, and all checkpointables.

        Raises:
            WeightsError: it is of another network, or lacks something.
        """
        try:
            self.model.load_state_dict(state["model"])
            for key, part in self.checkpointables.items():
                part.load_state_dict(state[key])
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise WeightsError(f"{self.save_dir}: its checkpoint is of another network or run: {reason}") from None

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As detectron2's, though from the newest checkpoint that is whole."""
        found = self.newest() if resume else None
        return self.load(str(found[0])) if found else self.load(path, checkpointables=[])

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a file, a URL or a `zoo://` entry.

        Args:
            path: where the checkpoint is; "" loads nothing.
            checkpointables: what to load besides the weights; default: everything that was given. With nothing
                besides the weights, averaged weights are preferred.

        Returns:
            What else the checkpoint holds.

        Raises:
            WeightsError: missing, damaged, of a classifier, of another architecture or another number of classes.
        """
        self._prefer_ema = not (self.checkpointables if checkpointables is None else checkpointables)
        self._source = path
        if is_url(path) or path.startswith(ZOO_PREFIX):
            path = str(local_path(path))
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise WeightsError(f"{path}: no such file")
        return super().load(path, checkpointables)

    def _torch_load(self, f: str) -> object:
        return _read(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        state = _strip_module(checkpoint["model"])
        if self._prefer_ema and checkpoint.get(EMA_KEY):
            state = {**state, **_strip_module(checkpoint[EMA_KEY])}
        state = {_our_key(key): value for key, value in state.items()}
        if isinstance(getattr(self.model, "backbone", None), nn.Module):
            state = self._checked(state)
        checkpoint["model"] = state
        return super()._load_model(checkpoint)

    def _checked(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state, without last layers for other classes where these may differ."""
        model = self.model.state_dict()
        fitting = [key for key in state if key in model]
        if not any(key in model and not key.startswith("backbone.") for key in state):
            raise WeightsError(self._no_detector(state))
        others = {key for key in fitting if _shape(state[key]) != _shape(model[key])}
        predictors = {key for key in others if key.startswith(_PREDICTORS)}
        if others - predictors:
            shown = ", ".join(
                f"{key} {_shape(state[key])} instead of {_shape(model[key])}" for key in sorted(others - predictors)[:3]
            )
            raise WeightsError(
                f"{self._source}: is of another architecture: {shown}; set MODEL.FBNETV3.ARCH and the MODEL.FPN and "
                "MODEL.ANCHOR_GENERATOR keys to those of the checkpoint's training"
            )
        self._check_parts(state, model)
        if predictors and not self.new_classes:
            raise WeightsError(self._other_classes(state, model))
        if predictors:
            logger.warning("%s: is for another number of classes: the last layers start afresh", self._source)
        return {key: value for key, value in state.items() if key not in predictors}

    def _check_parts(self, state: Mapping[str, Any], model: Mapping[str, Tensor]) -> None:
        """Refuse a backbone, RPN head or box head that the checkpoint has in part, or with more than there is."""
        for prefix in _PARTS:
            ours, theirs = (
                {key for key in keys if key.startswith(prefix) and not key.endswith("num_batches_tracked")}
                for keys in (model, state)
            )
            if ours != theirs and (theirs or prefix == "backbone."):
                missing, more = sorted(ours - theirs), sorted(theirs - ours)
                parts = [f"lacks {len(missing)} tensors such as {missing[0]}"] if missing else []
                parts += [f"has {len(more)} more such as {more[0]}"] if more else []
                raise WeightsError(
                    f"{self._source}: is of another detector: {', and '.join(parts)}; set MODEL.BACKBONE.NAME and the "
                    "MODEL.FBNETV3 keys to those of the checkpoint's training"
                )

    def _no_detector(self, state: Mapping[str, Any]) -> str:
        first = ", ".join(list(state)[:3])
        if any(key.startswith((*_CLASSIFIERS, "backbone.stages.", "head.")) for key in state):
            return (
                f"{self._source}: is a classifier's checkpoint, not a detector's: name it in MODEL.FBNETV3.WEIGHTS, "
                "which starts trunk and box head from it, and leave MODEL.WEIGHTS empty"
            )
        return f"{self._source}: holds nothing that this detector has; it begins with {first}"

    def _other_classes(self, state: Mapping[str, Any], model: Mapping[str, Tensor]) -> str:
        keep = "or keep the last layers as they are with new_classes=True (load_detector, FBNetV3Checkpointer)"
        if _BOX_SCORES in state and _BOX_SCORES in model:
            theirs, ours = len(state[_BOX_SCORES]) - 1, len(model[_BOX_SCORES]) - 1
            return (
                f"{self._source}: is for {theirs} classes, the network for {ours}: set MODEL.ROI_HEADS.NUM_CLASSES "
                f"{theirs}, {keep}"
            )
        return f"{self._source}: is for another number of classes: set MODEL.RETINANET.NUM_CLASSES to it, {keep}"


def newest_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint in a folder that is whole, and what it holds; damaged ones are warned of.

    Raises:
        WeightsError: there are checkpoints, and all are damaged.
    """
    paths = [path for _, path in reversed(_numbered(folder))]
    with contextlib.suppress(OSError):  # one without a number, such as detectron2's model_final.pth
        tagged = folder / (folder / "last_checkpoint").read_text().strip()
        if not _NUMBERED.fullmatch(tagged.name):
            paths.insert(0, tagged)
    damaged = None
    for path in paths:
        try:
            return path, _read(str(path))
        except WeightsError as error:
            logger.warning("%s; trying the one before", error)
            damaged = error
    if damaged is not None:
        raise WeightsError(f"{folder}: no checkpoint is whole; the oldest: {damaged}")
    return None


def load_detector(model: nn.Module, source: str | os.PathLike, *, new_classes: bool = False) -> nn.Module:
    """Load a detector's weights, averaged ones where the checkpoint has them.

    Args:
        model: from detectron2's `build_model`.
        source: a file, a URL or a `zoo://` entry: saved by detectron2, by this project, or released by the authors.
        new_classes: leave the last layers as they are where the checkpoint has another number of classes.

    Returns:
        The model.

    Raises:
        WeightsError: as for `FBNetV3Checkpointer.load`.
    """
    FBNetV3Checkpointer(model, new_classes=new_classes).load(os.fspath(source), checkpointables=[])
    return model


def _numbered(folder: Path, stem: str = "") -> list[tuple[int, Path]]:
    """Numbers and paths of the checkpoints whose names have a number, oldest first; with all stems, or with one."""
    named = [(path, _NUMBERED.fullmatch(path.name)) for path in (folder.glob("*.pth") if folder.is_dir() else ())]
    return sorted((int(m["number"]), path) for path, m in named if m and (not stem or m["stem"] == stem))


def _read(file: str) -> dict[str, Any]:
    loaded = load_checkpoint_file(file)
    if isinstance(loaded, dict) and "model" in loaded:
        return {**loaded, "model": state_dict_of(loaded["model"], file)}
    return {"model": state_dict_of(loaded, file)}


def _strip_module(state: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(state)
    while found and all(key.startswith("module.") for key in found):
        found = {key.removeprefix("module."): value for key, value in found.items()}
    return found


def _our_key(key: str) -> str:
    for prefix, part in _PARTS.items():
        if key.startswith(prefix):
            inner = "bottom_up." if key.startswith(f"{prefix}bottom_up.") else ""
            return prefix + inner + our_name(part, key.removeprefix(prefix + inner))
    return key


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape)
