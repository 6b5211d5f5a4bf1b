"""Compound scaling, variants for small images, and scaling to a MACs target."""

import random

import pytest

from fbnetv3.arch import (
    ArchDef,
    Row,
    Stage,
    adapt_to_small_images,
    compound_scale,
    compute_cost,
    get_arch,
    scale_to_macs,
    with_same_padding,
)
from fbnetv3.errors import UsageError

E, F = get_arch("fbnetv3_e"), get_arch("fbnetv3_f")


def shape(arch):
    return [[(row.channels, row.repeat) for row in stage.rows] for stage in arch.stages]


def test_the_published_f_is_e_scaled():
    scaled = compound_scale(E, depth=1.09, width=1.13, resolution=272 / 264)
    assert shape(scaled) == shape(F)
    assert scaled.resolution == F.resolution


def test_the_published_a_is_b_scaled_by_resolution_to_its_macs():
    result = scale_to_macs(get_arch("fbnetv3_b"), 357e6, depth=1, width=1)
    assert result.arch.stages == get_arch("fbnetv3_a").stages
    assert result.arch.resolution == 224
    assert result.macs == compute_cost(get_arch("fbnetv3_a")).macs
    assert result.resolution == pytest.approx(1.15**result.phi)


def test_multipliers_of_one_change_nothing():
    assert compound_scale(E, name=E.name) == E


def test_the_first_block_of_a_width_stays_single():
    scaled = compound_scale(E, depth=2)
    assert [[row.repeat for row in stage.rows] for stage in scaled.stages] == [
        [1],
        [6],
        [1, 9],
        [1, 9],
        [1, 9, 1, 15],
        [1, 11, 2],
        [1],
    ]


def test_depth_shrinks_to_one_block_of_each_width():
    scaled = compound_scale(E, depth=0.01)
    assert all(row.repeat == 1 for stage in scaled.stages for row in stage.rows)
    assert [len(stage.rows) for stage in scaled.stages] == [1, 1, 1, 1, 2, 2, 1]


def test_a_block_with_its_own_padding_is_not_repeated():
    b = get_arch("fbnetv3_b")
    alone = compound_scale(compound_scale(b, depth=0.01), depth=3)
    rows = alone.stages[4].rows
    assert [(row.repeat, row.stride, row.dw_padding) for row in rows[:2]] == [(1, 2, 1), (2, 1, None)]


def test_width_of_stem_and_last_stage_scale_on_request():
    free = compound_scale(E, width=0.5, fixed=())
    assert (free.stages[0].rows[0].channels, free.out_channels) == (16, 992)
    fixed = compound_scale(E, width=0.5)
    assert (fixed.stages[0].rows[0].channels, fixed.out_channels) == (24, 1984)


def test_resize_keeps_its_ratio():
    assert compound_scale(E, resolution=0.5).resize == round(291 * 136 / 264)


@pytest.mark.parametrize(
    "changes", [{"depth": 0}, {"width": -1}, {"resolution": float("inf")}, {"depth": "2"}]
)
def test_rejects_invalid_multipliers(changes):
    with pytest.raises(UsageError, match=f"^{next(iter(changes))}: .* must be (a number|in)"):
        compound_scale(E, **changes)


@pytest.mark.parametrize("letter", "abdg")
def test_the_solver_meets_any_target_within_one_per_cent(letter):
    rng, arch = random.Random(letter), get_arch(f"fbnetv3_{letter}")
    for _ in range(6):
        target = 10 ** rng.uniform(7.8, 9.8)
        result = scale_to_macs(arch, target)
        assert compute_cost(result.arch).macs == result.macs == pytest.approx(target, rel=0.01)
        again = compound_scale(arch, result.depth, result.width, result.resolution, multiple=1)
        assert again.stages == result.arch.stages


def test_the_solver_names_the_closest_network_if_none_is_within_tolerance():
    with pytest.raises(UsageError, match=r"within 0.1% of 1000.0 M MACs; the closest has \d+"):
        scale_to_macs(E, 1e9, depth=1, resolution=1, tolerance=0.001)


@pytest.mark.parametrize("target", [0, -1, float("nan"), float("inf"), "400M"])
def test_the_solver_rejects_invalid_targets(target):
    with pytest.raises(UsageError, match="macs target"):
        scale_to_macs(E, target)


@pytest.mark.parametrize("target", [1, 1e14])
def test_the_solver_rejects_unreachable_targets_at_once(target):
    with pytest.raises(UsageError, match="no phi brings fbnetv3_e within"):
        scale_to_macs(E, target)


def test_a_strided_row_is_never_dropped():
    rows = (Row("mbconv", 24, kernel=3, expansion=4), Row("mbconv", 24, kernel=3, expansion=4, stride=2))
    arch = ArchDef("x", (Stage((Row("conv", 16, kernel=3, stride=2),)), Stage(rows)), 64, 64)
    assert [row.stride for row in compound_scale(arch, depth=0.1).stages[1].rows] == [1, 2]


@pytest.mark.parametrize(
    ("growth", "message"),
    [
        ((1, 1, 1), "raise the tolerance, or let more of depth, width and resolution grow"),
        ((0.9, 1.1, 1.1), r"depth: 0.9 must be in \[1, 1,000\]"),
    ],
)
def test_the_solver_needs_something_to_grow(growth, message):
    with pytest.raises(UsageError, match=message):
        scale_to_macs(E, 1e9, depth=growth[0], width=growth[1], resolution=growth[2])


def test_the_solver_rejects_unknown_fixed_parts():
    with pytest.raises(UsageError, match="fixed: 'head' must be one of stem, last"):
        scale_to_macs(E, 1e9, fixed=("head",))


@pytest.mark.parametrize(("letter", "pixels"), [("a", 32), ("b", 35), ("e", 38), ("g", 46)])
def test_small_images_keep_the_ratio_of_the_resolution(letter, pixels):
    small = adapt_to_small_images(get_arch(f"fbnetv3_{letter}"))
    assert (small.resolution, small.resize) == (pixels, pixels)
    assert get_arch(f"fbnetv3_{letter}_cifar").stages == small.stages


def test_small_images_have_stride_one_in_the_second_strided_block():
    def strides(arch):
        return [
            row.stride
            for stage in arch.stages
            for row in stage.rows
            if row.stride == 2 or row is second(arch)
        ]

    def second(arch):
        return arch.stages[2].rows[0]

    a = get_arch("fbnetv3_a")
    assert strides(a) == [2, 2, 2, 2, 2]
    assert strides(adapt_to_small_images(a)) == [2, 1, 2, 2, 2]
    assert compute_cost(adapt_to_small_images(a)).params == compute_cost(a).params


def test_small_images_need_two_strided_blocks():
    with pytest.raises(UsageError, match="no second stride-2 block"):
        adapt_to_small_images(
            adapt_to_small_images(adapt_to_small_images(adapt_to_small_images(adapt_to_small_images(E))))
        )


def test_same_padding_changes_only_padding():
    b, same = get_arch("fbnetv3_b"), with_same_padding(get_arch("fbnetv3_b"))
    assert compute_cost(b).params == compute_cost(same).params
    assert all(
        block.spec.padding == block.spec.kernel // 2 for block in same.blocks() if block.kind == "mbconv"
    )
    assert same.stages == get_arch("fbnetv3_b_same_padding").stages
