"""A training that is killed again and again ends with the weights of one that is not, and no checkpoint is torn."""

import json

import pytest
import torch

from fbnetv3.training.run_state.checkpoints import Checkpoints
from fbnetv3.training.run_state.metrics import read_metrics
from tests.hardening import victims
from tests.hardening.conftest import THOROUGH
from tests.hardening.killing import ended, kill, kill_while

KILLS = 3 * THOROUGH


@pytest.fixture(scope="module")
def undisturbed(nursery, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert ended(started(nursery, folder, False)) == 0
    return folder


def started(nursery, folder, resume=True):
    process = nursery.Process(target=victims.train, args=(folder, resume))
    process.start()
    return process


def outcome(folder):
    """Weights, and the evaluations in the metrics file."""
    final = torch.load(folder / "model_final.pth", weights_only=True)
    entries = [entry for entry in read_metrics(folder / "metrics.jsonl") if "val_top1" in entry]
    tensors = {f"{part}.{key}": value for part in ("model", "model_ema") for key, value in final[part].items()}
    return tensors, entries


def assert_same(found, expected):
    (tensors, entries), (wanted, curve) = outcome(found), outcome(expected)
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[key]) for key, value in tensors.items())
    assert entries == curve


def test_it_ends_as_the_undisturbed_one(nursery, undisturbed, tmp_path, chance, record_property):
    kills = torn = lives = 0
    while kills < KILLS:
        folder = tmp_path / f"life{lives}" / "run"
        folder.parent.mkdir()
        while True:
            process = started(nursery, folder)
            if kills >= KILLS:
                assert ended(process) == 0
                break
            if not kill(process, folder, ".partial_*", chance, 1.5):
                assert process.exitcode == 0
                break
            kills += 1
            torn += bool(list(folder.rglob(".partial_*")))
            checkpoints = Checkpoints(folder / "checkpoints")
            for path in checkpoints.all():
                checkpoints.load(path)
            for name in ("model_best.pth", "model_final.pth"):
                if (folder / name).exists():
                    torch.load(folder / name, weights_only=True)
        assert_same(folder, undisturbed)
        assert not list(folder.rglob(".partial_*")) or not kills
        lives += 1
    record_property("kills", json.dumps({"kills": kills, "in a write": torn, "runs": lives}))
    print(f"trainings: {kills} kills, {torn} of them in a write, {lives} runs")


def test_two_at_once_in_one_folder(nursery, undisturbed, tmp_path):
    """One trains, the other is told so; with --resume too, and with the first one gone the folder is free."""
    for number in range(THOROUGH):
        folder = tmp_path / f"pair{number}" / "run"
        folder.parent.mkdir()
        pair = [started(nursery, folder, resume) for resume in (False, bool(number % 2))]
        assert sorted(ended(process) for process in pair) == [0, victims.REFUSED]
        assert_same(folder, undisturbed)


def test_the_folder_of_a_killed_one_is_free_at_once(nursery, undisturbed, tmp_path):
    folder = tmp_path / "run"
    first = started(nursery, folder)
    assert kill_while(first, folder, "step_00000004.pth", _First())
    assert ended(started(nursery, folder)) == 0
    assert_same(folder, undisturbed)


class _First:
    def integers(self, *_):
        return 1
