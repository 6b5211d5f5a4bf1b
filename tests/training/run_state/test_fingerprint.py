"""Fingerprints: what they ignore, and errors that name the key."""

from pathlib import Path

import pytest

from fbnetv3.config import get_cfg
from fbnetv3.errors import UsageError
from fbnetv3.training.run_state.fingerprint import check_not_longer, check_same_run, config_fingerprint

CHECKPOINT = Path("run/step_00000007.pth")


def test_sections_and_keys_are_ignored():
    fingerprint = config_fingerprint(get_cfg(), ignored=("EVAL", "SOLVER.EPOCHS"))
    assert "SOLVER.LR" in fingerprint
    assert not any(key.startswith("EVAL.") or key == "SOLVER.EPOCHS" for key in fingerprint)


def test_the_key_that_differs_is_named():
    check_same_run({"SEED": 1, "REMOVED": 2}, {"SEED": 1}, CHECKPOINT)
    message = r"run/step_00000007.pth: cannot resume: it was trained with another SEED \(1, now 2\)"
    with pytest.raises(UsageError, match=message):
        check_same_run({"SEED": 1}, {"SEED": 2}, CHECKPOINT)
    with pytest.raises(UsageError, match=r"with another definition; use that run's config.yaml"):
        check_same_run({"definition": "long"}, {"definition": "other"}, CHECKPOINT, long_values=("definition",))


def test_a_run_cannot_be_shorter_than_its_checkpoint():
    check_not_longer(3, 3, "epochs", "SOLVER.EPOCHS", CHECKPOINT)
    with pytest.raises(UsageError, match="it was trained for 4 epochs already, more than SOLVER.EPOCHS 3"):
        check_not_longer(4, 3, "epochs", "SOLVER.EPOCHS", CHECKPOINT)
