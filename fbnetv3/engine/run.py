"""From a config to a run: the one place that reads the config and puts datasets, network, loop and hooks together."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode
from torch import nn
from torch.utils.data import DataLoader

from fbnetv3.arch import ArchDef, cost_of, dump_arch, get_arch, register_arch_folder
from fbnetv3.data import DamageCounter, Preprocessing, build_dataset, build_loader, train_transform
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.engine.checkpoint import Checkpoints, atomic_write
from fbnetv3.engine.evaluation import evaluate
from fbnetv3.engine.hooks import Checkpointing, Evaluation, Metrics, ProgressBar
from fbnetv3.engine.optimization import OPTIMIZERS, build_schedule
from fbnetv3.engine.trainer import Trainer
from fbnetv3.errors import OutputError, UsageError
from fbnetv3.modeling import build_network, load_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFiles:
    """Where the files of a run lie."""

    folder: Path

    @property
    def weights(self) -> Path:
        """The network after the last epoch."""
        return self.folder / "model_final.pth"

    @property
    def checkpoints(self) -> Path:
        """The folder with everything needed to go on."""
        return self.folder / "checkpoints"

    @property
    def config(self) -> Path:
        """The whole config."""
        return self.folder / "config.yaml"

    @property
    def metrics(self) -> Path:
        """A JSON object a line, by step and by evaluation."""
        return self.folder / "metrics.jsonl"

    @property
    def curve(self) -> Path:
        """Loss and accuracy as a picture."""
        return self.folder / "curve.png"

    @property
    def log(self) -> Path:
        """What was printed."""
        return self.folder / "log.txt"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's events."""
        return self.folder / "tensorboard"

    def in_use(self) -> bool:
        """Whether a run has left anything here."""
        return any(path.exists() for path in (self.weights, self.metrics)) or bool(Checkpoints(self.checkpoints).all())


@dataclass(frozen=True)
class RunResult:
    """What a run came to: its last evaluation ("top1", "top5", "loss", "images"), and its files."""

    metrics: dict[str, float]
    files: RunFiles


def run_training(cfg: CfgNode, *, resume: bool = False) -> RunResult:
    """Train and evaluate the classifier that a config describes. Nothing is written before all of it makes sense.

    Args:
        cfg: from `load_config`.
        resume: go on from the newest checkpoint in `OUTPUT_DIR`, if there is one.

    Raises:
        UserError: a wrong config, missing data, an output folder that is in use or cannot be written.
    """
    torch.manual_seed(cfg.SEED)
    device = _device(cfg.DEVICE)
    files = RunFiles(Path(cfg.OUTPUT_DIR).expanduser())
    if files.in_use() and not resume:
        raise UsageError(
            f"{files.folder}: holds a run already; add --resume to go on with it, or set another OUTPUT_DIR"
        )
    defn, preprocessing = _network_input(cfg)
    train_set, val_set = _datasets(cfg)
    model = _model(cfg, defn, train_set.classes, device, cfg.MODEL.WEIGHTS)
    damage = DamageCounter(cfg.DATA.MAX_DAMAGED)
    train_loader = _train_loader(cfg, train_set, preprocessing, device)
    val_loader = _val_loader(cfg, val_set, preprocessing, device)

    checkpoints = Checkpoints(files.checkpoints, cfg.CHECKPOINT.KEEP)
    about = {
        "arch": defn.name,
        "definition": dump_arch(defn),
        "num_classes": model.num_classes,
        "in_chans": cfg.MODEL.IN_CHANS,
        "steps_per_epoch": len(train_loader),
    }
    hooks = [
        Evaluation(
            lambda: evaluate(model, val_loader, device, channels_last=cfg.MODEL.CHANNELS_LAST, damage=damage),
            cfg.EVAL.PERIOD,
        ),
        Metrics(files.metrics, files.curve, files.tensorboard, cfg.LOG.PERIOD),
        ProgressBar(),
        Checkpointing(checkpoints, cfg.CHECKPOINT.PERIOD, files.weights, about),
    ]
    trainer = Trainer(
        model,
        OPTIMIZERS.get(cfg.SOLVER.OPTIMIZER)(
            model,
            cfg.SOLVER.LR,
            momentum=cfg.SOLVER.MOMENTUM,
            nesterov=cfg.SOLVER.NESTEROV,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        ),
        build_schedule(
            cfg.SOLVER.SCHEDULE,
            cfg.SOLVER.EPOCHS,
            decay=cfg.SOLVER.DECAY,
            warmup_epochs=cfg.SOLVER.WARMUP_EPOCHS,
            warmup_factor=cfg.SOLVER.WARMUP_FACTOR,
        ),
        train_loader,
        lr=cfg.SOLVER.LR,
        epochs=cfg.SOLVER.EPOCHS,
        device=device,
        channels_last=cfg.MODEL.CHANNELS_LAST,
        label_smoothing=cfg.SOLVER.LABEL_SMOOTHING,
        damage=damage,
        hooks=hooks,
    )
    latest = checkpoints.latest()
    if latest:
        state = checkpoints.load(latest)
        _check_same_run(state, about, cfg.SOLVER.EPOCHS, latest)
        trainer.load_state_dict(state)
    _prepare_output(files, cfg)
    with _logged_to(files.log):
        logger.info(
            "%s (%.2f M parameters, input %d px) on %s: %d training, %d validation images, %d epochs, %s",
            defn.name,
            sum(p.numel() for p in model.parameters()) / 1e6,
            preprocessing.resolution,
            cfg.DATA.NAME,
            len(train_set),
            len(val_set),
            cfg.SOLVER.EPOCHS,
            f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else device,
        )
        if latest:
            logger.info("going on from %s, after %d epochs", latest, trainer.progress.epoch)
        if trainer.progress.epoch < trainer.epochs:
            files.weights.unlink(missing_ok=True)  # of a shorter run that goes on now
        if cfg.MODEL.COMPILE:
            model.compile()
        metrics = trainer.run()
    return RunResult({key.removeprefix("val_"): value for key, value in metrics.items()}, files)


def run_evaluation(cfg: CfgNode) -> dict[str, float]:
    """Evaluate `MODEL.WEIGHTS`, or without it what `OUTPUT_DIR` holds, on the validation images. Writes nothing.

    Raises:
        UserError: a wrong config, missing data or weights.
    """
    files = RunFiles(Path(cfg.OUTPUT_DIR).expanduser())
    newest = files.weights if files.weights.exists() else Checkpoints(files.checkpoints).latest()
    weights = cfg.MODEL.WEIGHTS or newest
    if not weights:
        raise UsageError(
            f"no weights to evaluate: set MODEL.WEIGHTS, or OUTPUT_DIR to a run's folder ({files.folder} has none)"
        )
    device = _device(cfg.DEVICE)
    defn, preprocessing = _network_input(cfg)
    val_set = build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, "val")
    model = _model(cfg, defn, val_set.classes, device, str(weights), need_head=True)
    logger.info("evaluating %s of %s on %d images", defn.name, weights, len(val_set))
    loader = _val_loader(cfg, val_set, preprocessing, device)
    damage = DamageCounter(cfg.DATA.MAX_DAMAGED)
    return evaluate(model, loader, device, channels_last=cfg.MODEL.CHANNELS_LAST, damage=damage)


def preprocessing_of(cfg: CfgNode, defn: ArchDef) -> Preprocessing:
    """Resolution and normalisation that a config asks for, the architecture's own where it asks for none.

    Raises:
        UsageError: the input is too small for the network, or the resize smaller than the crop.
    """
    resolution = cfg.INPUT.RESOLUTION or defn.resolution
    cost_of(defn, resolution)  # refuses an input that is too small
    resize = cfg.INPUT.RESIZE or round(resolution * defn.resize / defn.resolution)
    if resize < resolution:
        raise UsageError(f"INPUT.RESIZE {resize} is smaller than the crop of {resolution} pixels")
    return Preprocessing(resolution, resize, tuple(cfg.INPUT.MEAN), tuple(cfg.INPUT.STD), cfg.INPUT.INTERPOLATION)


def _network_input(cfg: CfgNode) -> tuple[ArchDef, Preprocessing]:
    for folder in cfg.MODEL.ARCH_DIRS:
        register_arch_folder(Path(folder).expanduser())
    defn = get_arch(cfg.MODEL.ARCH)
    return defn, preprocessing_of(cfg, defn)


def _datasets(cfg: CfgNode) -> tuple[ImageDataset, ImageDataset]:
    train, val = (build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, split) for split in ("train", "val"))
    if train.classes != val.classes:
        odd = sorted(set(train.classes) ^ set(val.classes))
        raise UsageError(f"DATA.ROOT {cfg.DATA.ROOT}: training and validation have other classes: {', '.join(odd[:5])}")
    return train, val


def _model(
    cfg: CfgNode, defn: ArchDef, classes: list[str], device: torch.device, weights: str, need_head: bool = False
) -> nn.Module:
    num_classes = cfg.MODEL.NUM_CLASSES or len(classes)
    if num_classes != len(classes):
        raise UsageError(f"MODEL.NUM_CLASSES {num_classes}: {cfg.DATA.NAME} has {len(classes)} classes; 0 takes them")
    model = build_network(
        defn,
        num_classes=num_classes,
        in_chans=cfg.MODEL.IN_CHANS,
        drop_rate=cfg.MODEL.DROP_RATE,
        drop_path_rate=cfg.MODEL.DROP_PATH_RATE,
    )
    if weights:
        loaded = load_weights(model, weights)
        if need_head and not loaded.head:
            raise UsageError(f"{weights}: has another number of classes than the {num_classes} of {cfg.DATA.NAME}")
    return model.to(device, memory_format=torch.channels_last if cfg.MODEL.CHANNELS_LAST else torch.contiguous_format)


def _train_loader(
    cfg: CfgNode, dataset: ImageDataset, preprocessing: Preprocessing, device: torch.device
) -> DataLoader:
    transform = train_transform(
        preprocessing,
        crop=cfg.INPUT.CROP,
        crop_scale=cfg.INPUT.CROP_SCALE,
        crop_padding=cfg.INPUT.CROP_PADDING,
        flip=cfg.INPUT.FLIP,
    )
    return build_loader(
        dataset,
        transform,
        batch_size=cfg.SOLVER.BATCH_SIZE,
        training=True,
        workers=cfg.DATA.WORKERS,
        seed=cfg.SEED,
        pin_memory=device.type == "cuda",
    )


def _val_loader(cfg: CfgNode, dataset: ImageDataset, preprocessing: Preprocessing, device: torch.device) -> DataLoader:
    return build_loader(
        dataset,
        preprocessing.transform(),
        batch_size=cfg.EVAL.BATCH_SIZE,
        training=False,
        workers=cfg.DATA.WORKERS,
        pin_memory=device.type == "cuda",
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"DEVICE {name!r} cannot be used here ({reason}): set it to auto or cpu") from None
    return device


def _check_same_run(state: dict[str, Any], about: dict[str, Any], epochs: int, checkpoint: Path) -> None:
    """Refuse to go on from a checkpoint of another network, other data or a longer run."""
    saved = state["about"]
    for what, value in about.items():
        if saved.get(what) != value:
            values = "" if what == "definition" else f" {saved.get(what)}, not {value}"
            raise UsageError(
                f"{checkpoint}: is of a run with another {what}{values}: "
                "use the config.yaml of that run, or another OUTPUT_DIR"
            )
    if state["epoch"] > epochs:
        raise UsageError(f"{checkpoint}: is {state['epoch']} epochs old already; SOLVER.EPOCHS {epochs} is less")


def _prepare_output(files: RunFiles, cfg: CfgNode) -> None:
    try:
        files.checkpoints.mkdir(parents=True, exist_ok=True)
        with atomic_write(files.config) as f:
            f.write(cfg.dump().encode())
    except OutputError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"{files.folder}: cannot be written ({reason}): set OUTPUT_DIR to a folder that can"
        ) from None


@contextlib.contextmanager
def _logged_to(file: Path) -> Iterator[None]:
    """Copies what the package logs to a file."""
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log = logging.getLogger("fbnetv3")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
