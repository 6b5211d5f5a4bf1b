"""Errors of a device that runs out of memory: how much there was, and what to lower."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator

import torch

from fbnetv3.errors import DeviceMemoryError, is_out_of_memory


@contextlib.contextmanager
def explain_out_of_memory(device: torch.device, advice: str) -> Iterator[None]:
    """Raise a DeviceMemoryError with the device's memory and the advice instead of the errors of torch's allocators.

    Blocks may be nested: the innermost one decides. It can also decorate a function.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # The traceback keeps the tensors of the step alive, and with them the memory that a retry needs
        traceback.clear_frames(error.__traceback__)
        raise DeviceMemoryError(f"out of memory on {device}{_describe_memory(device)}: {advice}") from None


def reset_peak_memory(device: torch.device) -> None:
    """Measure the peak that errors state from here on; an earlier run of this process may have used more."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _describe_memory(device: torch.device) -> str:
    """Describe peak and free memory in GiB; empty for devices other than GPUs."""
    if device.type != "cuda":
        return ""
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    return f" (the peak was {peak:.2f} GiB; {free:.2f} of {total:.2f} GiB are free)"
