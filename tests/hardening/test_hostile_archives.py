"""Tar files and pickles of datasets, damaged or made to harm: an error that names them."""

import io
import pickle
import tarfile

import pytest
from PIL import Image

from fbnetv3.data import build_dataset
from fbnetv3.errors import DataError
from tests.hardening.traps import Runs


def jpeg():
    file = io.BytesIO()
    Image.new("RGB", (40, 30)).save(file, "JPEG")
    return file.getvalue()


JPEG = jpeg()


def shard(folder, members, cut=0):
    (folder / "train").mkdir(exist_ok=True)
    path = folder / "train" / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name, content, changes in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in changes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    return folder


SHARDS = {
    "class of a billion": [("a.jpg", JPEG, {}), ("a.cls", b"999999999", {})],
    "class beyond all": [("a.jpg", JPEG, {}), ("a.cls", b"9" * 90, {})],
    "class of a megabyte": [("a.jpg", JPEG, {}), ("a.cls", b"1" * 1_000_000, {})],
    "class that is none": [("a.jpg", JPEG, {}), ("a.cls", b"cat", {})],
    "negative class": [("a.jpg", JPEG, {}), ("a.cls", b"-3", {})],
    "a link for an image": [("a.jpg", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}), ("a.cls", b"0", {})],
    "a device": [("a.jpg", b"", {"type": tarfile.CHRTYPE}), ("a.cls", b"0", {})],
    "nothing": [],
}


@pytest.mark.parametrize("case", SHARDS)
def test_hostile_shards(tmp_path, case):
    with pytest.raises(DataError, match=r"0\.tar"):
        build_dataset("shards", str(shard(tmp_path, SHARDS[case])), "train")


def test_shards_unpack_nothing(tmp_path):
    """A name may lead anywhere: it is no more than a name."""
    folder = shard(tmp_path / "", [("../../../evil.jpg", JPEG, {}), ("../../../evil.cls", b"0", {})])
    assert len(build_dataset("shards", str(folder), "train")) == 1
    assert not list(tmp_path.parent.rglob("evil*"))
    for cut in (9_000, 9_600, 10_000):
        with pytest.raises(DataError):
            build_dataset("shards", str(shard(tmp_path, [("a.jpg", JPEG, {}), ("a.cls", b"0", {})], cut)), "train")


def test_pickles_of_cifar10_are_read_only_where_their_checksum_is_right(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(pickle.dumps(Runs(tmp_path / "trace")))
    with pytest.raises(DataError, match="damaged"):
        build_dataset("cifar10", str(tmp_path), "train")
    assert not (tmp_path / "trace").exists()
