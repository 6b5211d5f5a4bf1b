"""GPU memory of a worker: shares, errors, and what is freed after a trial. CUDA is a stand-in."""

from types import SimpleNamespace

import pytest
import torch

from fbnetv3.errors import DataError, UserError
from fbnetv3.nars.execution.attempt_evaluation import evaluate_attempt, evaluate_in_worker
from fbnetv3.nars.execution.attempts import SearchContext
from fbnetv3.nars.execution.gpu_memory import breaks_gpu, lacks_memory, memory_fraction
from tests.nars.execution.execution_helpers import SPACE, make_attempt

GIB = 2**30
# New in torch 2.8
AcceleratorError = getattr(torch, "AcceleratorError", type("AcceleratorError", (RuntimeError,), {}))


class Cuda:
    """Records the calls of one GPU of 80 GiB, of which 10 are free."""

    def __init__(self, monkeypatch, broken=False):
        self.calls = []
        self.broken = broken
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
        properties = SimpleNamespace(total_memory=80 * GIB)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (10 * GIB, 80 * GIB))
        monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 18 * GIB)
        for name in (
            "synchronize",
            "empty_cache",
            "reset_peak_memory_stats",
            "set_per_process_memory_fraction",
        ):
            monkeypatch.setattr(f"torch.cuda.{name}", lambda *values, name=name: self.call(name, *values))

    def call(self, name, *values):
        if self.broken:
            raise RuntimeError("CUDA error: device-side assert triggered")
        self.calls.append((name, *values))


def constant(candidate, epochs):
    return [1.0] * epochs


def test_the_tensors_of_a_worker_get_its_share_less_600_mib():
    """The other memory of a process, of its CUDA context and libraries, belongs to the share too."""
    assert memory_fraction(0.25, 6000 * 2**20) == pytest.approx(0.25 - 0.1)
    assert memory_fraction(0.1, 6000 * 2**20) == pytest.approx(0.05)  # at least half of the share


@pytest.mark.parametrize(("share", "limited"), [(0.25, True), (1.0, False), (0, False), (None, False)])
def test_only_workers_that_share_a_gpu_are_limited(share, limited, monkeypatch):
    cuda = Cuda(monkeypatch)
    assert evaluate_in_worker(SearchContext(SPACE, constant), make_attempt(0), share).error is None
    limits = [values for name, *values in cuda.calls if name == "set_per_process_memory_fraction"]
    assert limits == ([[pytest.approx(0.25 - 600 / 1024 / 80)]] if limited else [])


def test_memory_is_freed_after_each_trial(monkeypatch):
    """When no variable refers to the tensors anymore, even after an error."""
    cuda = Cuda(monkeypatch)

    class Tensor:
        def __init__(self):
            self.cycle = self

        def __del__(self):
            cuda.calls.append("freed")

    def fails(candidate, epochs):
        tensor = Tensor()
        raise ValueError(type(tensor).__name__)

    outcome = evaluate_attempt(SearchContext(SPACE, fails), make_attempt(0))
    assert outcome.error.startswith("ValueError: Tensor")
    assert not outcome.ends_worker
    assert cuda.calls == ["freed", ("synchronize",), ("empty_cache",), ("reset_peak_memory_stats",)]


def test_a_process_that_has_not_used_a_gpu_does_not_start_cuda(monkeypatch):
    cuda = Cuda(monkeypatch)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: False)
    evaluate_attempt(SearchContext(SPACE, constant), make_attempt(0))
    assert not cuda.calls


def test_a_gpu_that_fails_after_a_trial_ends_the_worker_but_not_the_trial(monkeypatch):
    Cuda(monkeypatch, broken=True)
    outcome = evaluate_attempt(SearchContext(SPACE, constant), make_attempt(0))
    assert outcome.curve == (1.0, 1.0)
    assert outcome.ends_worker


def wrapped(cause):
    """Return a UserError that was raised from another error."""
    try:
        try:
            raise cause
        except type(cause):
            raise DataError("cannot resume") from None
    except DataError as error:
        return error


@pytest.mark.parametrize(
    ("error", "broken", "out_of_memory"),
    [
        (AcceleratorError("device-side assert triggered"), True, False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True, False),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True, False),
        (wrapped(RuntimeError("CUDA error: unspecified launch failure")), True, False),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), False, True),
        (wrapped(torch.cuda.OutOfMemoryError("CUDA out of memory.")), False, True),
        (AcceleratorError("CUDA error: out of memory"), True, True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
        (ValueError("CUDA error"), False, False),
        (MemoryError(), False, False),
    ],
)
def test_errors_of_the_gpu(error, broken, out_of_memory):
    assert (breaks_gpu(error), lacks_memory(error)) == (broken, out_of_memory)


def test_out_of_memory_says_how_much_was_free_and_what_to_lower(monkeypatch):
    Cuda(monkeypatch)

    def needs_more(candidate, epochs):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    context = SearchContext(SPACE, needs_more)
    outcome = evaluate_in_worker(context, make_attempt(0), 0.25)
    assert outcome.out_of_memory
    assert outcome.error == (
        "out of GPU memory (18.0 GiB used, 10.0 of 80.0 GiB free): lower the batch size (SOLVER.BATCH_SIZE); a trial "
        "has 0.25 of a GPU: fewer workers leave more to each"
    )
    assert "Tried to allocate 2.00 GiB" in outcome.traceback
    alone = evaluate_in_worker(context, make_attempt(0, alone=True), 1.0)
    assert alone.error.endswith("lower the batch size (SOLVER.BATCH_SIZE)")


def test_an_explanation_by_the_training_run_is_kept(monkeypatch):
    Cuda(monkeypatch)

    def explains(candidate, epochs):
        try:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        except torch.cuda.OutOfMemoryError:
            raise UserError("not enough memory: lower SOLVER.BATCH_SIZE 512") from None

    outcome = evaluate_in_worker(SearchContext(SPACE, explains), make_attempt(0), 0.5)
    assert outcome.out_of_memory
    assert outcome.error == (
        "not enough memory: lower SOLVER.BATCH_SIZE 512; a trial has 0.5 of a GPU: fewer workers leave more to each"
    )
    assert outcome.traceback is None
