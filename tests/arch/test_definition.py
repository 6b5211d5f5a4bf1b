"""A definition rejects invalid values and names the field."""

import dataclasses

import pytest

from fbnetv3.arch import ArchDef, ArchError, Row, Stage, get_arch, round8
from fbnetv3.arch.block_specs import ACTIVATIONS, BLOCK_SPECS, ConvSpec, MBConvSpec
from fbnetv3.arch.definition import feature_blocks
from fbnetv3.errors import FieldError

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
        ({"block": "mbconf"}, "block: unknown block 'mbconf': did you mean mbconv"),
        ({"block": 3}, "block: unknown block 3"),
        ({"kernel": 4}, "kernel: 4 is even"),
        ({"kernel": 3.0}, "kernel: 3.0 must be an integer"),
        ({"kernel": None}, "kernel: is missing; mbconv blocks require it"),
        ({"channels": 0}, r"channels: 0 must be in \[1, 65,536\]"),
        ({"channels": True}, "channels: True must be an integer"),
        ({"channels": "24"}, "channels: '24' must be an integer"),
        ({"repeat": 0}, "repeat: 0 must be in"),
        ({"stride": 3}, "stride: 3 must be one of 1, 2"),
        ({"expansion": 0}, "expansion: 0 must be in"),
        ({"expansion": float("nan")}, "expansion: nan must be in"),
        ({"expansion": "6"}, "expansion: '6' must be a number"),
        (
            {"se": "softmax"},
            "se: unknown squeeze-and-excite gate 'softmax': available: hsigmoid, none, sigmoid",
        ),
        ({"act": "gelu"}, "act: unknown activation 'gelu': did you mean relu?"),
        ({"act": []}, r"act: unknown activation \[\]: available: hswish, relu"),
        ({"dw_padding": 2}, r"dw_padding: 2 must be in \[0, 1\]"),
        ({"dw_padding": 0}, "dw_padding: shrinks the map"),
        ({"dw_padding": 0, "stride": 2, "repeat": 2}, "dw_padding: shrinks the map"),
        ({"dw_group_width": 0}, "dw_group_width: 0 must be in"),
        ({"block": "conv"}, "expansion: 4 has no effect: conv blocks do not use this field"),
        ({"block": "mbpool"}, "kernel: 3 has no effect: mbpool"),
        ({"block": "mbpool", "kernel": None, "se": "sigmoid"}, "se: 'sigmoid' has no effect: mbpool"),
    ],
)
def test_row_names_the_invalid_field(changes, message):
    with pytest.raises(ArchError, match=f"^{message}"):
        row(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: arch(name="a/b"), "name: 'a/b' must start with a letter or digit"),
        (lambda: arch(resolution=0), "resolution: 0 must be in"),
        (lambda: arch(resize=32), r"resize: 32 must be in \[64"),
        (lambda: arch(stages=()), "stages: must have at least one stage"),
        (lambda: arch(stages=(Stage(()),)), "stages: must have at least one stage"),
        (lambda: arch(source=3), "source: 3 must be text"),
        (
            lambda: arch(Row("mbpool", 32, expansion=6), row()),
            r"stages\[0\].rows\[1\].block: mbpool ends in a 1x1 map",
        ),
        (
            lambda: arch(row(), Row("mbpool", 32, expansion=6, stride=2)),
            r"stages\[0\].rows\[2\].stride: 2 must be 1",
        ),
        (
            lambda: arch(row(dw_group_width=7)),
            r"stages\[0\].rows\[1\].dw_group_width: 7 does not divide the 64",
        ),
        (
            lambda: arch(*[row(kernel=5, stride=2, dw_padding=0)] * 2, resolution=8, resize=8),
            "x: an input of 8x8 pixels is too small: block 0.1 is empty",
        ),
    ],
)
def test_arch_names_the_invalid_field(make, message):
    with pytest.raises(ArchError, match=f"^{message}"):
        make()


def test_is_frozen_and_hashable():
    definition = get_arch("fbnetv3_a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        definition.resolution = 1
    assert hash(definition) == hash(dataclasses.replace(definition))


@pytest.mark.parametrize(
    ("value", "rounded"),
    [(1, 8), (8, 8), (11, 16), (12, 16), (20, 24), (36, 40), (27, 32), (108, 112), (120, 120), (348, 352)],
)
def test_channels_round_to_8_half_up_and_never_below_95_percent(value, rounded):
    assert round8(value) == rounded


def test_block_indices_continue_through_the_rows_of_a_stage():
    blocks = [b for b in get_arch("fbnetv3_b").blocks() if b.stage == 4]
    assert [b.name for b in blocks] == [f"4.{i}" for i in range(11)]
    assert [b.row for b in blocks] == [0] + [1] * 4 + [2] + [3] * 5


def test_the_first_block_of_a_row_has_the_stride():
    strides = [b.spec.stride for b in arch(row(repeat=3, stride=2)).blocks()]
    assert strides == [2, 2, 1, 1]


def test_features_end_each_stride():
    features = [
        (b.name, b.spec.out_channels, stride) for b, stride in feature_blocks(get_arch("fbnetv3_a"))
    ]
    assert features == [("1.1", 16, 2), ("2.3", 24, 4), ("3.4", 40, 8), ("4.10", 120, 16), ("5.6", 224, 32)]
    assert [stride for _, stride in feature_blocks(get_arch("fbnetv3_a_cifar"))] == [2, 4, 8, 16]


def test_features_end_each_stride_even_within_a_stage():
    definition = arch(row(stride=2), row(stride=2), Row("mbpool", 32, expansion=2))
    assert [(b.name, stride) for b, stride in feature_blocks(definition)] == [
        ("0.0", 2),
        ("0.1", 4),
        ("0.2", 8),
    ]


def test_row_fields_come_from_the_signature_of_build():
    assert ConvSpec.row_fields() == {"kernel": True, "act": False}
    required = [name for name, is_required in MBConvSpec.row_fields().items() if is_required]
    assert required == ["kernel", "expansion"]
    assert MBConvSpec.row_fields().keys() == {*required, "se", "act", "dw_padding", "dw_group_width"}


def test_values_that_a_users_block_rejects_are_named_with_their_row():
    class Even(ConvSpec):
        @classmethod
        def build(cls, in_channels, channels, stride, *, kernel):
            if channels % 16:
                raise FieldError("is not a multiple of 16", "channels")
            return cls(in_channels, channels, kernel, stride, "relu")

    BLOCK_SPECS.register(Even, name="even")
    ArchDef("users", (Stage((Row("even", 16, kernel=3),)),), resolution=32, resize=32)
    with pytest.raises(ArchError, match=r"stages\[0\].rows\[1\].channels: is not a multiple of 16"):
        arch(Row("even", 24, kernel=3))
    with pytest.raises(ArchError, match="act: 'relu' has no effect: even blocks do not use this field"):
        Row("even", 16, kernel=3, act="relu")


def test_a_users_block_that_pools_can_only_be_the_last():
    class Pooling(ConvSpec):
        ends_in_pool = True

    BLOCK_SPECS.register(Pooling, name="pooling")
    with pytest.raises(ArchError, match=r"stages\[0\].rows\[1\].block: pooling ends in a 1x1 map"):
        arch(Row("pooling", 16, kernel=1), row())


def test_a_users_activation():
    ACTIVATIONS.register("torch.nn:GELU", name="gelu")
    assert arch(row(act="gelu")).blocks()[-1].spec.act == "gelu"
