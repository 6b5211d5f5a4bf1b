"""Architectures by name: built-in ones and those that users add."""

from dataclasses import replace

import pytest

import fbnetv3
from fbnetv3.arch import (
    ArchError,
    adapt_to_small_images,
    configs_folder,
    dump_arch,
    get_arch,
    list_archs,
    save_arch,
)
from fbnetv3.errors import UnknownNameError, UsageError


@pytest.fixture
def mine():
    return adapt_to_small_images(get_arch("fbnetv3_a0"), name="mine")


def test_the_published_family_is_registered():
    published = {"fbnetv3_a0", *(f"fbnetv3_{letter}" for letter in "abcdefg"), "fbnetv3_20g"}
    assert published <= set(list_archs())


def test_a_and_b_are_one_architecture_at_two_resolutions():
    a, b = get_arch("fbnetv3_a"), get_arch("fbnetv3_b")
    assert a.stages == b.stages
    assert (a.resolution, b.resolution) == (224, 248)


def test_register_a_definition(mine):
    fbnetv3.register_arch(mine)
    assert "mine" in fbnetv3.list_models()
    assert get_arch("mine") is mine


def test_register_a_file(mine, tmp_path):
    save_arch(mine, tmp_path / "x.yaml")
    fbnetv3.register_arch(tmp_path / "x.yaml")
    fbnetv3.register_arch(tmp_path / "x.yaml")  # again: no effect
    assert get_arch("mine") == mine


def test_register_a_folder(mine, tmp_path):
    (tmp_path / "deep").mkdir()
    save_arch(mine, tmp_path / "deep" / "mine.yaml")
    assert fbnetv3.register_arch_folder(tmp_path) == ["mine"]


def test_an_empty_folder(tmp_path):
    with pytest.raises(UsageError, match="no architecture files"):
        fbnetv3.register_arch_folder(tmp_path)
    with pytest.raises(UsageError, match="gone: no such folder"):
        fbnetv3.register_arch_folder(tmp_path / "gone")


def test_a_file_that_changed_since_it_was_registered(mine, tmp_path):
    save_arch(mine, tmp_path / "x.yaml")
    fbnetv3.register_arch(tmp_path / "x.yaml")
    save_arch(replace(mine, source="changed"), tmp_path / "x.yaml")
    with pytest.raises(UsageError, match=r"x.yaml has changed since architecture 'mine' was registered"):
        fbnetv3.register_arch(tmp_path / "x.yaml")


def test_a_taken_name_says_where_the_first_entry_comes_from(mine, tmp_path):
    fbnetv3.register_arch(mine)
    with pytest.raises(
        UsageError, match=r"test_arch_registry.py:\d+ is already registered by .*test_arch_registry.py:\d+"
    ):
        fbnetv3.register_arch(mine)
    save_arch(mine, tmp_path / "x.yaml")
    with pytest.raises(UsageError, match=r"x.yaml is already registered by .*test_arch_registry.py:\d+"):
        fbnetv3.register_arch(tmp_path / "x.yaml")


def test_a_shipped_name_is_taken(tmp_path):
    (tmp_path / "a.yaml").write_text(dump_arch(get_arch("fbnetv3_a")))
    with pytest.raises(UsageError, match=r"already registered by .*configs/archs/fbnetv3_a.yaml"):
        fbnetv3.register_arch(tmp_path / "a.yaml")


def test_an_unknown_name_suggests_similar_ones():
    with pytest.raises(
        UnknownNameError, match=r"unknown architecture 'fbnetv3_cifar': did you mean .*fbnetv3_\w_cifar"
    ):
        get_arch("fbnetv3_cifar")
    with pytest.raises(KeyError):
        get_arch("resnet")


def test_a_path_is_read_without_registering(mine, tmp_path):
    save_arch(mine, tmp_path / "x.yaml")
    assert get_arch(tmp_path / "x.yaml") == mine
    assert "mine" not in list_archs()
    with pytest.raises(ArchError, match="cannot be read"):
        get_arch("nowhere/x.yaml")


def test_every_shipped_file_has_the_name_of_its_network():
    files = sorted((configs_folder() / "archs").rglob("*.yaml"))
    assert len(files) >= 9
    assert all(get_arch(file.stem).name == file.stem for file in files)
