"""Checkpoints that are damaged, too large, or made to run code: refused, and the network stays as it was."""

import io
import pickle
import shutil
import zipfile

import pytest
import torch

import fbnetv3
from fbnetv3.errors import UserError, WeightsError
from fbnetv3.modeling import load_weights
from fbnetv3.training import train
from fbnetv3.training.run_state.checkpoints import Checkpoints
from tests.hardening.conftest import THOROUGH
from tests.hardening.traps import Runs
from tests.hardening.victims import config_of


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "good.pth"
    torch.save(fbnetv3.create_model("fbnetv3_digits", num_classes=10).state_dict(), path)
    return path.read_bytes()


def network():
    return fbnetv3.create_model("fbnetv3_digits", num_classes=10)


def refused(path, message=None):
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_weights(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["zip", "plain pickle", "legacy", "in a state dict", "in an archive", "renamed"])
def test_checkpoints_that_would_run_code(tmp_path, kind, weights):
    path, trace = tmp_path / ("x.safetensors" if kind == "renamed" else "x.pth"), tmp_path / "trace"
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(Runs(trace)))
    elif kind == "in an archive":
        with zipfile.ZipFile(io.BytesIO(weights)) as good, zipfile.ZipFile(path, "w") as bad:
            for entry in good.infolist():
                hostile = entry.filename.endswith("data.pkl")
                bad.writestr(entry.filename, pickle.dumps(Runs(trace)) if hostile else good.read(entry))
    else:
        value = {"head.weight": torch.zeros(1), "x": Runs(trace)} if kind == "in a state dict" else Runs(trace)
        torch.save(value, path, _use_new_zipfile_serialization=kind != "legacy")
    refused(path)
    with pytest.raises(WeightsError):
        Checkpoints(tmp_path).load(path)
    assert not trace.exists()


def test_checkpoints_cut_short_or_with_a_wrong_byte(tmp_path, weights, chance):
    """Never a crash. What loads all the same has a wrong byte in a weight, which torch's files do not show."""
    path = tmp_path / "x.pth"
    for _ in range(20 * THOROUGH):
        path.write_bytes(weights[: chance.integers(len(weights))])
        refused(path)
    for _ in range(20 * THOROUGH):
        data = bytearray(weights)
        # the archive's index, its names and the pickle; weights are most of it
        place = chance.integers(4096) if chance.random() < 0.5 else len(data) - 1 - chance.integers(8192)
        data[place] ^= 1 << chance.integers(8)
        path.write_bytes(data)
        try:
            load_weights(network(), path)
        except WeightsError as error:
            assert str(error).startswith(str(path))


def test_checkpoints_that_are_bombs(tmp_path, weights):
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(io.BytesIO(weights)) as good, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bad:
        for entry in good.infolist():
            content = bytes(200_000_000) if entry.filename.endswith("data/0") else good.read(entry)
            bad.writestr(entry.filename, content)
    assert path.stat().st_size < 3_000_000
    refused(path, "damaged")
    huge = torch.zeros(1).as_strided((100_000, 100_000), (0, 0))  # forty gigabytes in four bytes
    torch.save({**network().state_dict(), "head.weight": huge, "backbone.x": huge}, path)
    refused(path, "does not fit")


@pytest.mark.parametrize("name", ["a.pth", "a.jpg", "a.safetensors", "a"])
@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04" + bytes(100), b"PK\x05\x06" + bytes(18), b"\x80\x02."])
def test_files_that_are_no_checkpoints(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training that ends before its time."""
    folder = tmp_path_factory.mktemp("run") / "out"
    train(config_of(folder), [lambda result: False])
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        *({"model": value} for value in ({}, None, {"head.weight": torch.zeros(3)}, [1])),
        *({"optimizer": value} for value in ({}, 3, {"state": {}, "param_groups": []})),
        *({"about": value} for value in ({}, None, [])),
        *({"rng": value} for value in ([], [torch.zeros(3)], None)),
        *({"metrics": value} for value in (3, [1])),
        {"epoch": "x"},
        {"damaged": 3},
        {"model_ema": {"x": 1}},
    ],
    ids=str,
)
def test_runs_do_not_go_on_from_what_makes_no_sense(run, tmp_path, changes):
    folder = shutil.copytree(run, tmp_path / "out")
    path = Checkpoints(folder / "checkpoints").latest()
    for other in Checkpoints(folder / "checkpoints").all()[:-1]:
        other.unlink()
    torch.save({**torch.load(path, weights_only=True), **changes}, path)
    try:
        train(config_of(folder), [lambda result: False], resume=True)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert changes == {"rng": []}  # as of fewer processes than there are
