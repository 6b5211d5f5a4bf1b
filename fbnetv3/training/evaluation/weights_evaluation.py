"""Evaluate trained weights with what they record about their network, and report on them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import Any

from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.data import CorruptImageCounter
from fbnetv3.data.classes.class_matching import relabel
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.data.transforms import evaluation_preprocessing
from fbnetv3.errors import DataError, UsageError
from fbnetv3.modeling.qat.quantized_layers import restore_fake_quantization
from fbnetv3.modeling.tta import augmented_for_evaluation
from fbnetv3.training.builders import (
    build_model,
    dataset_from_config,
    is_multi_label,
    loader_from_config,
    preprocessing_from_config,
)
from fbnetv3.training.devices.autocast_precision import autocast_dtype
from fbnetv3.training.devices.run_device import select_device
from fbnetv3.training.evaluation.classifier_evaluation import evaluate_networks
from fbnetv3.training.processes.distributed import process_group
from fbnetv3.training.recorded_networks import use_recorded_network
from fbnetv3.training.reports.evaluation_report import report_folder, write_evaluation_report
from fbnetv3.training.reports.predictions import PredictionRecorder
from fbnetv3.training.run_state.data_fingerprint import data_fingerprint, describe_change
from fbnetv3.training.run_state.network_record import read_network_record
from fbnetv3.training.run_state.run_folder import RunFolder, select_weights
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.logging_setup import quiet_other_ranks

logger = logging.getLogger(__name__)


def evaluate_with_tta(
    models: Sequence[nn.Module], *, views: str, resolution: int, multi_label: bool, **options: Any
) -> list[dict[str, float]]:
    """Evaluate classifiers with test-time augmentation.

    `views` is EVAL.TTA; `options` and results are those of `evaluate_networks`.
    """
    augmented = [augmented_for_evaluation(model, views, resolution, multi_label) for model in models]
    return evaluate_networks(augmented, **options)


def _open_val(cfg: CfgNode, keep: Collection[str]) -> ImageDataset:
    """Open the validation images. If they were found when the network was trained, say where they may be now."""
    try:
        return dataset_from_config(cfg, "val")
    except DataError as error:
        if "DATA.ROOT" in keep or not cfg.DATA.ROOT or expand_path(cfg.DATA.ROOT).exists():
            raise
        raise DataError(
            f"{error}; if the dataset has moved, pass DATA.ROOT PATH (fbnetv3 eval: --data PATH)"
        ) from None


def evaluate_classifier(cfg: CfgNode, keep: Collection[str] = ()) -> dict[str, float]:
    """Evaluate trained weights on the validation images, and report on them.

    The weights are those of the run in `OUTPUT_DIR`, or `MODEL.WEIGHTS`; see `select_weights`. If they record their
    network, its architecture, preprocessing and class names are used; the classes of the images are matched by name.
    Averaged weights (EMA) are preferred if the file has both. EVAL.REPORT decides whether and where the report is
    written; see `report_folder`.

    Args:
        cfg: config from `load_config`.
        keep: keys whose values in `cfg` are used even if the weights record others, such as those of the command line.

    Raises:
        UsageError: there are no weights, or the images have classes that the network lacks.
        WeightsError: the weights cannot be loaded.
        DataError: the dataset cannot be read, or has too many corrupt images.
    """
    with process_group(cfg.DEVICE) as group, quiet_other_ranks(group.rank):
        weights = select_weights(cfg, keep)
        if not weights:
            advice = f"set MODEL.WEIGHTS, or OUTPUT_DIR to the folder of a run ({cfg.OUTPUT_DIR} has none)"
            raise UsageError(f"no weights to evaluate: {advice}")
        device = select_device(cfg.DEVICE, group)
        record = read_network_record(weights)
        cfg, arch = use_recorded_network(cfg, record, weights, keep)
        preprocessing = preprocessing_from_config(cfg, arch)
        val = _open_val(cfg, keep)
        classes = list(record.classes) if record and record.classes else val.classes
        val = relabel(val, classes, "the validation split", "the network")
        if record and record.multi_label != is_multi_label(val):
            kinds = ("one class", "several labels")
            raise UsageError(
                f"{weights}: was trained on images with {kinds[record.multi_label]}, but {cfg.DATA.NAME} has "
                f"{kinds[is_multi_label(val)]} per image"
            )
        model = build_model(cfg, arch, classes, device, weights, require_head=True, record=record)
        if record and record.learned_int8:
            restore_fake_quantization(model, record.learned_int8)
        kind = ", rounding as int8" if record and record.learned_int8 else ""
        logger.info("evaluating %s of %s on %d images%s", arch.name, weights, len(val), kind)
        folder = report_folder(cfg.EVAL.REPORT, RunFolder(cfg.OUTPUT_DIR), weights)
        saved = record.data.get("val") if record else None
        change = describe_change(saved, data_fingerprint(val)) if saved else ""
        if saved and change:
            logger.info(
                "these are other validation images than those of the training run, which had %d (%s)",
                saved["images"],
                change,
            )
            # The run's own report stays
            folder = None if cfg.EVAL.REPORT == "auto" else folder
        recorder = PredictionRecorder() if folder else None
        [results] = evaluate_with_tta(
            [model],
            views=cfg.EVAL.TTA,
            multi_label=is_multi_label(val),
            resolution=preprocessing.resolution,
            batches=loader_from_config(
                cfg, val, evaluation_preprocessing(preprocessing, cfg.EVAL.TTA), device, group
            ),
            device=device,
            precision=autocast_dtype(cfg.SOLVER.PRECISION, device),
            channels_last=cfg.MODEL.CHANNELS_LAST,
            corrupt_images=CorruptImageCounter(cfg.DATA.MAX_CORRUPT),
            progress=group.is_rank_0,
            group=group,
            recorder=recorder,
        )
        if folder and recorder:
            predictions = recorder.gather(group)
            if predictions and group.is_rank_0:
                data = cfg.DATA.ROOT or cfg.DATA.NAME
                write_evaluation_report(folder, predictions, val.classes, val, preprocessing, weights, data)
        elif cfg.EVAL.REPORT == "auto":
            part = "images" if change else "weights"
            advice = "set EVAL.REPORT to a folder for one"
            logger.info("no report: these %s are not those of a run in OUTPUT_DIR; %s", part, advice)
        return results
