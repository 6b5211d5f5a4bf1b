"""Choose the device that a network runs on, by the name that a user gives, and copy inputs to it."""

from __future__ import annotations

import torch
from torch import Tensor

from fbnetv3.errors import UsageError

CPU = "cpu"
AUTO_DEVICE = "auto"
"""In place of a device's name: a GPU if there is one, otherwise the CPU."""


def find_device(name: str | torch.device, option: str = "device") -> torch.device:
    """Return the device called `name`, such as "cpu", "cuda" or "cuda:1", or `AUTO_DEVICE`.

    Args:
        name: name of the device.
        option: what the user has set to this name, for errors.

    Raises:
        UsageError: this machine has no such device, or torch cannot use it.
    """
    device = parse_device(name, option)
    try:
        # Using a tensor is the only reliable test of a device; "meta" has tensors, but no values to copy back
        torch.empty(0, device=device).to(CPU)
    except (RuntimeError, AssertionError) as error:
        raise _unusable(name, option, error) from None
    return device


def parse_device(name: str | torch.device, option: str = "device") -> torch.device:
    """Return the device called `name`, whether or not this machine has it. Raise a UsageError if it is no name."""
    try:
        if name == AUTO_DEVICE:
            return torch.device("cuda" if torch.cuda.is_available() else CPU)
        return torch.device(name)
    except RuntimeError as error:
        raise _unusable(name, option, error) from None


def _unusable(name: str | torch.device, option: str, error: Exception) -> UsageError:
    reason = str(error).splitlines()[0]
    others = CPU if name == AUTO_DEVICE else f"{AUTO_DEVICE} or {CPU}"
    return UsageError(f"{option} {str(name)!r} cannot be used here ({reason}): set it to {others}")


def copy_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to a device; a GPU copies it from pinned memory, while the CPU goes on."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
