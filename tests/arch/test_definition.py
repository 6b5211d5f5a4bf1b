"""A definition refuses what makes no sense, and says which field."""

import dataclasses

import pytest

from fbnetv3.arch import ArchDef, ArchError, Row, Stage, get_arch, round8
from fbnetv3.arch.block_specs import BLOCK_SPECS, ConvSpec
from fbnetv3.arch.definition import feature_blocks

STEM = Row("conv", 16, kernel=3, stride=2)


def row(**changes):
    return Row(**{"block": "mbconv", "channels": 24, "kernel": 3, "expansion": 4, **changes})


def arch(*rows, **changes):
    return ArchDef(
        **{"name": "x", "stages": (Stage((STEM, *rows)),), "resolution": 64, "resize": 64, **changes},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block": "mbconf"}, "block: unknown block 'mbconf': did you mean mbconv?"),
        ({"block": 3}, "block: unknown block"),
        ({"kernel": 4}, "kernel: 4 is even"),
        ({"kernel": 3.0}, "kernel: 3.0 is not a whole number"),
        ({"kernel": None}, "kernel: missing: a mbconv needs it"),
        ({"channels": 0}, r"channels: 0 is not in \[1, 65536\]"),
        ({"channels": True}, "channels: True is not a whole number"),
        ({"channels": "24"}, "channels: '24' is not a whole number"),
        ({"repeat": 0}, "repeat: 0 is not in"),
        ({"stride": 3}, "stride: 3 is not 1 or 2"),
        ({"expansion": 0}, "expansion: 0 is not in"),
        ({"expansion": float("nan")}, "expansion: nan is not in"),
        ({"expansion": "6"}, "expansion: '6' is not a number"),
        ({"se": "softmax"}, "se: 'softmax' is not one of none, hsigmoid, sigmoid"),
        ({"act": "gelu"}, "act: 'gelu' is not one of hswish, relu"),
        ({"act": []}, r"act: \[\] is not one of"),
        ({"dw_padding": 2}, r"dw_padding: 2 is not in \[0, 1\]"),
        ({"dw_padding": 0}, "dw_padding: shrinks the map"),
        ({"dw_padding": 0, "stride": 2, "repeat": 2}, "dw_padding: shrinks the map"),
        ({"dw_group_width": 0}, "dw_group_width: 0 is not in"),
        ({"block": "conv"}, "expansion: 4 has no meaning for a conv"),
        ({"block": "mbpool"}, "kernel: 3 has no meaning for a mbpool"),
        ({"block": "mbpool", "kernel": None, "se": "sigmoid"}, "se: 'sigmoid' has no meaning for a mbpool"),
    ],
)
def test_row_names_the_field_at_fault(changes, message):
    with pytest.raises(ArchError, match=f"^{message}"):
        row(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: arch(name="a/b"), "name: 'a/b' is not made of"),
        (lambda: arch(resolution=0), "resolution: 0 is not in"),
        (lambda: arch(resize=32), r"resize: 32 is not in \[64"),
        (lambda: arch(stages=()), "stages: empty"),
        (lambda: arch(stages=[Stage((STEM,))]), "stages: is not a tuple of stages"),
        (lambda: arch(stages=(1,)), "stages: is not a tuple of stages"),
        (lambda: Stage([STEM]), "rows: is not a tuple of rows"),
        (lambda: Stage(()), "rows: empty"),
        (lambda: arch(source=3), "source: 3 is not text"),
        (lambda: arch(Row("mbpool", 32, expansion=6), row()), r"stages\[0\].rows\[1\].block: mbpool ends in a 1x1 map"),
        (lambda: arch(row(dw_group_width=7)), r"stages\[0\].rows\[1\].dw_group_width: does not divide the 64"),
        (
            lambda: arch(*[row(kernel=5, stride=2, dw_padding=0)] * 2, resolution=8, resize=8),
            r"resolution: 8 is too small: nothing is left at stages\[0\].rows\[1\]",
        ),
    ],
)
def test_arch_names_the_field_at_fault(make, message):
    with pytest.raises(ArchError, match=f"^{message}"):
        make()


def test_is_frozen_and_hashable():
    defn = get_arch("fbnetv3_a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        defn.resolution = 1
    assert hash(defn) == hash(dataclasses.replace(defn))


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(1, 8), (8, 8), (11, 16), (12, 16), (20, 24), (36, 40), (27, 32), (108, 112), (120, 120), (348, 352)],
)
def test_channels_round_to_8_half_up_and_never_below_95_per_cent(value, rounded):
    assert round8(value) == rounded


def test_blocks_count_on_through_the_rows_of_a_stage():
    blocks = [b for b in get_arch("fbnetv3_b").blocks() if b.stage == 4]
    assert [b.name for b in blocks] == [f"4.{i}" for i in range(11)]
    assert [b.row for b in blocks] == [0] + [1] * 4 + [2] + [3] * 5


def test_the_first_block_of_a_row_has_the_stride():
    strides = [b.spec.stride for b in arch(row(repeat=3, stride=2)).blocks()]
    assert strides == [2, 2, 1, 1]


def test_features_end_each_stride():
    found = [(b.name, b.spec.out_channels, stride) for b, stride in feature_blocks(get_arch("fbnetv3_a"))]
    assert found == [("1.1", 16, 2), ("2.3", 24, 4), ("3.4", 40, 8), ("4.10", 120, 16), ("5.6", 224, 32)]
    assert [stride for _, stride in feature_blocks(get_arch("fbnetv3_a_cifar"))] == [2, 4, 8, 16]


def test_features_end_each_stride_even_within_a_stage():
    defn = arch(row(stride=2), row(stride=2), Row("mbpool", 32, expansion=2))
    assert [(b.name, stride) for b, stride in feature_blocks(defn)] == [("0.0", 2), ("0.1", 4), ("0.2", 8)]


def test_a_users_block_whose_groups_do_not_fit_is_named_without_expanded_channels():
    """A spec need not have `mid_channels`; what is wrong with the row is said all the same."""

    class Grouped(ConvSpec):
        groups = 0

    BLOCK_SPECS.add("grouped", Grouped, "here")
    try:
        with pytest.raises(ArchError, match=r"stages\[0\].rows\[0\].dw_group_width: does not divide"):
            ArchDef("users", (Stage((Row("grouped", 16, kernel=3),)),), resolution=32, resize=32)
    finally:
        BLOCK_SPECS.remove("grouped")
