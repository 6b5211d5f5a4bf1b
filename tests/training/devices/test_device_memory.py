"""Running out of memory is one line that says how much there was and what to lower."""

import gc
import weakref

import pytest
import torch

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.errors import DeviceMemoryError, UserError, is_out_of_memory
from fbnetv3.training import Trainer, find_lr, train
from fbnetv3.training.devices.device_memory import explain_out_of_memory

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
GIB = 2**30


def make_config(folder):
    return load_config(DIGITS, f"SOLVER.EPOCHS 1 SOLVER.WARMUP_EPOCHS 0 OUTPUT_DIR {folder}".split())


def run_out_of_memory(*args, **kwargs):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_which_errors_are_about_memory():
    with pytest.raises(RuntimeError) as cpu_error:
        torch.empty(2**60)
    cublas = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    assert all(map(is_out_of_memory, (cpu_error.value, cublas, torch.cuda.OutOfMemoryError())))
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))


def test_the_error_states_peak_and_free_memory(monkeypatch):
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (GIB // 4, 80 * GIB))
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 78 * GIB)
    with (
        pytest.raises(DeviceMemoryError) as error,
        explain_out_of_memory(torch.device("cuda:1"), "lower X"),
    ):
        run_out_of_memory()
    memory = "the peak was 78.00 GiB; 0.25 of 80.00 GiB are free"
    assert str(error.value) == f"out of memory on cuda:1 ({memory}): lower X"
    assert isinstance(error.value, UserError) and error.value.exit_code == 1


def test_other_errors_stay_as_they_are():
    with pytest.raises(ZeroDivisionError), explain_out_of_memory(torch.device("cpu"), "lower X"):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="a bug"), explain_out_of_memory(torch.device("cpu"), "lower X"):
        raise RuntimeError("a bug")


def test_the_tensors_of_the_failed_step_are_freed():
    """Otherwise a retry with a smaller batch, while the error is handled, would lack their memory."""

    def step():
        activations = torch.zeros(10)
        alive.append(weakref.ref(activations))
        run_out_of_memory()

    alive = []
    with pytest.raises(DeviceMemoryError) as error, explain_out_of_memory(torch.device("cpu"), "lower X"):
        step()
    gc.collect()
    assert error.value and alive[0]() is None


def test_a_training_step_that_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(Trainer, "step", run_out_of_memory)
    message = (
        "out of memory on cpu: lower SOLVER.BATCH_SIZE, raise SOLVER.ACCUMULATE, or set SOLVER.FIT_MEMORY"
    )
    with pytest.raises(DeviceMemoryError, match=message):
        train(make_config(tmp_path / "run"))
    with pytest.raises(DeviceMemoryError, match=message):
        find_lr(make_config(tmp_path / "lr"), steps=2)


def test_an_evaluation_that_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr("fbnetv3.training.classifier_run.evaluate_with_tta", run_out_of_memory)
    with pytest.raises(DeviceMemoryError, match=r"out of memory on cpu: lower EVAL\.BATCH_SIZE"):
        train(make_config(tmp_path))
