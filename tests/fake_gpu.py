"""A stand-in for a GPU, for tests on machines without one: its tensors stay on the CPU, and copies are recorded."""

from __future__ import annotations

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


def names_gpu(value):
    """Return whether an argument is a GPU."""
    if isinstance(value, str):
        return value.partition(":")[0] == "cuda"
    return isinstance(value, torch.device) and value.type == "cuda"


class FakeGpu(TorchFunctionMode):
    """While it is entered, torch computes on the CPU what it is asked to compute on a GPU.

    `copies` has the copies of plain tensors, not parameters, in order: "pinned", "to the GPU", "to the GPU, waiting"
    and "to the CPU".
    """

    def __init__(self):
        super().__init__()
        self.copies = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function is torch.device:
            return function(*args, **kwargs)
        if function is torch.Tensor.pin_memory:
            self.copies.append("pinned")
            return args[0]
        if function is torch.Tensor.to and args[0].numel() and not isinstance(args[0], torch.nn.Parameter):
            self._record(*args[1:], **kwargs)
        args = tuple(CPU if names_gpu(arg) else arg for arg in args)
        kwargs = {name: CPU if names_gpu(value) else value for name, value in kwargs.items()}
        return function(*args, **kwargs)

    def _record(self, target=None, *args, non_blocking=False, **kwargs):
        if names_gpu(target):
            self.copies.append("to the GPU" if non_blocking else "to the GPU, waiting")
        elif target in (CPU, "cpu"):
            self.copies.append("to the CPU")
