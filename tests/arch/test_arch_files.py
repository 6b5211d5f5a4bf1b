"""Definitions are read from YAML and written to it; errors name the file and the field."""

from dataclasses import fields, replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fbnetv3.arch import (
    ArchDef,
    ArchError,
    Row,
    arch_from_dict,
    compute_cost,
    dump_arch,
    get_arch,
    list_archs,
    load_arch,
    save_arch,
)

PLAIN = """\
name: foo
resolution: 64
stages:
- rows:
  - {block: conv, kernel: 3, channels: 16, stride: 2}
- rows:
  - {block: mbconv, kernel: 3, expansion: 4, channels: 24, stride: 2}
  - {block: mbconv, kernel: 5, expansion: 2, channels: 24, repeat: 2}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="foo.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", list_archs())
def test_every_architecture_survives_a_round_trip(name, tmp_path):
    arch = get_arch(name)
    save_arch(arch, tmp_path / "a.yaml")
    assert load_arch(tmp_path / "a.yaml") == arch


def test_a_plain_file(write):
    arch = load_arch(write(PLAIN))
    assert (arch.name, arch.resolution, arch.resize) == ("foo", 64, 64)
    assert arch.stages[1].rows[1].repeat == 2


def test_rows_are_written_in_the_order_of_table_2():
    row = dump_arch(get_arch("fbnetv3_c")).splitlines()[-3]
    assert list(yaml.safe_load(row)[0]) == [
        "block",
        "kernel",
        "expansion",
        "channels",
        "repeat",
        "stride",
        "se",
        "act",
    ]


def test_nesting_without_end_is_an_error_of_one_line(write):
    """PyYAML complains where it ends, or since 6.0.4 of its depth."""
    with pytest.raises(ArchError, match=r"foo\.yaml: line [12]: not YAML: [^\n]+$"):
        load_arch(write("[" * 3000))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kernel: 5", "kernel: 4", "stages[1].rows[1].kernel: 4 is even"),
        ("kernel: 5", "kernal: 5", "stages[1].rows[1].kernal: unknown key: did you mean kernel?"),
        ("kernel: 5, ", "", "stages[1].rows[1].kernel: is missing; mbconv blocks require it"),
        ("channels: 16, ", "", "stages[0].rows[0].channels: is missing"),
        ("name: foo", "nome: foo", "nome: unknown key: did you mean name?"),
        ("name: foo\n", "", "name: is missing"),
        ("resolution: 64", "resolution: big", "resolution: 'big' must be an integer"),
        (
            "resolution: 64",
            "resolution: 64\nresolution: 32",
            "line 3: not YAML: duplicate key 'resolution'",
        ),
        ("stages:", "stages: 3\nsteges:", "steges: unknown key: did you mean stages?"),
        (
            "- rows:\n  - {block: conv,",
            "- row:\n  - {block: conv,",
            "stages[0].row: unknown key: did you mean rows?",
        ),
        ("name: foo", "name: foo: bar", "line 1: not YAML: mapping values are not allowed in this context"),
        (PLAIN, "", "must be a mapping with the keys name, stages, resolution, resize, source"),
        (PLAIN, "name: foo\nresolution: 8\nstages: 3", "stages: 3 must be a list"),
        (
            PLAIN,
            "name: foo\nresolution: 8\nstages: [3]",
            "stages[0]: 3 must be a mapping with the key rows",
        ),
        (
            PLAIN,
            "name: foo\nresolution: 8\nstages: [{rows: [3]}]",
            "stages[0].rows[0]: 3 must be a mapping such as",
        ),
    ],
)
def test_errors_name_file_and_field(write, old, new, message):
    assert old in PLAIN
    path = write(PLAIN.replace(old, new, 1))
    with pytest.raises(ArchError) as error:
        load_arch(path)
    assert str(error.value).startswith(f"{path}: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "source", ["\U00010000", "\x85 \u2028 \x7f", "a: #'\" \t é", "long " * 100, "two\nlines"]
)
def test_any_source_text_survives_a_round_trip(source, tmp_path):
    arch = replace(get_arch("fbnetv3_a"), source=source)
    path = tmp_path / "foo.yaml"
    path.write_text(dump_arch(arch), encoding="utf-8")
    assert load_arch(path) == arch


def test_a_binary_file(tmp_path):
    path = tmp_path / "foo.yaml"
    path.write_bytes(b"name: \x80\xff\n")
    with pytest.raises(ArchError, match="not YAML"):
        load_arch(path)


def test_a_missing_file():
    with pytest.raises(ArchError, match=r"nowhere\.yaml: cannot be read: No such file"):
        load_arch("nowhere.yaml")


def test_a_file_can_inherit(write):
    write(PLAIN)
    arch = load_arch(write("_BASE_: foo.yaml\nname: bar\nresolution: 96\nresize: 100\n", "bar.yaml"))
    assert (arch.name, arch.resolution, arch.resize) == ("bar", 96, 100)
    assert arch.stages == load_arch(write(PLAIN)).stages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: nowhere.yaml\nname: bar", "nowhere.yaml does not exist"),
        ("_BASE_: bar.yaml\nname: bar", "_BASE_: circular inheritance"),
        ("_BASE_: 3\nname: bar", "_BASE_: 3 must be a path or a list of paths"),
        ("_BASE_: foo.yaml", "name: is missing"),
        ("_BASE_: foo.yaml\nname: bar\nderive: 3", "derive: 3 must be a mapping"),
        (
            "_BASE_: foo.yaml\nname: bar\nderive: {scele: {}}",
            "derive.scele: unknown key: did you mean scale?",
        ),
        (
            "_BASE_: foo.yaml\nname: bar\nderive: {scale: {width: -1}}",
            "derive.scale.width: -1 must be in [0.001, ",
        ),
        (
            "_BASE_: foo.yaml\nname: bar\nderive: {scale: {fixed: [head]}}",
            "derive.scale.fixed: 'head' must be one of",
        ),
        (
            "_BASE_: foo.yaml\nname: bar\nderive: {small_images: 1.5}",
            "derive.small_images: 1.5 must be an integer",
        ),
        (
            "_BASE_: foo.yaml\nname: bar\nderive: {same_padding: maybe}",
            "derive.same_padding: 'maybe' must be true or false",
        ),
        ("_BASE_: foo.yaml\nname: bar\nresolution: 0", "resolution: 0 must be in"),
    ],
)
def test_errors_of_inheritance(write, text, message):
    write(PLAIN)
    with pytest.raises(ArchError) as error:
        load_arch(write(text, "bar.yaml"))
    assert message in str(error.value)
    assert ".yaml: " in str(error.value)


def test_derive_applies_scale_and_small_images(write):
    write(PLAIN)
    text = "_BASE_: foo.yaml\nname: bar\nderive: {scale: {width: 2, depth: 2, fixed: []}, small_images: 32}"
    arch = load_arch(write(text, "bar.yaml"))
    rows = [row for stage in arch.stages for row in stage.rows]
    assert [(row.channels, row.repeat, row.stride) for row in rows] == [(32, 2, 2), (48, 1, 1), (48, 5, 1)]


def test_from_dict_without_a_file():
    with pytest.raises(ArchError, match=r"^stages\[0\].rows\[0\].kernel: 2 is even"):
        arch_from_dict(yaml.safe_load(PLAIN.replace("kernel: 3", "kernel: 2")))


NUMBERS = st.integers(-2, 9) | st.sampled_from(
    [16, 24, 64, 2**40, 0.5, 6.0, float("nan"), float("inf"), True]
)
WORDS = st.sampled_from(
    ["conv", "mbconv", "mbpool", "none", "hsigmoid", "sigmoid", "hswish", "relu", "", "a/b"]
)
VALUES = st.none() | NUMBERS | WORDS | st.lists(NUMBERS, max_size=2)
VALID = {"block": WORDS, "channels": st.just(16), "kernel": st.just(3), "expansion": st.just(4)}
ROWS = st.dictionaries(st.sampled_from([f.name for f in fields(Row)]), VALUES) | st.fixed_dictionaries(
    VALID, optional={f.name: VALUES for f in fields(Row) if f.name not in VALID}
)
STAGES = st.lists(st.fixed_dictionaries({"rows": st.lists(ROWS, max_size=3) | VALUES}) | VALUES, max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({"name": st.just("x"), "resolution": st.just(64) | NUMBERS, "stages": STAGES}))
def test_any_data_is_an_architecture_or_raises_arch_error(data):
    """Accepted data has a cost and survives a round trip."""
    try:
        arch = arch_from_dict(data)
    except ArchError as error:
        assert "\n" not in str(error)
        return
    assert isinstance(arch, ArchDef)
    assert compute_cost(arch).params > 0
    assert arch_from_dict(yaml.safe_load(dump_arch(arch))) == arch
