"""Choose between the fastest and deterministic algorithms on a GPU, for the time of a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from fbnetv3.errors import UsageError
from fbnetv3.utils.text import describe_error

_CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextlib.contextmanager
def gpu_algorithms(deterministic: bool) -> Iterator[None]:
    """Let cuDNN time its algorithms and take the fastest, or, if `deterministic`, allow only deterministic ones.

    The settings of the process are restored at the end of the block.

    Raises:
        UsageError: an operator has no deterministic algorithm.
    """
    with contextlib.ExitStack() as stack:
        cudnn = torch.backends.cudnn
        stack.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
        # Batches have the same shape in all steps, so that timing pays. It may choose differently in each run
        cudnn.benchmark = not deterministic and not cudnn.deterministic
        if deterministic:
            stack.enter_context(_deterministic_algorithms())
        yield


@contextlib.contextmanager
def _deterministic_algorithms() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.callback(setattr, torch.backends.cudnn, "deterministic", torch.backends.cudnn.deterministic)
        torch.backends.cudnn.deterministic = True
        enabled = torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        stack.callback(torch.use_deterministic_algorithms, enabled, warn_only=warn_only)
        torch.use_deterministic_algorithms(True)
        # cuBLAS reads it when a process multiplies its first matrices; torch refuses to without it
        if _CUBLAS_WORKSPACE not in os.environ:
            stack.callback(os.environ.pop, _CUBLAS_WORKSPACE, None)
            os.environ[_CUBLAS_WORKSPACE] = ":4096:8"
        try:
            yield
        except RuntimeError as error:
            if "determinis" not in str(error):
                raise
            raise UsageError(
                f"SOLVER.DETERMINISTIC True: {describe_error(error)}: set it to False"
            ) from None
