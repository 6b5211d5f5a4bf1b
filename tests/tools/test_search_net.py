"""tools/search_net.py as a user runs it: a search with real training runs, its output folder, error messages."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from fbnetv3.config import load_config
from fbnetv3.nars import Search, load, space_from_dict

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "search_net.py"
FAST = {"members": 4, "width": 32, "pretrain_epochs": 3, "frozen_epochs": 10, "finetune_epochs": 10}


def run(*arguments, cwd):
    return subprocess.run(
        [sys.executable, TOOL, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


def write_config(folder, **settings):
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture(scope="module")
def finished_search(tmp_path_factory):
    """Train about six networks on digits and make a recommendation."""
    folder = tmp_path_factory.mktemp("search")
    config = write_config(
        folder,
        space=str(ROOT / "configs/nars/spaces/cifar10_small.yaml"),
        evaluator="training",
        evaluator_args={
            "config": str(ROOT / "configs/digits/fbnetv3_digits.yaml"),
            "overrides": {
                "SOLVER.WARMUP_EPOCHS": 0,
                "SOLVER.BATCH_SIZE": 256,
                "DATA.WORKERS": 0,
                "EMA.DECAY": 0.5,
            },
        },
        constraints={"macs": 1.0e6},
        budgets=[{"macs": 0.8e6}],
        epochs=2,
        evaluations=6,
        initial_trials=3,
        pool_size=200,
        num_classes=10,
        predictor=FAST,
        output="out",
    )
    return folder, config, run("--config", config, cwd=folder)


def test_a_search_with_training_runs(finished_search):
    folder, _, done = finished_search
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    trials = load(folder / "out").trials
    rows = re.findall(r"^ +(\d+) +(initial|proposed|final) +\d/2 +[\d.]+ ", done.stdout, re.MULTILINE)
    assert sorted({int(number) for number, _ in rows}) == [trial.number for trial in trials]
    assert [trial.phase for trial in trials][:3] == ["initial"] * 3
    assert trials[-1].phase == "final"
    assert all(0 <= accuracy <= 100 for trial in trials for accuracy in trial.curve)
    assert 10 <= sum(len(trial.curve) for trial in trials) <= 12
    for trial in trials:
        if len(trial.curve) < 2:  # it could be continued
            continue
        files = {path.name for path in (folder / "out/trials" / f"{trial.number:05d}").iterdir()}
        assert {"arch.yaml", "metrics.jsonl", "config.yaml"} <= files
        # No weights or checkpoints are left
        assert not files & {"checkpoints", "model_final.pth", "tensorboard"}


def test_its_recommendation_trains(finished_search):
    folder, _, done = finished_search
    config = next(path for path in (folder / "out/recommendations").glob("*.yaml"))
    assert str(config.relative_to(folder)) in done.stdout
    tool = [sys.executable, ROOT / "tools/train_net.py", "--config", config, "SOLVER.EPOCHS", "1"]
    training = subprocess.run(tool, cwd=folder, capture_output=True, text=True, check=False)
    assert training.returncode == 0, training.stderr
    assert f"{config.stem} (" in training.stdout


def test_status(finished_search):
    folder, _, _ = finished_search
    status = run("status", "out", cwd=folder)
    assert "evaluator training, finished" in status.stdout
    assert re.search(r"^initial +(\d) +\1 .*\(trial \d\)", status.stdout, re.MULTILINE)
    assert re.search(r"^best: trial \d+, [\d.]+", status.stdout, re.MULTILINE)


def test_report(finished_search):
    folder, _, done = finished_search
    report = (folder / "out/report.html").read_text()
    assert f"report: {Path('out/report.html')}" in done.stdout
    names = {path.stem for path in (folder / "out/report").glob("*.png")}
    assert {"trials", "pareto", "predictor", "pretraining", "samples"} <= names
    links = re.findall(r'href="(recommendations/[^"]+)"', report)
    assert {Path(link).parent.name for link in links} == {"recommendations", "archs", "recipes"}
    assert all((folder / "out" / link).exists() for link in links)
    assert "MODEL:\n  ARCH: archs/" in report  # the config's text, to copy
    (folder / "out/report.html").unlink()
    again = run("report", "out", "--csv", "trials.csv", cwd=folder)
    assert (again.returncode, again.stdout) == (0, "out/report.html\ntrials.csv\n")
    assert (folder / "out/report.html").read_text() == report
    header, *rows = (folder / "trials.csv").read_text().splitlines()
    assert "macs" in header.split(",") and len(rows) == len(load(folder / "out").trials)


def test_watching_a_finished_search(finished_search):
    folder, _, _ = finished_search
    watched = run("watch", "out", "--seconds", "1", cwd=folder)
    assert watched.returncode == 0, watched.stderr
    assert re.match(r"finished: 1[0-2] of 12 epochs; best [\d.]+ \(trial \d+\)\nreport: ", watched.stdout)


def test_watching_ends_with_ctrl_c_and_the_search_does_not(tmp_path):
    space = {"name": "line", "variables": {"x": {"range": [0, 9]}}}
    asked = Search(space_from_dict(space), tmp_path / "out", epochs=1, evaluations=5)
    asked.tell(asked.ask()[0], 1.0)
    watching = subprocess.Popen(
        [sys.executable, "-u", TOOL, "watch", "out"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout.readline() == "not finished: 1 of 5 epochs, 0:00 left; best 1 (trial 0)\n"
    watching.send_signal(signal.SIGINT)
    assert watching.communicate(timeout=60)[0] == "stopped watching; the search goes on\n"
    assert watching.returncode == 0


def test_candidates_that_are_evaluated_elsewhere(tmp_path):
    space = {"name": "line", "variables": {"x": {"range": [0, 9]}}}
    config = write_config(tmp_path, space=space, output="out", epochs=1, evaluations=4, initial_trials=3)
    command = ("--config", config, "--csv", "candidates.csv")
    assert run("--config", config, cwd=tmp_path).stderr == (
        f"error: {config}: evaluator: is missing; only ask and tell do without one\n"
    )
    for count in (3, 1):
        asked = run("ask", *command, "--count", "3" if count == 3 else "2", cwd=tmp_path)
        line = f"candidates.csv: candidates: {count}. Fill in the values, then: search_net.py tell\n"
        assert asked.stdout == line, asked.stderr
        if count == 1:
            waiting = run("ask", *command[:-1], "others.csv", cwd=tmp_path)
            assert waiting.stdout == "others.csv: no candidates; values that are not known yet: 1\n"
        file = tmp_path / "candidates.csv"
        header, *rows = file.read_text().splitlines()
        assert header == "trial,epochs,x,value"
        file.write_text("\n".join([header, *(row + row.split(",")[2] for row in rows)]) + "\n")
        told = run("tell", *command, cwd=tmp_path)
        assert told.stdout == f"{tmp_path}/out: new values: {count}\n", told.stderr
    over = run("ask", *command, cwd=tmp_path)
    assert "the search is over: all evaluations are used, or no candidate is left" in over.stdout
    assert re.search(r"line_best: measured \d, predicted [\d.]+ ± [\d.]+\n", over.stdout)
    assert (tmp_path / "out/report.html").exists()


def test_resuming_a_finished_search_trains_nothing(finished_search):
    folder, config, _ = finished_search
    before = [path.stat().st_mtime for path in sorted((folder / "out/trials").rglob("*"))]
    done = run("--config", config, "--resume", "budgets", "[{macs: 0.9e6}]", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert before == [path.stat().st_mtime for path in sorted((folder / "out/trials").rglob("*"))]
    provenance = json.loads((folder / "out/recommendations/cifar10_small_macs_900k.json").read_text())
    assert provenance["columns"]["macs"] <= 0.9e6


def test_recipes_for_a_network_of_torchvision(tmp_path):
    """Sec. 4.1, Table 3: the config names the network, and the search finds its recipe."""
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
        evaluations=3,
        initial_trials=2,
        pool_size=50,
        predictor=FAST,
        executor="serial",
    )
    (recommendation,) = result.recommendations
    cfg = load_config(recommendation.files.config)
    assert cfg.MODEL.ARCH == "torchvision/squeezenet1_1"
    assert recommendation.candidate.recipe.training_lr == cfg.SOLVER.LR


@pytest.mark.parametrize(
    ("settings", "arguments", "error"),
    [
        ({}, (), "search.yaml: space: is missing"),
        ({"space": "nowhere.yaml", "evaluator": "table"}, (), "nowhere.yaml: cannot be read"),
        ({"space": 3, "evaluator": "table"}, (), "search.yaml: space: 3 must be a file or a space"),
        ({"space": {"name": "s"}, "evaluator": "table"}, (), "search.yaml: variables: is missing"),
        ({"spce": 1}, (), "search.yaml: spce: unknown key: did you mean space"),
        ("good", ("budget", "3"), "unknown key budget: did you mean budgets"),
        ("good", ("rounds",), "rounds has no value: pass overrides as KEY VALUE pairs"),
        ("good", ("epochs.x", "3"), "epochs: 1 must be a mapping to have the key x"),
        ("good", ("rounds", "three"), "search.yaml: rounds: 'three' must be an integer"),
        ("good", ("evaluator", "tabel"), "unknown evaluator 'tabel': did you mean table"),
        (
            "good",
            ("evaluator", "training"),
            "evaluator 'training' with {}: missing a required argument: 'config'",
        ),
        ("good", ("executor", "cloud"), "executor: 'cloud' must be one of local, ray, serial"),
        (
            "good",
            ("constraints", "{macs: 3}"),
            "constraints.macs: s has no architectures; remove the bound",
        ),
    ],
)
def test_errors_are_one_line(settings, arguments, error, tmp_path):
    if settings == "good":
        space = {"name": "s", "variables": {"a": {"range": [0, 9]}}}
        settings = {"space": space, "evaluator": "tests.nars.toy:constant", "epochs": 1}
    done = run("--config", write_config(tmp_path, **settings), *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert error in done.stderr
    assert not (tmp_path / "output").exists()


def test_a_folder_without_a_search(tmp_path):
    for command in ("status", "report", "watch"):
        done = run(command, tmp_path, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"error: {tmp_path}: contains no search (no trials.sqlite)\n"
