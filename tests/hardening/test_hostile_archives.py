"""Corrupt and malicious tar files and dataset pickles raise an error that names the file."""

import io
import pickle
import tarfile

import pytest
from PIL import Image

from fbnetv3.data import build_dataset
from fbnetv3.errors import DataError
from tests.hardening.unpickling import CreatesFolder


def encode_jpeg():
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "JPEG")
    return file.getvalue()


JPEG = encode_jpeg()


def write_shard(folder, members, truncate=0):
    """Write a shard with (name, content, attributes) members, and remove its last `truncate` bytes."""
    (folder / "train").mkdir(exist_ok=True)
    path = folder / "train" / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name, content, attributes in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in attributes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    if truncate:
        path.write_bytes(path.read_bytes()[:-truncate])
    return folder


SHARDS = {
    "class 999,999,999": [("a.jpg", JPEG, {}), ("a.cls", b"999999999", {})],
    "class of 90 digits": [("a.jpg", JPEG, {}), ("a.cls", b"9" * 90, {})],
    "class of a million digits": [("a.jpg", JPEG, {}), ("a.cls", b"1" * 1_000_000, {})],
    "class is no number": [("a.jpg", JPEG, {}), ("a.cls", b"cat", {})],
    "negative class": [("a.jpg", JPEG, {}), ("a.cls", b"-3", {})],
    "image is a link": [
        ("a.jpg", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}),
        ("a.cls", b"0", {}),
    ],
    "image is a device": [("a.jpg", b"", {"type": tarfile.CHRTYPE}), ("a.cls", b"0", {})],
    "empty": [],
}


@pytest.mark.parametrize("case", SHARDS)
def test_hostile_shards_are_named(tmp_path, case):
    with pytest.raises(DataError, match=r"0\.tar"):
        build_dataset("shards", str(write_shard(tmp_path, SHARDS[case])), "train")


def test_members_are_never_extracted(tmp_path):
    """Regardless of the path in a member's name."""
    folder = write_shard(tmp_path, [("../../../evil.jpg", JPEG, {}), ("../../../evil.cls", b"0", {})])
    assert len(build_dataset("shards", str(folder), "train")) == 1
    assert not list(tmp_path.parent.rglob("evil*"))


@pytest.mark.parametrize("missing_bytes", [9_000, 9_600, 10_000])
def test_truncated_shards_are_refused(tmp_path, missing_bytes):
    folder = write_shard(tmp_path, [("a.jpg", JPEG, {}), ("a.cls", b"0", {})], missing_bytes)
    with pytest.raises(DataError):
        build_dataset("shards", str(folder), "train")


def test_cifar10_pickles_are_loaded_only_if_their_checksum_is_right(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(CreatesFolder(tmp_path / "executed")))
    with pytest.raises(DataError, match="corrupt"):
        build_dataset("cifar10", str(tmp_path), "train")
    assert not (tmp_path / "executed").exists()
