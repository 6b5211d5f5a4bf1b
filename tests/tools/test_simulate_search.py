"""The tool that simulates searches, as a user runs it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--pool", 300, "--batch", 6, "--rounds", 2, "--epochs", 8)
RECORDED = ROOT / "docs" / "searches" / "cifar10_small.sqlite"


def test_a_line_for_each_size_and_a_picture(tool, tmp_path):
    picture = tmp_path / "scaling.png"
    done = tool("simulate_search", *SMALL, "--gpus", 2, 8, "--asynchronous", "--repeats", 2, "--picture", picture)
    assert done.code == 0, done.err
    assert "12 trials of" in done.out and "10,700 GPU hours on one GPU each, calibrated:" in done.out
    assert "8 epochs in round 1, then 6" in done.out
    assert len(re.findall(r"^ +[28] +\d+ +(?:rounds|asynchronous) ", done.out, re.MULTILINE)) == 4
    assert len(re.findall(r"^\d GPUs: -?[\d.]+ % less wall time asynchronously$", done.out, re.MULTILINE)) == 2
    assert picture.exists()


def test_nothing_left_to_chance(tool):
    """One GPU works all the time: the GPU hours are the calibrated ones, and the startup of each trial."""
    calm = ("--failure-rate", 0, "--stragglers", 0, "--startup", 0)
    done = tool("simulate_search", *SMALL, "--gpus", 1, *calm)
    assert done.code == 0, done.err
    assert re.search(r"1 +1 +rounds +445\.83 +445\.83 to 445\.83 +10,700 +100 % +0\.0 +0\.00 +6$", done.out)


def test_a_given_rate(tool):
    done = tool("simulate_search", *SMALL, "--gpus", 2, "--repeats", 1, "--rate", "7.66e11")
    assert done.code == 0, done.err
    assert "from the rate: 7.66e+11 multiply-adds a second" in done.out and "100 % of a V100's" in done.out


def test_a_search_that_has_run(tool):
    space = ROOT / "configs" / "nars" / "spaces" / "cifar10_small.yaml"
    done = tool("simulate_search", "--replay", RECORDED, "--space", space)
    assert done.code == 0, done.err
    assert "times by macs, at each round's rate: deviation" in done.out
    assert len(re.findall(r"^ +[123] +\d+ +[12] ", done.out, re.MULTILINE)) == 4
    assert "times as recorded: " in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", 0], "0 GPUs: at least 1 is needed"),
        (["--gpus", 4, "--gpus-per-trial", 8], "8 GPUs per trial: choose from 1 to 4"),
        (["--gpus-per-trial", "some"], "--gpus-per-trial some: is neither auto nor a number"),
        (["--failure-rate", -1], "failure rate -1: is a number of at least 0"),
        (["--stop-epoch", 9], "stop epoch 9: choose one from 1 to 8"),
        (["--stop-epoch", 0], "stop epoch 0: choose one from 1 to 8"),
        (["--repeats", 0], "at least one simulation is needed"),
        (["--retries", -1], "retries: -1 is not a whole number of at least 0"),
        (["--costly", 0.001], "costly 0.001: leaves"),
        (["--measure", "time"], "argument --measure: invalid choice"),
        (["--replay", "none.sqlite"], "none.sqlite: cannot be read"),
        (["--space", "none.yaml"], "none.yaml"),
    ],
)
def test_wrong_calls_are_one_line(arguments, message, tool):
    done = tool("simulate_search", *SMALL, *arguments)
    assert done.code in (1, 2)
    assert message in done.err
    assert len(done.err.splitlines()) == 1
