"""Recipes: the lower half of Table 2, as data."""

import pytest

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.config.recipe import OPTIMIZERS, Recipe, RecipeError, dump_recipe, load_recipe, save_recipe
from fbnetv3.errors import UsageError

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
GOOD = Recipe("rmsprop", 0.026, 9e-6, mixup=0.15, drop_rate=0.2, drop_path_rate=0.1, ema=True)


def test_round_trip(tmp_path):
    save_recipe(GOOD, tmp_path / "x.yaml")
    assert load_recipe(tmp_path / "x.yaml") == GOOD


def test_sgd_uses_four_times_the_learning_rate():
    assert GOOD.training_lr == 0.026
    assert Recipe("sgd", 0.026).training_lr == pytest.approx(0.104)


@pytest.mark.parametrize("edge", [0, 1])
def test_table_2_is_inclusive(edge):
    lr, drop, path, mixup, decay = ((0.02, 0.03), (0.01, 0.31), (0.1, 0.31), (0, 0.41), (7e-6, 21e-6))
    Recipe("sgd", lr[edge], decay[edge], mixup[edge], drop[edge], path[edge]).check_table_2_ranges()


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.031), ("weight_decay", 1e-4), ("mixup", 0.5), ("drop_rate", 0.0), ("drop_path_rate", 0.05)],
)
def test_outside_table_2(field, value):
    from dataclasses import replace

    with pytest.raises(RecipeError, match=f"^{field}: {value} must be in Table 2's"):
        replace(GOOD, **{field: value}).check_table_2_ranges()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "optimizer: rmsprop",
            "optimizer: adam",
            "optimizer: unknown optimizer 'adam': did you mean adamw?",
        ),
        ("lr: 0.026", "lr: fast", r"lr: 'fast' must be a number in \[0, 1000\)"),
        ("lr: 0.026", "lr: -1", "lr: -1 must be a number"),
        ("lr: 0.026", "lr: .nan", "lr: nan must be a number"),
        ("lr: 0.026\n", "", "lr: is missing"),
        ("ema: true", "ema: 1", "ema: 1 must be true or false"),
        ("drop_rate: 0.2", "drop_rate: 1.0", r"drop_rate: 1.0 must be a number in \[0, 1\)"),
        ("lr: 0.026", "lr: 2020-13-45", "not YAML: month must be in"),
        ("mixup: 0.15", "mixip: 0.15", "mixip: unknown key: did you mean mixup?"),
        ("mixup: 0.15", "mixup: 0.15\nmixup: 0.2", "line 5: not YAML: duplicate key 'mixup'"),
    ],
)
def test_errors_name_file_and_field(tmp_path, old, new, message):
    text = dump_recipe(GOOD)
    assert old in text
    (tmp_path / "x.yaml").write_text(text.replace(old, new))
    with pytest.raises(RecipeError, match=f"x.yaml: {message}"):
        load_recipe(tmp_path / "x.yaml")


def test_numbers_that_yaml_takes_for_text(tmp_path):
    (tmp_path / "x.yaml").write_text("optimizer: sgd\nlr: 2e-2\nweight_decay: 9e-6\n")
    assert load_recipe(tmp_path / "x.yaml") == Recipe("sgd", 0.02, 9e-6)


def test_a_recipe_in_a_config(tmp_path):
    """It overrides the config's own keys, and the command line overrides it."""
    save_recipe(GOOD, tmp_path / "x.yaml")
    cfg = load_config(DIGITS, ["RECIPE", str(tmp_path / "x.yaml"), "INPUT.MIXUP", "0.3"])
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.LR, cfg.SOLVER.WEIGHT_DECAY) == ("rmsprop", 0.026, 9e-6)
    assert (cfg.MODEL.DROP_RATE, cfg.MODEL.DROP_PATH_RATE, cfg.EMA.ENABLED) == (0.2, 0.1, True)
    assert cfg.INPUT.MIXUP == 0.3
    assert cfg.SOLVER.EPOCHS == load_config(DIGITS).SOLVER.EPOCHS


def test_a_dumped_config_does_not_need_the_recipe_file(tmp_path):
    save_recipe(GOOD, tmp_path / "x.yaml")
    cfg = load_config(DIGITS, ["RECIPE", str(tmp_path / "x.yaml"), "SOLVER.LR", "0.5"])
    (tmp_path / "dumped.yaml").write_text(cfg.dump())
    (tmp_path / "x.yaml").unlink()
    assert load_config(tmp_path / "dumped.yaml") == cfg
    assert cfg.SOLVER.LR == 0.5


def test_any_registered_optimizer_can_be_used():
    OPTIMIZERS.add("mine", "my_package.optimizers:build", "test")
    try:
        assert Recipe("mine", 0.1).to_config()["SOLVER"]["OPTIMIZER"] == "mine"
    finally:
        OPTIMIZERS.remove("mine")


def test_a_missing_recipe():
    with pytest.raises(UsageError, match="nowhere.yaml: cannot be read"):
        load_config(DIGITS, ["RECIPE", "nowhere.yaml"])
