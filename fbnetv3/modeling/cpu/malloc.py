"""The C library's allocator, set for training on CPUs."""

from __future__ import annotations

import ctypes
import sys

# <malloc.h>, and the most that an int can ask for
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _MOST = -1, -3, 2**31 - 1


def keep_freed_memory() -> bool:
    """Keep freed memory in this process for the tensors of the next step, instead of giving it back each time.

    By default glibc maps every large tensor anew, and the kernel clears its pages one by one: a fifth of a training
    step of FBNetV3-B on a CPU (`benchmarks/train_step.py`). It holds for the whole process, until its end: for
    a program to call, not for a library. The process then stays as large as it has once been, up to 2 GB of unused
    memory at its end.

    Returns:
        Whether the C library could be told; only glibc can.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or mallopt(_M_MMAP_THRESHOLD, _MOST) != 1:  # older ones refuse so much
        return False
    return mallopt(_M_TRIM_THRESHOLD, _MOST) == 1
