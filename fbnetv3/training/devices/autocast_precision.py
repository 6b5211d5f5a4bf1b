"""The arithmetic of a run, SOLVER.PRECISION, on the device that it has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fvcore.common.config import CfgNode

AUTO = "auto"
PRECISIONS = ("float32", "bfloat16", "float16")
# The first GPUs with units for bfloat16 (Ampere); older ones emulate it in float32
_BFLOAT16_CAPABILITY = (8, 0)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return a precision by name; "auto" is bfloat16 on GPUs that have it, and float32 on all other devices."""
    if precision != AUTO:
        return precision
    has_bfloat16 = (
        device.type == "cuda" and torch.cuda.get_device_capability(device) >= _BFLOAT16_CAPABILITY
    )
    return "bfloat16" if has_bfloat16 else "float32"


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of SOLVER.PRECISION on a device; torch.float32 is without autocast."""
    return getattr(torch, resolve_precision(precision, device))


def with_precision(cfg: CfgNode, device: torch.device, trained: Mapping[str, Any]) -> CfgNode:
    """Return a config with the precision that "auto" stands for, so that a run records what it computes with.

    Args:
        cfg: config of the run.
        device: device of the run.
        trained: config, by dotted key, with which the run to resume began, maybe on a different device; its precision
            is kept. Empty for a new run.
    """
    if cfg.SOLVER.PRECISION != AUTO:
        return cfg
    precision = trained.get("SOLVER.PRECISION")
    resolved = cfg.clone()
    resolved.defrost()
    resolved.SOLVER.PRECISION = precision if precision in PRECISIONS else resolve_precision(AUTO, device)
    resolved.freeze()
    return resolved
