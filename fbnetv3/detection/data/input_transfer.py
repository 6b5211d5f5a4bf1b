"""Copy a detector's inputs to its device without waiting for what the device is computing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Instances
from torch import Tensor


def send_inputs(inputs: Sequence[dict[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """Return a detector's inputs with images and annotations on a device; the dicts themselves are not changed.

    detectron2 copies each tensor by itself, and waits each time. These copies are queued behind the computation, if
    images are in pinned memory; annotations are small enough for CUDA to queue them from any memory.
    """
    if device.type == "cpu":
        return list(inputs)
    return [{key: _send(value, device) for key, value in entry.items()} for entry in inputs]


def _send(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Instances):
        sent = {name: _send(field, device) for name, field in value.get_fields().items()}
        return Instances(value.image_size, **sent)
    # Boxes, bitmaps and keypoints, whose own `to` may wait; polygons stay on the CPU
    if isinstance(getattr(value, "tensor", None), Tensor):
        return type(value)(_send(value.tensor, device))
    return value
