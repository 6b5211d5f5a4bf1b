"""From a config to a run: the one place that reads the config and puts datasets, network, loop and hooks together."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.arch import ArchDef, get_arch, register_arch_folder
from fbnetv3.data import DamageCounter, Preprocessing, build_dataset, build_loader, train_transform
from fbnetv3.engine.checkpoint import Checkpoints, atomic_write
from fbnetv3.engine.evaluation import evaluate
from fbnetv3.engine.hooks import Checkpointing, Evaluation, Metrics, ProgressBar
from fbnetv3.engine.optimization import OPTIMIZERS, build_schedule
from fbnetv3.engine.trainer import Trainer
from fbnetv3.errors import OutputError, UsageError
from fbnetv3.file_io import PathManager
from fbnetv3.modeling import build_network, load_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run came to: its metrics, and its files ("checkpoint", "metrics", "curve", "log", "tensorboard")."""

    metrics: dict[str, float]
    files: dict[str, Path]


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
    output = Path(cfg.OUTPUT_DIR)
    checkpoints = Checkpoints(output / "checkpoints", cfg.CHECKPOINT.KEEP)
    latest = checkpoints.latest()
    if latest and not resume:
        raise UsageError(f"{output}: holds a run already; add --resume to go on with it, or set another OUTPUT_DIR")

    defn = _arch(cfg)
    train_set = build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, "train")
    val_set = build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, "val")
    if train_set.classes != val_set.classes:
        odd = sorted(set(train_set.classes) ^ set(val_set.classes))
        raise UsageError(f"DATA.ROOT {cfg.DATA.ROOT}: training and validation have other classes: {', '.join(odd[:5])}")
    model = _model(cfg, defn, train_set.classes, device)
    preprocessing = preprocessing_of(cfg, defn)
    damage = DamageCounter(cfg.DATA.MAX_DAMAGED)
    loader = build_loader(
        train_set,
        train_transform(
            preprocessing,
            crop=cfg.INPUT.CROP,
            crop_scale=cfg.INPUT.CROP_SCALE,
            crop_padding=cfg.INPUT.CROP_PADDING,
            flip=cfg.INPUT.FLIP,
        ),
        batch_size=cfg.SOLVER.BATCH_SIZE,
        training=True,
        workers=cfg.DATA.WORKERS,
        seed=cfg.SEED,
        pin_memory=device.type == "cuda",
    )
    val_loader = _val_loader(cfg, val_set, preprocessing, device)
    optimizer = OPTIMIZERS.get(cfg.SOLVER.OPTIMIZER)(
        model,
        cfg.SOLVER.LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
    )
    schedule = build_schedule(
        cfg.SOLVER.SCHEDULE,
        cfg.SOLVER.EPOCHS,
        decay=cfg.SOLVER.DECAY,
        warmup_epochs=cfg.SOLVER.WARMUP_EPOCHS,
        warmup_factor=cfg.SOLVER.WARMUP_FACTOR,
    )

    files = {
        "checkpoint": output / "model_final.pth",
        "metrics": output / "metrics.jsonl",
        "curve": output / "curve.png",
        "log": output / "log.txt",
        "tensorboard": output / "tensorboard",
    }
    about = {"arch": defn.name, "num_classes": model.num_classes, "in_chans": cfg.MODEL.IN_CHANS}
    trainer = Trainer(
        model,
        optimizer,
        schedule,
        loader,
        lr=cfg.SOLVER.LR,
        epochs=cfg.SOLVER.EPOCHS,
        device=device,
        channels_last=cfg.MODEL.CHANNELS_LAST,
        label_smoothing=cfg.SOLVER.LABEL_SMOOTHING,
        damage=damage,
        hooks=[
            Evaluation(
                lambda: evaluate(model, val_loader, device, channels_last=cfg.MODEL.CHANNELS_LAST, damage=damage),
                cfg.EVAL.PERIOD,
            ),
            Metrics(output, cfg.LOG.PERIOD),
            ProgressBar(),
            Checkpointing(checkpoints, cfg.CHECKPOINT.PERIOD, files["checkpoint"], about),
        ],
    )
    if latest:
        trainer.load_state_dict(checkpoints.load(latest))
    _prepare_output(output, cfg)
    log_file = logging.FileHandler(files["log"])
    log_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.getLogger("fbnetv3").addHandler(log_file)
    try:
        _announce(cfg, defn, model, len(train_set), len(val_set), device)
        if latest:
            logger.info("going on from %s, after %d epochs", latest, trainer.progress.epoch)
        if cfg.MODEL.COMPILE:
            model.compile()
        return RunResult(trainer.run(), files)
    finally:
        logging.getLogger("fbnetv3").removeHandler(log_file)
        log_file.close()


def run_evaluation(cfg: CfgNode) -> dict[str, float]:
    """Evaluate `MODEL.WEIGHTS`, or without it what `OUTPUT_DIR` holds, on the validation images. Writes nothing.

    Raises:
        UserError: a wrong config, missing data or weights.
    """
    output = Path(cfg.OUTPUT_DIR)
    final = output / "model_final.pth"
    weights = cfg.MODEL.WEIGHTS or (final if final.exists() else Checkpoints(output / "checkpoints").latest())
    if not weights:
        raise UsageError(
            f"no weights to evaluate: set MODEL.WEIGHTS, or OUTPUT_DIR to a run's folder ({output} has none)"
        )
    device = _device(cfg.DEVICE)
    defn = _arch(cfg)
    val_set = build_dataset(cfg.DATA.NAME, cfg.DATA.ROOT, "val")
    model = _model(cfg, defn, val_set.classes, device, weights=str(weights), need_head=True)
    logger.info("evaluating %s of %s on %d images", defn.name, weights, len(val_set))
    loader = _val_loader(cfg, val_set, preprocessing_of(cfg, defn), device)
    damage = DamageCounter(cfg.DATA.MAX_DAMAGED)
    return evaluate(model, loader, device, channels_last=cfg.MODEL.CHANNELS_LAST, damage=damage)


def preprocessing_of(cfg: CfgNode, defn: ArchDef) -> Preprocessing:
    """Resolution and normalisation that a config asks for, the architecture's own where it asks for none."""
    resolution = cfg.INPUT.RESOLUTION or defn.resolution
    resize = cfg.INPUT.RESIZE or round(resolution * defn.resize / defn.resolution)
    if resize < resolution:
        raise UsageError(f"INPUT.RESIZE {resize} is smaller than the crop of {resolution} pixels")
    return Preprocessing(resolution, resize, tuple(cfg.INPUT.MEAN), tuple(cfg.INPUT.STD), cfg.INPUT.INTERPOLATION)


def _arch(cfg: CfgNode) -> ArchDef:
    for folder in cfg.MODEL.ARCH_DIRS:
        register_arch_folder(folder)
    return get_arch(cfg.MODEL.ARCH)


def _model(
    cfg: CfgNode, defn: ArchDef, classes: list[str], device: torch.device, weights: str = "", need_head: bool = False
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
    if weights := weights or cfg.MODEL.WEIGHTS:
        source = PathManager.get_local_path(weights) if weights.startswith("zoo://") else weights
        loaded = load_weights(model, source)
        if need_head and not loaded.head:
            raise UsageError(f"{weights}: has another number of classes than the {num_classes} of {cfg.DATA.NAME}")
    return model.to(device, memory_format=torch.channels_last if cfg.MODEL.CHANNELS_LAST else torch.contiguous_format)


def _val_loader(cfg: CfgNode, dataset, preprocessing: Preprocessing, device: torch.device):
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


def _prepare_output(output: Path, cfg: CfgNode) -> None:
    try:
        (output / "checkpoints").mkdir(parents=True, exist_ok=True)
        with atomic_write(output / "config.yaml") as f:
            f.write(cfg.dump().encode())
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{output}: cannot be written ({error.strerror}): set OUTPUT_DIR to a folder that can"
        ) from None


def _announce(cfg: CfgNode, defn: ArchDef, model: nn.Module, train: int, val: int, device: torch.device) -> None:
    params = sum(p.numel() for p in model.parameters())
    logger.info(
        "%s (%.2f M parameters, input %d px) on %s: %d training, %d validation images, %d epochs, %s with %d threads",
        defn.name,
        params / 1e6,
        preprocessing_of(cfg, defn).resolution,
        cfg.DATA.NAME,
        train,
        val,
        cfg.SOLVER.EPOCHS,
        device,
        torch.get_num_threads() if device.type == "cpu" else os.cpu_count() or 1,
    )
