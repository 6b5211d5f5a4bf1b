"""Corrupt, oversized and malicious checkpoints are refused, and leave the network unchanged."""

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
from tests.hardening.conftest import SCALE
from tests.hardening.process_targets import tiny_config
from tests.hardening.unpickling import CreatesFolder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "good.pth"
    torch.save(fbnetv3.create_model("fbnetv3_digits", num_classes=10).state_dict(), path)
    return path.read_bytes()


def build_network():
    return fbnetv3.create_model("fbnetv3_digits", num_classes=10)


def assert_weights_error(path, message=None):
    model = build_network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_weights(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


KINDS = ["zip", "plain pickle", "legacy", "in a state dict", "in a rewritten archive", "renamed"]


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_never_run_code(tmp_path, kind, weights):
    path = tmp_path / ("x.safetensors" if kind == "renamed" else "x.pth")
    executed = tmp_path / "executed"
    malicious = CreatesFolder(executed)
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(malicious))
    elif kind == "in a rewritten archive":
        with zipfile.ZipFile(io.BytesIO(weights)) as original, zipfile.ZipFile(path, "w") as rewritten:
            for entry in original.infolist():
                is_pickle = entry.filename.endswith("data.pkl")
                rewritten.writestr(
                    entry.filename, pickle.dumps(malicious) if is_pickle else original.read(entry)
                )
    else:
        content = (
            {"head.weight": torch.zeros(1), "x": malicious} if kind == "in a state dict" else malicious
        )
        torch.save(content, path, _use_new_zipfile_serialization=kind != "legacy")
    assert_weights_error(path)
    with pytest.raises(WeightsError):
        Checkpoints(tmp_path).load(path)
    assert not executed.exists()


def test_truncated_checkpoints_and_flipped_bits_never_crash(tmp_path, weights, rng):
    """A flipped bit in a weight may go unnoticed: torch's files have no checksums."""
    path = tmp_path / "x.pth"
    for _ in range(20 * SCALE):
        path.write_bytes(weights[: rng.integers(len(weights))])
        assert_weights_error(path)
    for _ in range(20 * SCALE):
        data = bytearray(weights)
        # The archive's index, its names and the pickle rather than the weights, which are most of the file
        position = rng.integers(4096) if rng.random() < 0.5 else len(data) - 1 - rng.integers(8192)
        data[position] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            load_weights(build_network(), path)
        except WeightsError as error:
            assert str(error).startswith(str(path))


def test_decompression_bombs_are_refused(tmp_path, weights):
    path = tmp_path / "x.pth"
    with (
        zipfile.ZipFile(io.BytesIO(weights)) as original,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in original.infolist():
            is_weight = entry.filename.endswith("data/0")
            bomb.writestr(entry.filename, bytes(200_000_000) if is_weight else original.read(entry))
    assert path.stat().st_size < 3_000_000
    assert_weights_error(path, "unpacks to more than its size")
    huge = torch.zeros(1).as_strided((100_000, 100_000), (0, 0))  # 40 GB in 4 bytes
    torch.save({**build_network().state_dict(), "head.weight": huge, "backbone.x": huge}, path)
    assert_weights_error(path, "does not fit")


@pytest.mark.parametrize("name", ["a.pth", "a.jpg", "a.safetensors", "a"])
@pytest.mark.parametrize(
    "content", [b"", b"PK", b"PK\x03\x04" + bytes(100), b"PK\x05\x06" + bytes(18), b"\x80\x02."]
)
def test_other_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert_weights_error(tmp_path / name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a training run that was stopped after an epoch."""
    folder = tmp_path_factory.mktemp("run") / "out"
    train(tiny_config(folder), [lambda result: False])
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        *({"model": value} for value in ({}, None, {"head.weight": torch.zeros(3)}, [1])),
        *({"optimizer": value} for value in ({}, 3, {"state": {}, "param_groups": []})),
        *({"metadata": value} for value in ({}, None, [])),
        *({"rng": value} for value in ([], [torch.zeros(3)], None)),
        *({"metrics": value} for value in (3, [1])),
        {"epoch": "x"},
        {"corrupt_images": 3},
        {"model_ema": {"x": 1}},
    ],
    ids=str,
)
def test_trainings_do_not_resume_from_inconsistent_checkpoints(run, tmp_path, changes):
    folder = shutil.copytree(run, tmp_path / "out")
    path = Checkpoints(folder / "checkpoints").paths()[-1]
    for older in Checkpoints(folder / "checkpoints").paths()[:-1]:
        older.unlink()
    torch.save({**torch.load(path, weights_only=True), **changes}, path)
    try:
        train(tiny_config(folder), [lambda result: False], resume=True)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert changes == {"rng": []}  # as after a run with fewer processes
