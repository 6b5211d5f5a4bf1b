"""YAML files: strict parsing, inheritance, paths next to a file."""

import pytest

from fbnetv3.errors import FieldError
from fbnetv3.utils.yaml_files import (
    NotYAMLError,
    parse_number,
    parse_yaml,
    read_mapping,
    read_with_bases,
    resolve_in_folder,
)


@pytest.mark.parametrize(
    ("text", "problem", "line"),
    [
        ("a: 1\nb: 2\na: 3", "duplicate key 'a'", 3),
        ("a: {x: 1, x: 2}", "duplicate key 'x'", 1),
        ("a: [1", "did not find expected", 2),
        ("a: 2024-13-01", "month must be in", None),
        ("a: !!python/name:os.system", "could not determine a constructor", 1),
    ],
)
def test_invalid_yaml_has_one_line_and_its_number(text, problem, line):
    with pytest.raises(NotYAMLError, match=f"^.*{problem}[^\n]*$") as error:
        parse_yaml(text)
    assert line is None or abs(error.value.line - line) <= 1  # PyYAML may point to the end of the text


def test_merge_keys_are_not_duplicates():
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}") == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "x.yaml: cannot be read: No such file"),
        (b"- 1", "x.yaml: must be a mapping with the keys a, b"),
        (b"a: 1\na: 2", "x.yaml: line 2: not YAML: duplicate key 'a'"),
        (b"\xff\xfe\x00", "x.yaml: .*not YAML"),
    ],
)
def test_what_is_no_mapping(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.yaml").write_bytes(content)
    with pytest.raises(FieldError, match=message):
        read_mapping(tmp_path / "x.yaml", FieldError, ("a", "b"))


def test_bases_are_merged_section_by_section(tmp_path):
    (tmp_path / "base.yaml").write_text("a: {x: 1, y: 2}\nb: 3")
    (tmp_path / "x.yaml").write_text("_BASE_: base.yaml\na: {x: 4}")
    assert read_with_bases(tmp_path / "x.yaml") == {"a": {"x": 4, "y": 2}, "b": 3}


def test_paths_are_resolved_beside_the_file_that_sets_them(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "arch.yaml").touch()
    (tmp_path / "deep" / "base.yaml").write_text("MODEL: {ARCH: arch.yaml}\nNAME: arch.yaml")
    (tmp_path / "x.yaml").write_text("_BASE_: deep/base.yaml")
    values = read_with_bases(tmp_path / "x.yaml", ("MODEL.ARCH", "OTHER.KEY"))
    assert values == {"MODEL": {"ARCH": str(tmp_path / "deep" / "arch.yaml")}, "NAME": "arch.yaml"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: gone.yaml", "x.yaml: _BASE_: .*gone.yaml does not exist"),
        ("_BASE_: [x.yaml]", "x.yaml: _BASE_: circular inheritance: .*x.yaml -> .*x.yaml"),
        ("_BASE_: 3", "x.yaml: _BASE_: 3 must be a path or a list of paths"),
        ("_BASE_:", "x.yaml: _BASE_: None must be a path or a list of paths"),
        (
            "_BASE_: base.yaml\na: {x: 1}",
            "x.yaml: a is a section in this file but a single value in its _BASE_ file",
        ),
    ],
)
def test_invalid_bases(tmp_path, text, message):
    (tmp_path / "base.yaml").write_text("a: 1")
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(FieldError if "section" not in message else ValueError, match=message):
        read_with_bases(tmp_path / "x.yaml")


def test_resolve_beside(tmp_path):
    (tmp_path / "x.yaml").touch()
    assert resolve_in_folder("x.yaml", tmp_path) == str(tmp_path / "x.yaml")
    for value in ("y.yaml", "fbnetv3_a", "", str(tmp_path / "x.yaml")):
        assert resolve_in_folder(value, tmp_path) == value


def test_parse_number():
    assert [parse_number(value) for value in ("1e-5", "400e6", 3, "text", None)] == [
        1e-5,
        4e8,
        3,
        "text",
        None,
    ]
