"""Networks derived from others: compound scaling, variants for small images, and scaling to a MACs target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, product

from fbnetv3.arch.block_specs import round8
from fbnetv3.arch.definition import MAX_RESOLUTION, ArchDef, ArchError, Row, Stage
from fbnetv3.arch.network_cost import compute_cost
from fbnetv3.errors import UsageError
from fbnetv3.utils.checks import check_choice, check_int, check_number

FIXED_PARTS = ("stem", "last")


def compound_scale(
    arch: ArchDef,
    depth: float = 1.0,
    width: float = 1.0,
    resolution: float = 1.0,
    *,
    fixed: tuple[str, ...] = FIXED_PARTS,
    multiple: int = 8,
    name: str | None = None,
) -> ArchDef:
    """Scale depth, width and resolution of a network (Sec. 4.2, after EfficientNet).

    Channels are rounded as in the published networks (`round8`). Depth multiplies the number of
    blocks of equal width in a stage (n in Table 2), rounded half up; the block that changes width or stride stays
    first. FBNetV3-E scaled by depth 1.09, width 1.13 and resolution 272 / 264, with the default `fixed` parts, has the
    channels and depths of the published F.

    Args:
        arch: the network to scale.
        depth: multiplier of the number of blocks.
        width: multiplier of the channels.
        resolution: multiplier of the input's side.
        fixed: parts that keep their depth and width: "stem" (the first stage), "last" (a stage that ends in a pooling
            block).
        multiple: the new resolution is rounded to a multiple of this many pixels.
        name: name of the result; default: that of `arch` with "_scaled".

    Raises:
        ArchError: a multiplier out of range, an unknown part, or a result beyond the bounds of a definition.
    """
    for field, multiplier in {"depth": depth, "width": width, "resolution": resolution}.items():
        check_number(multiplier, field, 1e-3, 1e3, ArchError)
    for part in fixed:
        check_choice(part, "fixed", FIXED_PARTS, ArchError)
    check_int(multiple, "multiple", 1, MAX_RESOLUTION, ArchError)
    stages = []
    for s, stage in enumerate(arch.stages):
        part = "last" if stage.rows[-1].spec_class.ends_in_pool else "stem" if s == 0 else "trunk"
        if part not in fixed:
            groups = [_scale_depth(group, depth) for group in _groups_of_equal_width(stage)]
            rows = [
                replace(row, channels=round8(row.channels * width)) for group in groups for row in group
            ]
            stage = Stage(tuple(rows))
        stages.append(stage)

    # The nearest multiple; a resolution that is not scaled stays as it is
    pixels = arch.resolution
    if resolution != 1.0:
        pixels = max(multiple, multiple * math.floor(arch.resolution * resolution / multiple + 0.5))
    # Keep the ratio of resize to crop
    resize = max(pixels, round(arch.resize * pixels / arch.resolution))
    name = name or f"{arch.name}_scaled"
    return replace(arch, stages=tuple(stages), resolution=pixels, resize=resize, name=name)


def adapt_to_small_images(arch: ArchDef, base: int = 32, *, name: str | None = None) -> ArchDef:
    """Adapt a network to small images (Sec. 4.3, CIFAR-10).

    The second stride-2 block is changed to stride 1. The resolution is `base` pixels times the network's resolution
    over 224: for a base of 32, FBNetV3-A has 32 and FBNetV3-E 38 pixels. Images are not resized before the crop.

    Raises:
        ArchError: the network has no second stride-2 block.
    """
    strided = [
        (s, r) for s, stage in enumerate(arch.stages) for r, row in enumerate(stage.rows) if row.stride == 2
    ]
    if len(strided) < 2:
        raise ArchError(
            f"{arch.name} has no second stride-2 block, which adapting to small images changes to stride 1"
        )
    s, r = strided[1]
    rows = list(arch.stages[s].rows)
    rows[r] = replace(rows[r], stride=1, dw_padding=None)
    stages = list(arch.stages)
    stages[s] = Stage(tuple(rows))
    pixels = max(1, math.floor(base * arch.resolution / 224 + 0.5))
    name = name or f"{arch.name}_small_images"
    return replace(arch, stages=tuple(stages), resolution=pixels, resize=pixels, name=name)


def with_same_padding(arch: ArchDef, *, name: str | None = None) -> ArchDef:
    """Return the network with depthwise padding kernel // 2 everywhere, as in timm's networks."""
    stages = tuple(
        Stage(tuple(replace(row, dw_padding=None) for row in stage.rows)) for stage in arch.stages
    )
    return replace(arch, stages=stages, name=name or f"{arch.name}_same_padding")


@dataclass(frozen=True)
class ScaledArch:
    """Result of `scale_to_macs`: a network, its MACs, and the multipliers that derive it from the original."""

    arch: ArchDef
    phi: float  # common exponent of the growth rates
    depth: float
    width: float
    resolution: float
    macs: float


def scale_to_macs(
    arch: ArchDef,
    macs: float,
    *,
    depth: float = 1.2,
    width: float = 1.1,
    resolution: float = 1.15,
    tolerance: float = 0.01,
    num_classes: int = 1000,
    fixed: tuple[str, ...] = FIXED_PARTS,
    name: str | None = None,
) -> ScaledArch:
    """Find the multiplier phi for which scaling by depth^phi, width^phi and resolution^phi meets a MACs target.

    The defaults are EfficientNet's constants: MACs about double per unit of phi. 1.0 leaves a dimension unchanged.
    Depth, channels and pixels are integers, so MACs change in steps. The search first tries one phi for all dimensions,
    with resolutions in steps of 8, 4, 2 and 1 pixels. If that fails, each dimension may deviate from the common phi by
    up to 0.5, and the smallest deviation is taken. `scale_to_macs(B, 357e6, depth=1, width=1)` is FBNetV3-A.

    Args:
        arch: the network to scale.
        macs: target in multiply-adds, counted as in Table 4.
        depth: growth of the depth per unit of phi, at least 1.
        width: growth of the width per unit of phi, at least 1.
        resolution: growth of the resolution per unit of phi, at least 1.
        tolerance: largest relative distance to the target.
        num_classes: outputs of the networks whose MACs are counted.
        fixed: see `compound_scale`.
        name: see `compound_scale`.

    Raises:
        UsageError: an invalid argument, or no network within the tolerance; the message then names the closest.
    """
    growth = {"depth": depth, "width": width, "resolution": resolution}
    check_number(macs, "macs target", 1, 1e15)
    for field, base in growth.items():
        check_number(base, field, 1, 1e3)
    compound_scale(arch, fixed=fixed)  # rejects unknown parts

    def scale(phi: float, multiple: int, deviations: tuple[float, ...] = (0.0, 0.0, 0.0)) -> ScaledArch:
        factors = {
            field: growth[field] ** (phi + delta) for field, delta in zip(growth, deviations, strict=True)
        }
        try:
            scaled = compound_scale(arch, **factors, fixed=fixed, multiple=multiple, name=name)
        except ArchError:  # out of the bounds of a definition
            return ScaledArch(arch, phi, **factors, macs=0 if phi < 0 else math.inf)
        return ScaledArch(scaled, phi, **factors, macs=compute_cost(scaled, num_classes=num_classes).macs)

    def distance(candidate: ScaledArch) -> float:
        return abs(candidate.macs / macs - 1)

    center = _bisect_phi(lambda phi: scale(phi, 1).macs, macs)
    closest = scale(center, 1)
    is_reachable = 0.5 < closest.macs / macs < 2
    # One phi for all dimensions, with finer and finer resolutions; then single deviating dimensions
    phis = [center + step for step in _symmetric_range(0.15, 81)]
    common = (min((scale(phi, multiple) for phi in phis), key=distance) for multiple in (8, 4, 2, 1))
    deviating = (scale(center, 1, deviations) for deviations in _deviations(growth))
    for candidate in chain(common, deviating) if is_reachable else ():
        if distance(candidate) <= tolerance:
            return candidate
        closest = min(closest, candidate, key=distance)
    raise UsageError(
        f"no phi brings {arch.name} within {tolerance:.1%} of {macs / 1e6:.1f} M MACs; the closest has "
        f"{closest.macs / 1e6:.1f} M at phi {closest.phi:.3f}: raise the tolerance, or let more of depth, width and "
        "resolution grow"
    )


def _bisect_phi(macs_at: Callable[[float], float], target: float) -> float:
    """Return approximately the phi at which the (almost) monotonic MACs reach the target."""
    low, high = -12.0, 12.0
    # Ten halvings leave an interval of 0.02, which the fine search around it covers
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if macs_at(middle) > target else (middle, high)
    return (low + high) / 2


def _deviations(growth: dict[str, float]) -> Iterator[tuple[float, ...]]:
    """Yield deviations from the common phi, one for each dimension, ordered by the largest of them.

    Dimensions that do not grow do not deviate.
    """
    counts = {"depth": 5, "width": 25, "resolution": 25}
    steps = [
        _symmetric_range(0.5, counts[label]) if base != 1.0 else [0.0] for label, base in growth.items()
    ]
    yield from sorted(product(*steps), key=lambda deviations: max(map(abs, deviations)))


def _symmetric_range(limit: float, count: int) -> list[float]:
    """Return `count` evenly spaced numbers in [-limit, limit]."""
    return [limit * (2 * i / (count - 1) - 1) for i in range(count)]


def _groups_of_equal_width(stage: Stage) -> list[list[Row]]:
    """Group the rows that Table 2 writes as one: equal width, with the stride in the first."""
    groups: list[list[Row]] = []
    for row in stage.rows:
        if not groups or row.channels != groups[-1][0].channels or row.stride == 2:
            groups.append([])
        groups[-1].append(row)
    return groups


def _scale_depth(rows: list[Row], depth: float) -> list[Row]:
    """Return rows of equal width with `depth` times as many blocks. The last row grows or shrinks; the first stays."""
    if rows[-1].spec_class.ends_in_pool:  # a pooling block cannot be repeated
        return rows
    # Blocks to add (negative: to remove), rounded half up, leaving at least one
    total = sum(row.repeat for row in rows)
    change = max(1, math.floor(total * depth + 0.5)) - total
    scaled = list(rows)
    # Drop rows from the end that would become empty
    while change < 0 and scaled[-1].repeat + change < 1:
        change += scaled.pop().repeat
    last = scaled[-1]
    if change > 0 and len(scaled) == 1 and last.stride == 2 and last.dw_padding is not None:
        # A padding that shrinks the map is only valid for a single block of stride 2
        return [last, replace(last, stride=1, dw_padding=None, repeat=change)]
    return [*scaled[:-1], replace(last, repeat=last.repeat + change)]
