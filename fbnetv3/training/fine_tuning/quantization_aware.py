"""Quantization-aware training: fine-tune a network with layers that round as int8 does (Jacob et al., 2018)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fvcore.common.config import CfgNode
from torch import nn

from fbnetv3.errors import UsageError
from fbnetv3.modeling.qat.quantized_layers import fake_quantize, read_ranges, set_ranges, stop_observing
from fbnetv3.training.fine_tuning.network_layers import Modules
from fbnetv3.training.trainer import Hook, Trainer

logger = logging.getLogger(__name__)


def quantize_for_training(cfg: CfgNode, model: nn.Module) -> Modules:
    """Make a network round as int8 does if QAT.ENABLED, and return the modules to keep in evaluation mode.

    Raises:
        UsageError: there are no weights to start from, or the network has norms that cannot be folded.
    """
    if not cfg.QAT.ENABLED:
        return []
    if not cfg.MODEL.WEIGHTS:
        raise UsageError(
            "QAT.ENABLED fine-tunes a trained network: set MODEL.WEIGHTS to the weights of a run without it"
        )
    norms = fake_quantize(model, weight_bits=cfg.QAT.WEIGHT_BITS, float_share=cfg.QAT.FLOAT_SHARE)
    logger.info(
        "quantization-aware training: %d layers round as int8, accuracies are those of int8",
        len(read_ranges(model)),
    )
    return norms


@dataclass
class ObserverHook(Hook):
    """Keeps ranges of feature maps constant after a part of the run, and gives averaged weights the same ranges.

    Ranges are moving averages already.
    """

    observed_part: float  # of the run, in (0, 1]

    def before_train(self, trainer: Trainer) -> None:
        """Stop at once if the run resumes after that part."""
        self._stop_if_due(trainer)

    def after_step(self, trainer: Trainer) -> None:
        """Stop if this step ends that part, and copy the ranges."""
        self._stop_if_due(trainer)
        if trainer.ema is not None:
            set_ranges(trainer.ema.module, read_ranges(trainer.model))

    def _stop_if_due(self, trainer: Trainer) -> None:
        if trainer.progress.step >= self.observed_part * trainer.total_steps:
            stop_observing(trainer.model)
