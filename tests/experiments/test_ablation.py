"""Ablation files and the configs of their cells."""

from pathlib import Path

import pytest

from fbnetv3.arch import configs_folder
from fbnetv3.config.recipe import load_recipe
from fbnetv3.errors import UsageError
from fbnetv3.experiments.ablation import (
    Cell,
    cell_config,
    cell_folder,
    grid_cells,
    load_ablation,
    run_ablation,
)

FOLDER = configs_folder() / "ablations"
SHIPPED = [file for file in sorted(FOLDER.glob("*_*.yaml")) if not file.name.startswith("base_")]
TEXT = """
title: Two networks
config: {digits}
output: {output}
overrides: {{SOLVER.EPOCHS: 2, SOLVER.WARMUP_EPOCHS: 0, SOLVER.BATCH_SIZE: 256, EVAL.PERIOD: 2, EMA.DECAY: 0.5}}
seeds: [0, 1]
rows:
  digits: {{}}
columns:
  student: {{TEACHER: EMA, EMA.ENABLED: true}}
  EMA: {{EMA.ENABLED: true}}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "ablation.yaml"
    text = TEXT.format(digits=configs_folder() / "digits" / "fbnetv3_digits.yaml", output=tmp_path / "out")
    path.write_text(text)
    return path


def change(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_ablation_has_valid_configs(path):
    ablation = load_ablation(path)
    cells = grid_cells(ablation)
    assert len(cells) == len(ablation.rows) * len(ablation.columns) * len(ablation.seeds)
    assert len({cell_folder(ablation, cell) for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.seed == cell_config(ablation, cell).SEED


def test_shipped_recipes_are_within_the_ranges_of_table_2():
    for path in (FOLDER / "recipes").glob("*.yaml"):
        load_recipe(path).check_table_2_ranges()


def test_teachers_are_trained_before_their_students(file, tmp_path):
    ablation = load_ablation(file)
    assert grid_cells(ablation) == [
        Cell("digits", column, seed) for seed in (0, 1) for column in ("EMA", "student")
    ]
    cfg = cell_config(ablation, Cell("digits", "student", 1), ["SOLVER.LR", "0.3"])
    assert cfg.DISTILL.ARCH == "fbnetv3_digits" and cfg.SOLVER.LR == 0.3 and cfg.SEED == 1
    assert str(tmp_path / "out" / "digits--EMA--seed1" / "model_final.pth") == cfg.DISTILL.WEIGHTS
    assert cell_config(ablation, Cell("digits", "EMA", 1)).DISTILL.ARCH == ""


def test_paths_may_be_relative_to_the_ablation_file(file, tmp_path):
    (tmp_path / "recipe.yaml").write_text("{optimizer: rmsprop, lr: 0.02}")
    change(file, "  digits: {}", "  digits: {RECIPE: recipe.yaml}")
    assert cell_config(load_ablation(file), Cell("digits", "EMA", 0)).SOLVER.OPTIMIZER == "rmsprop"


def test_rows_and_columns_take_precedence_over_overrides_for_all_cells(file, tmp_path):
    """This includes the values of a column's recipe."""
    (tmp_path / "recipe.yaml").write_text("{optimizer: sgd, lr: 0.02, ema: true}")
    change(file, "  EMA: {EMA.ENABLED: true}", "  EMA: {RECIPE: recipe.yaml, SOLVER.WEIGHT_DECAY: 0.5}")
    cfg = cell_config(
        load_ablation(file), Cell("digits", "EMA", 0), ["SOLVER.LR", "9", "EMA.ENABLED", "False"]
    )
    assert (cfg.SOLVER.LR, cfg.EMA.ENABLED, cfg.SOLVER.WEIGHT_DECAY) == (0.08, True, 0.5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: Two networks", "titel: x", "titel: unknown key: did you mean title"),
        ("title: Two networks\n", "", "title: is missing"),
        ("title: Two networks", "title: [x]", "title: .* must be text"),
        ("seeds: [0, 1]", "seeds: []", "seeds: is empty; list at least one seed"),
        ("seeds: [0, 1]", "seeds: [0, true]", r"seeds\[1\]: True must be an integer"),
        ("seeds: [0, 1]", "seeds: [1, 1]", r"seeds: \[1, 1\] repeats a seed"),
        ("  digits: {}", "", "rows: .* must be a mapping of names"),
        (
            "  digits: {}",
            "  a b: {}\n  a_b: {}",
            r"rows: \['a b', 'a_b'\] must differ in letters or digits",
        ),
        ("  digits: {}", "  digits: [1]", r"rows\.digits: .* must be a mapping of config keys"),
        ("TEACHER: EMA", "TEACHER: ema", r"columns\.student\.TEACHER: 'ema' must be one of EMA"),
        ("TEACHER: EMA", "TEACHER: student", r"columns\.student\.TEACHER: 'student' must be one of EMA"),
        ("  digits: {}", "  digits: {TEACHER: EMA}", r"rows\.digits\.TEACHER: only columns"),
        ("seeds:", "x: params\nseeds:", "x: 'params' must be one of"),
    ],
)
def test_invalid_files_are_named_with_the_field(file, old, new, message):
    change(file, old, new)
    with pytest.raises(UsageError, match=rf"ablation\.yaml: {message}"):
        load_ablation(file)


def test_keys_may_be_nested(file):
    change(file, "  digits: {}", "  digits: {SOLVER: {LR: 0.3}}")
    assert cell_config(load_ablation(file), Cell("digits", "EMA", 0)).SOLVER.LR == 0.3


def test_an_override_without_a_value(file):
    ablation = load_ablation(file)
    with pytest.raises(UsageError, match=r"SOLVER\.LR has no value"):
        cell_config(ablation, grid_cells(ablation)[0], ["SOLVER.LR"])


def test_the_output_folder_may_be_relative_to_the_home_folder(file, tmp_path):
    change(file, str(tmp_path / "out"), "~/out")
    assert load_ablation(file).output == Path("~/out").expanduser()


def test_all_configs_are_checked_before_the_first_training(file, tmp_path):
    change(file, "EMA: {EMA.ENABLED: true}", "EMA: {EMA.ENABELD: true}")
    with pytest.raises(UsageError, match=r"unknown key EMA\.ENABELD"):
        next(run_ablation(load_ablation(file)))
    assert not (tmp_path / "out").exists()
