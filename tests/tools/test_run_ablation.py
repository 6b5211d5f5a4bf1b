"""Ablations: what a file may say, in which order the grid is trained, what comes of it."""

import json
from pathlib import Path

import pytest
import torch

from fbnetv3.arch import configs_folder
from fbnetv3.config.recipe import load_recipe
from fbnetv3.errors import UsageError
from fbnetv3.experiments.ablation import (
    Cell,
    Result,
    cell_config,
    cell_folder,
    cells,
    load_ablation,
    run_ablation,
    save_results,
    summary,
    table,
)

FOLDER = configs_folder() / "ablations"
FILES = sorted(FOLDER.glob("*_*.yaml"))
TEXT = """
title: Two networks
config: {digits}
output: {output}
overrides: {{SOLVER.EPOCHS: 2, SOLVER.WARMUP_EPOCHS: 0, SOLVER.BATCH_SIZE: 256, EVAL.PERIOD: 2, EMA.DECAY: 0.5}}
seeds: [0, 1]
rows:
  digits: {{}}
columns:
  taught: {{TEACHER: EMA, EMA.ENABLED: true}}
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


@pytest.mark.parametrize("path", [f for f in FILES if not f.name.startswith("base_")], ids=lambda p: p.stem)
def test_every_file_of_ours_makes_a_grid_of_configs(path):
    ablation = load_ablation(path)
    grid = cells(ablation)
    assert len(grid) == len(ablation.rows) * len(ablation.columns) * len(ablation.seeds)
    assert len({cell_folder(ablation, cell) for cell in grid}) == len(grid)
    for cell in grid:
        assert cell.seed == cell_config(ablation, cell).SEED


def test_our_recipes_lie_in_table_2():
    for path in (FOLDER / "recipes").glob("*.yaml"):
        load_recipe(path).check_table_2()


def test_teachers_come_first(file, tmp_path):
    ablation = load_ablation(file)
    assert cells(ablation) == [Cell("digits", column, seed) for seed in (0, 1) for column in ("EMA", "taught")]
    cfg = cell_config(ablation, Cell("digits", "taught", 1), ["SOLVER.LR", "0.3"])
    assert cfg.DISTILL.ARCH == "fbnetv3_digits" and cfg.SOLVER.LR == 0.3 and cfg.SEED == 1
    assert str(tmp_path / "out" / "digits--EMA--seed1" / "model_final.pth") == cfg.DISTILL.WEIGHTS
    assert cell_config(ablation, Cell("digits", "EMA", 1)).DISTILL.ARCH == ""


def test_files_beside_the_ablation_are_found(file, tmp_path):
    (tmp_path / "recipe.yaml").write_text("{optimizer: rmsprop, lr: 0.02}")
    change(file, "  digits: {}", "  digits: {RECIPE: recipe.yaml}")
    assert cell_config(load_ablation(file), Cell("digits", "EMA", 0)).SOLVER.OPTIMIZER == "rmsprop"


def test_what_tells_cells_apart_comes_last(file, tmp_path):
    """A recipe of a row or column too: an override for all cells does not change it."""
    (tmp_path / "recipe.yaml").write_text("{optimizer: sgd, lr: 0.02, ema: true}")
    change(file, "  EMA: {EMA.ENABLED: true}", "  EMA: {RECIPE: recipe.yaml, SOLVER.WEIGHT_DECAY: 0.5}")
    cfg = cell_config(load_ablation(file), Cell("digits", "EMA", 0), ["SOLVER.LR", "9", "EMA.ENABLED", "False"])
    assert (cfg.SOLVER.LR, cfg.EMA.ENABLED, cfg.SOLVER.WEIGHT_DECAY) == (0.08, True, 0.5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: Two networks", "titel: x", "titel: unknown key: did you mean title"),
        ("title: Two networks\n", "", "title: missing"),
        ("title: Two networks", "title: [x]", "title: .* is not text"),
        ("seeds: [0, 1]", "seeds: []", "seeds: .* is not a list of whole numbers"),
        ("seeds: [0, 1]", "seeds: [0, true]", "seeds: .* is not a list of whole numbers"),
        ("seeds: [0, 1]", "seeds: [1, 1]", "seeds: .* has a seed twice"),
        ("  digits: {}", "", "rows: is not a mapping from names"),
        ("  digits: {}", "  digits: [1]", r"rows\.digits: is not a mapping of config keys"),
        ("  digits: {}", "  digits: {SOLVER: {LR: 1}}", r"rows\.digits\.SOLVER: is a mapping: write keys"),
        ("TEACHER: EMA", "TEACHER: ema", r"columns\.taught\.TEACHER: 'ema' is not one of the columns taught, EMA"),
        ("TEACHER: EMA", "TEACHER: taught", r"columns\.taught\.TEACHER: 'taught' has a teacher itself"),
        ("  digits: {}", "  digits: {TEACHER: EMA}", r"rows\.digits\.TEACHER"),
        ("seeds:", "x: params\nseeds:", "x: 'params' is not macs"),
    ],
)
def test_a_file_that_makes_no_sense(file, old, new, message):
    change(file, old, new)
    with pytest.raises(UsageError, match=rf"ablation\.yaml: {message}"):
        load_ablation(file)


def test_a_key_without_a_value(file):
    ablation = load_ablation(file)
    with pytest.raises(UsageError, match=r"SOLVER\.LR: has no value"):
        cell_config(ablation, cells(ablation)[0], ["SOLVER.LR"])


def test_the_output_may_lie_at_home(file, tmp_path):
    change(file, str(tmp_path / "out"), "~/out")
    assert load_ablation(file).output == Path("~/out").expanduser()


def test_a_wrong_key_is_found_before_anything_is_trained(file, tmp_path):
    change(file, "EMA: {EMA.ENABLED: true}", "EMA: {EMA.ENABELD: true}")
    with pytest.raises(UsageError, match=r"unknown key EMA\.ENABELD"):
        next(run_ablation(load_ablation(file)))
    assert not (tmp_path / "out").exists()


def test_a_grid_is_trained_once_and_goes_on_where_it_stopped(tool, file, tmp_path, monkeypatch):
    grid = run_ablation(load_ablation(file))
    first = [next(grid), next(grid)]
    grid.close()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*/model_final.pth")}
    assert len(made) == 2
    ran = tool("run_ablation", "--config", file)
    assert (ran.code, ran.err) == (0, "")
    results = [Result(**entry) for entry in json.loads((tmp_path / "out" / "results.json").read_text())]
    assert results[:2] == first and len(results) == 4
    for path, when in made.items():
        content = torch.load(path)
        assert content["model_ema"] is not None
        assert when == path.stat().st_mtime_ns or content["arch"] == "fbnetv3_digits"
    assert "2/4: digits, taught, seed 0" in ran.out and "distilled from fbnetv3_digits" in ran.out
    assert ran.out.count("epoch 2/2") == 2, "finished cells are not trained again"
    assert (tmp_path / "out" / "table.md").read_text().strip() in ran.out
    assert (tmp_path / "out" / "figure.png").read_bytes().startswith(b"\x89PNG")


RESULTS = [
    Result("small", "a", 0, 90.0, 2_000_000),
    Result("small", "a", 1, 92.0, 2_000_000),
    Result("large", "a", 0, 95.0, 7_100_000),
]


def test_the_table_has_mean_and_deviation(file):
    change(file, "  digits: {}", "  small: {}\n  large: {}")
    change(file, "  taught: {TEACHER: EMA, EMA.ENABLED: true}\n  EMA: {EMA.ENABLED: true}", "  a: {}\n  b: {}")
    assert summary(RESULTS)["small", "a"] == (91.0, pytest.approx(2**0.5), 2)
    lines = table(load_ablation(file), RESULTS).splitlines()
    assert lines[0] == "Two networks: top-1, mean and standard deviation over 2 seeds"
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:]] == [
        ["small", "91.00 % ± 1.41", ""],
        ["large", "95.00 %", ""],
    ]
    change(file, "seeds:", "x: macs\nseeds:")
    ablation = load_ablation(file)
    assert "| small | 2.0 M" in table(ablation, RESULTS) and "7.1 M" in table(ablation, RESULTS)
    assert [path.name for path in save_results(ablation, RESULTS)] == ["results.json", "table.md", "figure.png"]


def test_the_figure_has_a_line_for_each_column_and_those_that_rows_name(file, monkeypatch):
    from matplotlib.axes import Axes

    lines = {}
    monkeypatch.setattr(Axes, "errorbar", lambda self, x, y, *a, label, **k: lines.update({label: (list(x), list(y))}))
    monkeypatch.setattr(Axes, "legend", lambda *a, **k: None)
    change(file, "  digits: {}", "  small: {}\n  large: {}\n  other: {LINE: others}")
    change(file, "  taught: {TEACHER: EMA, EMA.ENABLED: true}\n  EMA: {EMA.ENABLED: true}", "  a: {}")
    results = [*RESULTS, Result("other", "a", 0, 80.0, 5_000_000)]
    save_results(load_ablation(file), results)
    assert {label: sorted(y) for label, (_, y) in lines.items()} == {"a": [80.0, 91.0, 95.0]}
    change(file, "seeds:", "x: macs\nseeds:")
    lines.clear()
    save_results(load_ablation(file), results)
    assert lines == {"a": ([2.0, 7.1], [91.0, 95.0]), "others": ([5.0], [80.0])}
