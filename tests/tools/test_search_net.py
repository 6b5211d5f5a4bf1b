"""The search tool as a user runs it: a search of real trainings from a config, its folder, its complaints."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fbnetv3.config import load_config
from fbnetv3.nars.algorithm.trial_store import TrialStore

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "search_net.py"
FAST = {"members": 4, "width": 32, "pretrain_epochs": 3, "frozen_epochs": 10, "tuned_epochs": 10}


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False, timeout=400
    )


def write(folder, **settings):
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Six trainings on digits, and a recommendation."""
    folder = tmp_path_factory.mktemp("trained")
    config = write(
        folder,
        space=str(ROOT / "configs/nars/spaces/cifar10_small.yaml"),
        evaluator="training",
        evaluator_args={
            "config": str(ROOT / "configs/digits/fbnetv3_digits.yaml"),
            "overrides": {"SOLVER.WARMUP_EPOCHS": 0, "SOLVER.BATCH_SIZE": 256, "DATA.WORKERS": 0, "EMA.DECAY": 0.5},
        },
        constraints={"macs": 1.0e6},
        budgets=[{"macs": 0.8e6}],
        epochs=2,
        rounds=2,
        batch=3,
        pool=200,
        num_classes=10,
        predictor=FAST,
        output="out",
    )
    return folder, config, run("--config", config, cwd=folder)


def test_a_search_of_trainings(trained):
    folder, _, done = trained
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = re.findall(r"^ +(\d)/2 +(\d) +3/3 +0 +0 +[\d.]+", done.stdout, re.MULTILINE)
    assert rows[-1][0] == "2"
    store = TrialStore(folder / "out")
    trials = store.all()
    store.close()
    assert len(trials) == 6
    assert all(0 <= accuracy <= 100 for trial in trials for accuracy in trial.curve)
    assert {len(trial.curve) for trial in trials if trial.round == 0} == {2}
    for trial in trials:  # what a trial leaves is small
        files = {path.name for path in (folder / "out/trials" / f"{trial.number:05d}").iterdir()}
        assert {"arch.yaml", "metrics.jsonl", "config.yaml"} <= files
        assert not files & {"checkpoints", "model_final.pth", "tensorboard"}


def test_its_recommendation_trains(trained):
    folder, _, done = trained
    config = next(path for path in (folder / "out/found").glob("*.yaml"))
    assert str(config.relative_to(folder)) in done.stdout
    tool = [sys.executable, ROOT / "tools/train_net.py", "--config", config, "SOLVER.EPOCHS", "1"]
    trained_it = subprocess.run(tool, cwd=folder, capture_output=True, text=True, check=False)
    assert trained_it.returncode == 0, trained_it.stderr
    assert f"{config.stem} (" in trained_it.stdout


def test_status_and_report(trained):
    folder, _, done = trained
    status = run("status", "out", cwd=folder)
    assert "evaluator training, finished" in status.stdout
    assert re.search(r"^2 .*\(trial \d\)", status.stdout, re.MULTILINE)
    report = (folder / "out/report.html").read_text()
    assert f"report: {Path('out/report.html')}" in done.stdout
    assert report.count("data:image/png;base64,") >= 5
    names = {path.stem for path in (folder / "out/report").glob("*.png")}
    assert {"rounds", "pareto", "last_round", "predictor", "pretraining", "samples"} <= names
    for link in re.findall(r'href="([^"]+)"', report):
        assert (folder / "out" / link).exists()
    (folder / "out/report.html").unlink()
    again = run("report", "out", cwd=folder)
    assert (again.returncode, again.stdout) == (0, "out/report.html\n")
    assert (folder / "out/report.html").read_text() == report


def test_resuming_a_finished_search_trains_nothing(trained):
    folder, config, _ = trained
    before = [path.stat().st_mtime for path in sorted((folder / "out/trials").rglob("*"))]
    done = run("--config", config, "--resume", "budgets", "[{macs: 0.9e6}]", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert before == [path.stat().st_mtime for path in sorted((folder / "out/trials").rglob("*"))]
    found = json.loads((folder / "out/found/cifar10_small_macs_900k.json").read_text())
    assert found["columns"]["macs"] <= 0.9e6


def test_recipes_for_a_network_of_torchvision(tmp_path):
    """Sec. 4.1, Table 3: the network stands in the config, the search is for its recipe."""
    from fbnetv3.nars import search

    arguments = {
        "config": str(ROOT / "configs/digits/fbnetv3_digits.yaml"),
        "overrides": {
            "MODEL.ARCH": "torchvision/squeezenet1_1",
            "MODEL.IN_CHANS": 3,
            "INPUT.MEAN": [0.5, 0.5, 0.5],
            "INPUT.STD": [0.5, 0.5, 0.5],
            "INPUT.RESOLUTION": 32,
            "SOLVER.WARMUP_EPOCHS": 0,
            "DATA.WORKERS": 0,
        },
    }
    result = search(
        ROOT / "configs/nars/spaces/cifar10_small.yaml",
        "training",
        tmp_path / "out",
        mode="recipe",
        evaluator_args=arguments,
        epochs=1,
        rounds=1,
        batch=2,
        pool=50,
        predictor=FAST,
        executor="serial",
    )
    (found,) = result.found
    cfg = load_config(found.emitted.config)
    assert cfg.MODEL.ARCH == "torchvision/squeezenet1_1"
    assert found.candidate.recipe.initial_lr == cfg.SOLVER.LR


@pytest.mark.parametrize(
    ("settings", "arguments", "error"),
    [
        ({}, (), "search.yaml: space: missing"),
        ({"space": "nowhere.yaml", "evaluator": "table"}, (), "nowhere.yaml: cannot be read"),
        ({"space": 3, "evaluator": "table"}, (), "search.yaml: space: 3 is neither a file nor a space"),
        ({"space": {"name": "s"}, "evaluator": "table"}, (), "search.yaml: variables: missing"),
        ({"spce": 1}, (), "search.yaml: spce: unknown key: did you mean space"),
        ("good", ("rouns", "3"), "unknown key rouns: did you mean rounds"),
        ("good", ("rounds",), "rounds: has no value; overrides come as KEY VALUE pairs"),
        ("good", ("epochs.x", "3"), "epochs.x: epochs is 1, which has no settings inside"),
        ("good", ("rounds", "three"), "search.yaml: rounds: 'three' is not a whole number"),
        ("good", ("evaluator", "tabel"), "unknown evaluator 'tabel': did you mean table"),
        ("good", ("evaluator", "training"), "evaluator 'training' with {}: missing a required argument: 'config'"),
        ("good", ("executor", "cloud"), "executor: 'cloud' is not one of local, serial, ray"),
        ("good", ("constraints", "{macs: 3}"), "s has no networks: leave these bounds out"),
    ],
)
def test_one_line_says_what_is_wrong(settings, arguments, error, tmp_path):
    if settings == "good":
        space = {"name": "s", "variables": {"a": {"range": [0, 9]}}}
        settings = {"space": space, "evaluator": "tests.nars.test_evaluators:constant", "epochs": 1}
    done = run("--config", write(tmp_path, **settings), *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert error in done.stderr
    assert not (tmp_path / "output").exists()


def test_a_folder_without_a_search(tmp_path):
    for what in ("status", "report"):
        done = run(what, tmp_path, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"error: {tmp_path}: holds no search (there is no trials.sqlite)\n"
