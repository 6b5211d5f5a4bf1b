"""Fingerprints: which keys they ignore, and errors that name the key."""

from pathlib import Path

import pytest
import yaml
from fvcore.common.config import CfgNode

from fbnetv3.config import get_cfg
from fbnetv3.errors import UsageError
from fbnetv3.training.run_state.fingerprint import (
    CLASSIFIER_IGNORED_KEYS,
    check_length,
    check_same_run,
    config_fingerprint,
    with_defaults,
)
from fbnetv3.utils.nested_keys import flatten

CHECKPOINT = Path("run/step_00000007.pth")


def test_sections_and_keys_are_ignored():
    fingerprint = config_fingerprint(get_cfg(), ignored=("EVAL", "SOLVER.EPOCHS"))
    assert "SOLVER.LR" in fingerprint and "SOLVER.WARMUP_EPOCHS" in fingerprint
    assert not any(key.startswith("EVAL.") or key == "SOLVER.EPOCHS" for key in fingerprint)


def test_a_nested_section_is_ignored():
    cfg = CfgNode({"DATASETS": {"CUSTOM": {"JSON": "a"}, "CUSTOMER": "b", "TRAIN": ("c",)}})
    assert config_fingerprint(cfg, ignored=("DATASETS.CUSTOM",)) == {
        "DATASETS.CUSTOMER": "b",
        "DATASETS.TRAIN": ["c"],
    }


def test_tuples_within_lists_equal_the_lists_of_a_yaml_file():
    nested = CfgNode({"WEIGHTS": [(10.0, 5.0), (20.0, 10.0)]})
    reloaded = CfgNode(yaml.safe_load(nested.dump()))
    assert config_fingerprint(nested, ()) == config_fingerprint(reloaded, ())
    # Checkpoints of older runs hold the tuples
    check_same_run({"WEIGHTS": nested.WEIGHTS}, config_fingerprint(reloaded, ()), CHECKPOINT)
    with pytest.raises(UsageError, match="WEIGHTS has changed"):
        check_same_run({"WEIGHTS": [(10.0, 5.0)]}, config_fingerprint(reloaded, ()), CHECKPOINT)


def test_ignored_keys_of_classifiers_exist_and_new_keys_are_compared():
    cfg = get_cfg()
    for ignored in CLASSIFIER_IGNORED_KEYS:
        assert any(f"{key}.".startswith(f"{ignored}.") for key in flatten(cfg)), ignored
    cfg.SOLVER.NEW_KEY = 1
    assert config_fingerprint(cfg, CLASSIFIER_IGNORED_KEYS)["SOLVER.NEW_KEY"] == 1


def test_a_key_that_is_newer_than_the_checkpoint_counts_as_its_default():
    cfg = get_cfg()
    saved = config_fingerprint(cfg, CLASSIFIER_IGNORED_KEYS)
    del saved["MODEL.FREEZE"]
    check_same_run(with_defaults(saved), config_fingerprint(cfg, CLASSIFIER_IGNORED_KEYS), CHECKPOINT)
    cfg.MODEL.FREEZE = "stem"
    with pytest.raises(UsageError, match="MODEL.FREEZE has changed: was none, is now stem"):
        check_same_run(with_defaults(saved), config_fingerprint(cfg, CLASSIFIER_IGNORED_KEYS), CHECKPOINT)


def test_the_key_that_differs_is_named():
    check_same_run({"SEED": 1, "REMOVED": 2}, {"SEED": 1}, CHECKPOINT)
    message = "run/step_00000007.pth: cannot resume: SEED has changed: was 1, is now 2; use that run's config.yaml"
    with pytest.raises(UsageError, match=message):
        check_same_run({"SEED": 1}, {"SEED": 2}, CHECKPOINT)
    with pytest.raises(UsageError, match=r"definition has changed; use that run's config.yaml"):
        check_same_run(
            {"definition": "long"}, {"definition": "other"}, CHECKPOINT, long_values=("definition",)
        )


def test_a_run_cannot_be_shorter_than_its_checkpoint():
    check_length(3, 3, "epochs", "SOLVER.EPOCHS", CHECKPOINT)
    with pytest.raises(
        UsageError, match="it already has 4 epochs, more than SOLVER.EPOCHS 3; raise SOLVER.EPOCHS"
    ):
        check_length(4, 3, "epochs", "SOLVER.EPOCHS", CHECKPOINT)
