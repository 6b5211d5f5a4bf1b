"""Memory of the GPU in a worker process: its share, what a trial has left behind, and errors for lack of it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

from fbnetv3.errors import DeviceMemoryError, UserError, is_out_of_memory

_GIB = 2**30
# A process's CUDA context and libraries, outside of torch's allocator: an upper estimate
# A process's CUDA context and libraries, outside of torch's allocator: an upper estimate
_PROCESS_BYTES = 600 * 2**20
_BROKEN = ("CUDA error", "cuDNN error")


def memory_fraction(share: float, total: int) -> float:
    """Return the fraction of a GPU's `total` bytes for the tensors of a process that has a share of the GPU."""
    return max(share / 2, share - _PROCESS_BYTES / total)


def limit_gpu_memory(share: float | None) -> None:
    """Limit the tensors of this process to its share of the GPU; without effect if it has whole GPUs, or none."""
    if not share or share >= 1:
        return
    import torch  # only processes that share a GPU need it

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_fraction(share, total))


def release_gpu_memory() -> bool:
    """Free the GPU memory of an evaluation that has ended; return False if this process cannot use its GPU anymore.

    After an error in a kernel, such as an index out of range, every CUDA call of the process fails.
    """
    cuda = _initialized_cuda()
    if cuda is None:
        return True
    gc.collect()  # networks and optimizers have reference cycles
    try:
        cuda.synchronize()
        cuda.empty_cache()
        cuda.reset_peak_memory_stats()
    except RuntimeError:
        return False
    return True


def breaks_gpu(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, may have ended a process's use of its GPU."""
    return any(
        type(cause).__name__ == "AcceleratorError"
        or (isinstance(cause, RuntimeError) and any(text in str(cause) for text in _BROKEN))
        for cause in _causes(error)
    )


def lacks_memory(error: BaseException) -> bool:
    """Return whether an error, or one that it was raised from, is due to a lack of memory of the device."""
    return any(isinstance(cause, DeviceMemoryError) or is_out_of_memory(cause) for cause in _causes(error))


def describe_out_of_memory(error: BaseException, share: float | None) -> str:
    """Say how much memory was used and free, and what to lower; a UserError already says so."""
    shared = ""
    if share and share < 1:
        shared = f"; a trial has {share:g} of a GPU: fewer workers leave more to each"
    if isinstance(error, UserError):
        return f"{error}{shared}"
    return f"out of GPU memory{_describe_memory()}: lower the batch size (SOLVER.BATCH_SIZE){shared}"


def _describe_memory() -> str:
    cuda = _initialized_cuda()
    if cuda is None:
        return ""
    try:
        free, total = cuda.mem_get_info()
        peak = cuda.max_memory_allocated()
    except RuntimeError:  # the GPU does not answer
        return ""
    return f" ({peak / _GIB:.1f} GiB used, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free)"


def _initialized_cuda() -> Any:
    """Return `torch.cuda` if this process has used a GPU, else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those during whose handling it was raised."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
