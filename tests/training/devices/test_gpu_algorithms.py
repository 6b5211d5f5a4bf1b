"""Fast or deterministic algorithms during a run, and the process's own settings afterwards."""

import os

import pytest
import torch

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.errors import UsageError
from fbnetv3.training import train
from fbnetv3.training.devices.gpu_algorithms import gpu_algorithms

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"


def settings():
    cudnn = torch.backends.cudnn
    return {
        "benchmark": cudnn.benchmark,
        "deterministic": cudnn.deterministic,
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


DEFAULTS = {"benchmark": False, "deterministic": False, "algorithms": False, "cublas": None}
DETERMINISTIC = {"benchmark": False, "deterministic": True, "algorithms": True, "cublas": ":4096:8"}


@pytest.fixture(autouse=True)
def defaults(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert settings() == DEFAULTS


@pytest.mark.parametrize(
    ("deterministic", "expected"), [(False, {**DEFAULTS, "benchmark": True}), (True, DETERMINISTIC)]
)
def test_settings_hold_within_the_block_alone(deterministic, expected):
    with pytest.raises(ZeroDivisionError), gpu_algorithms(deterministic):
        assert settings() == expected
        raise ZeroDivisionError
    assert settings() == DEFAULTS


def test_a_workspace_that_the_user_has_chosen_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with gpu_algorithms(deterministic=True):
        assert settings()["cublas"] == ":16:8"
    assert settings()["cublas"] == ":16:8"


def test_an_operator_without_a_deterministic_algorithm_is_named():
    message = (
        "SOLVER.DETERMINISTIC True: RuntimeError: put_ does not have a deterministic implementation.*False"
    )
    with pytest.raises(UsageError, match=message), gpu_algorithms(deterministic=True):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    with pytest.raises(RuntimeError, match="a bug"), gpu_algorithms(deterministic=True):
        raise RuntimeError("a bug")


def test_a_run_is_deterministic_if_asked_to(tmp_path):
    def record(result):
        during.append(settings())

    during = []
    for value in (True, False):
        overrides = (
            f"SOLVER.EPOCHS 1 SOLVER.WARMUP_EPOCHS 0 SOLVER.BATCH_SIZE 512 SOLVER.DETERMINISTIC {value}"
        )
        train(load_config(DIGITS, [*overrides.split(), "OUTPUT_DIR", str(tmp_path / str(value))]), [record])
    assert during == [DETERMINISTIC, {**DEFAULTS, "benchmark": True}]
    assert settings() == DEFAULTS
