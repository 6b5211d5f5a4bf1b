"""A training run that is killed repeatedly ends with an uninterrupted run's weights; every checkpoint is complete."""

import pytest
import torch

from fbnetv3.training.run_state.checkpoints import Checkpoints
from fbnetv3.training.run_state.metrics import read_metrics
from fbnetv3.utils.files import PARTIAL_PREFIX
from tests.hardening import process_targets
from tests.hardening.conftest import SCALE
from tests.hardening.killing import kill_during_write, kill_randomly, wait_for_exit

KILLS = 3 * SCALE
PARTIAL_FILES = f"{PARTIAL_PREFIX}*"


def start_training(forkserver, folder, resume=True):
    process = forkserver.Process(target=process_targets.run_training, args=(folder, resume))
    process.start()
    return process


@pytest.fixture(scope="module")
def uninterrupted(forkserver, tmp_path_factory):
    """Return the folder of a training run that was not killed."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert wait_for_exit(start_training(forkserver, folder, False)) == 0
    return folder


def final_weights(folder):
    """Return raw and averaged weights."""
    content = torch.load(folder / "model_final.pth", weights_only=True)
    return {
        f"{part}.{key}": value for part in ("model", "model_ema") for key, value in content[part].items()
    }


def evaluations(folder):
    return [entry for entry in read_metrics(folder / "metrics.jsonl") if "val_top1" in entry]


def assert_same_run(folder, reference):
    weights = final_weights(folder)
    expected = final_weights(reference)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in weights.items())
    assert evaluations(folder) == evaluations(reference)


def assert_files_are_complete(folder):
    checkpoints = Checkpoints(folder / "checkpoints")
    for path in checkpoints.paths():
        checkpoints.load(path)
    for name in ("model_best.pth", "model_final.pth"):
        if (folder / name).exists():
            torch.load(folder / name, weights_only=True)


def test_a_killed_training_resumes_to_the_same_weights(forkserver, uninterrupted, tmp_path, rng):
    kills = 0
    kills_during_write = 0
    runs = 0
    while kills < KILLS:
        folder = tmp_path / f"run{runs}" / "run"
        folder.parent.mkdir()
        while True:
            process = start_training(forkserver, folder)
            if kills >= KILLS:
                assert wait_for_exit(process) == 0
                break
            if not kill_randomly(process, folder, PARTIAL_FILES, rng, 1.5):
                assert process.exitcode == 0
                break
            kills += 1
            kills_during_write += bool(list(folder.rglob(PARTIAL_FILES)))
            assert_files_are_complete(folder)
        assert_same_run(folder, uninterrupted)
        assert not list(folder.rglob(PARTIAL_FILES)) or not kills
        runs += 1
    print(f"training runs: {kills} kills, {kills_during_write} of them during a write, {runs} runs")


def test_two_trainings_in_one_folder_exclude_each_other(forkserver, uninterrupted, tmp_path):
    """Whether or not the second one resumes."""
    for number in range(SCALE):
        folder = tmp_path / f"pair{number}" / "run"
        folder.parent.mkdir()
        processes = [start_training(forkserver, folder, resume) for resume in (False, bool(number % 2))]
        assert sorted(wait_for_exit(process) for process in processes) == [0, process_targets.USER_ERROR]
        assert_same_run(folder, uninterrupted)


def test_the_folder_of_a_killed_training_is_unlocked_at_once(forkserver, uninterrupted, tmp_path):
    folder = tmp_path / "run"
    assert kill_during_write(start_training(forkserver, folder), folder, "step_00000004.pth")
    assert wait_for_exit(start_training(forkserver, folder)) == 0
    assert_same_run(folder, uninterrupted)
