"""Networks derived from networks: compound scaling, small images, and the search for a MACs target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

from fbnetv3.arch.block_specs import round8
from fbnetv3.arch.definition import ArchDef, ArchError, Row, Stage
from fbnetv3.arch.network_cost import cost_of
from fbnetv3.errors import UsageError

PARTS = ("stem", "last")
IMAGENET_BASE = 224
_MOST = 1_000_000  # of a multiplier
CIFAR_BASE = 32


def compound_scale(
    defn: ArchDef,
    depth: float = 1.0,
    width: float = 1.0,
    resolution: float = 1.0,
    *,
    fixed: tuple[str, ...] = PARTS,
    multiple: int = 8,
    name: str | None = None,
) -> ArchDef:
    """Scale depth, width and resolution of a network (Sec. 4.2, after EfficientNet).

    Channels round as in the published networks (`round8`). Depth counts the blocks of equal width in a stage,
    as Table 2's n does, and rounds half up; the block that changes width or stride stays the first. With the
    `fixed` parts left alone, E scaled by depth 1.09, width 1.13 and resolution 272 / 264 has the channels and the
    depths of the published F.

    Args:
        defn: the network to scale.
        depth, width, resolution: multipliers.
        fixed: parts that are left alone: "stem" (the first stage) and "last" (a stage that ends in mbpool).
        multiple: the new resolution is the nearest multiple of this many pixels.
        name: name of the result; default: that of `defn` with "_scaled".

    Raises:
        UsageError: a multiplier that is not positive, an unknown part.
    """
    for what, value in (("depth", depth), ("width", width), ("resolution", resolution)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise UsageError(f"{what} multiplier {value!r} is not a positive number")
        if value > _MOST:
            raise UsageError(f"{what} multiplier {value!r} is more than {_MOST:,}: no network can be scaled so far")
    if unknown := set(fixed) - set(PARTS):
        raise UsageError(f"fixed: {', '.join(sorted(unknown))} is not among {', '.join(PARTS)}")

    if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
        raise UsageError(f"multiple {multiple!r} is not a number of pixels")

    stages = []
    for s, stage in enumerate(defn.stages):
        rows = []
        for group in _width_groups(stage):
            channels = round8(group[0].channels * width)
            rows += [replace(row, channels=channels) for row in _scale_depth(group, depth)]
        stages.append(stage if _part(stage, s) in fixed else Stage(tuple(rows)))

    pixels = max(multiple, multiple * math.floor(defn.resolution * resolution / multiple + 0.5))
    if resolution == 1.0:
        pixels = defn.resolution
    return _with_resolution(replace(defn, stages=tuple(stages), name=name or f"{defn.name}_scaled"), pixels)


def small_images(defn: ArchDef, base: int = CIFAR_BASE, *, name: str | None = None) -> ArchDef:
    """The network for small images (Sec. 4.3, CIFAR-10).

    The second block of stride two gets stride one. The resolution is `base` pixels times the network's own
    ratio: `base` for 224 (FBNetV3-A), and, for a base of 32, 38 for FBNetV3-E with its 264. No resize
    precedes the crop.

    Raises:
        UsageError: the network has no second block of stride two.
    """
    strided = [(s, r) for s, stage in enumerate(defn.stages) for r, row in enumerate(stage.rows) if row.stride == 2]
    if len(strided) < 2:
        raise UsageError(f"{defn.name} has no second block of stride two to make stride one")
    s, r = strided[1]
    row = replace(defn.stages[s].rows[r], stride=1, dw_padding=None)
    stages = list(defn.stages)
    rows = list(stages[s].rows)
    rows[r] = row
    stages[s] = Stage(tuple(rows))
    pixels = max(1, math.floor(base * defn.resolution / IMAGENET_BASE + 0.5))
    return replace(
        defn, stages=tuple(stages), resolution=pixels, resize=pixels, name=name or f"{defn.name}_small_images"
    )


def same_padding(defn: ArchDef, *, name: str | None = None) -> ArchDef:
    """The network with depthwise padding kernel // 2 everywhere, as timm's networks have it."""
    stages = tuple(Stage(tuple(replace(row, dw_padding=None) for row in stage.rows)) for stage in defn.stages)
    return replace(defn, stages=stages, name=name or f"{defn.name}_same_padding")


@dataclass(frozen=True)
class Scaled:
    """What `scale_to_macs` found: the network and the multipliers that make it from the original."""

    defn: ArchDef
    multiplier: float
    depth: float
    width: float
    resolution: float
    macs: float


def scale_to_macs(
    defn: ArchDef,
    macs: float,
    *,
    depth: float = 1.2,
    width: float = 1.1,
    resolution: float = 1.15,
    tolerance: float = 0.01,
    num_classes: int = 1000,
    fixed: tuple[str, ...] = PARTS,
    name: str | None = None,
) -> Scaled:
    """Find the multiplier phi at which depth^phi, width^phi, resolution^phi meet a MACs target.

    The defaults are EfficientNet's constants (MACs about double with each unit of phi); 1.0 leaves a dimension
    alone. Depth, channels and pixels are whole steps, so that MACs jump with phi. The search tries one phi for
    all, with resolutions in steps of 8, 4, 2 and 1 pixels; then it lets each dimension leave the common phi
    by up to half a unit, and takes what leaves it least. `scale_to_macs(B, 357e6, depth=1, width=1)` is
    FBNetV3-A.

    Args:
        defn: the network to scale.
        macs: target in multiply-adds, counted as in Table 4.
        depth, width, resolution: growth of each dimension with a unit of phi, at least 1.
        tolerance: largest relative distance to the target.
        num_classes: outputs of the networks whose MACs are counted.
        fixed, name: as for `compound_scale`.

    Returns:
        The network, phi, the three multipliers and the MACs reached.

    Raises:
        UsageError: an argument that makes no sense; or nothing lies within the tolerance, and then the text
            names the closest that can be had.
    """
    bases = {"depth": depth, "width": width, "resolution": resolution}
    for what, value in {"macs target": macs, **bases}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise UsageError(f"{what} {value!r} is not a positive number")
    if min(bases.values()) < 1 or max(bases.values()) == 1:
        raise UsageError(
            f"depth {depth}, width {width}, resolution {resolution}: none may be below 1.0, and one must be above"
        )

    def at(phi: float, multiple: int, apart: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Scaled:
        factors = {what: base ** (phi + step) for (what, base), step in zip(bases.items(), apart, strict=True)}
        try:
            scaled = compound_scale(defn, **factors, fixed=fixed, multiple=multiple, name=name)
        except ArchError:  # beyond what a network can be
            return Scaled(defn, phi, **factors, macs=0 if phi < 0 else math.inf)
        return Scaled(scaled, phi, **factors, macs=cost_of(scaled, num_classes=num_classes).macs)

    def distance(found: Scaled) -> float:
        return abs(found.macs / macs - 1)

    centre = _crossing(lambda phi: at(phi, 1).macs, macs)
    closest = at(centre, 1)
    if not 0.5 < closest.macs / macs < 2:
        raise UsageError(f"no multiplier brings {defn.name} near {macs / 1e6:.1f} M MACs by scaling these dimensions")
    for multiple in (8, 4, 2, 1):
        found = min((at(centre + step, multiple) for step in _steps(0.15, 81)), key=distance)
        if distance(found) <= tolerance:
            return found
        closest = min(closest, found, key=distance)
    counts = {"depth": 5, "width": 25, "resolution": 25}
    apart = product(*(_steps(0.5, counts[what]) if base != 1.0 else [0.0] for what, base in bases.items()))
    for steps in sorted(apart, key=lambda steps: max(map(abs, steps))):
        found = at(centre, 1, steps)
        if distance(found) <= tolerance:
            return found
        closest = min(closest, found, key=distance)
    raise UsageError(
        f"no multiplier brings {defn.name} within {tolerance:.1%} of {macs / 1e6:.1f} M MACs; "
        f"the closest is {closest.macs / 1e6:.1f} M at {closest.multiplier:.3f}: "
        "scale more of depth, width and resolution, or allow a larger tolerance"
    )


def _crossing(macs_at: Callable[[float], float], target: float) -> float:
    """About the phi at which the (nearly) monotonous MACs reach the target."""
    low, high = -12.0, 12.0
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if macs_at(middle) > target else (middle, high)
    return (low + high) / 2


def _steps(reach: float, count: int) -> list[float]:
    return [reach * (2 * i / (count - 1) - 1) for i in range(count)]


def _part(stage: Stage, index: int) -> str:
    if stage.rows[-1].block == "mbpool":
        return "last"
    return "stem" if index == 0 else "trunk"


def _width_groups(stage: Stage) -> list[list[Row]]:
    """The rows that Table 2 writes as one: equal width, the stride in the first."""
    groups: list[list[Row]] = []
    for row in stage.rows:
        if not groups or row.channels != groups[-1][0].channels or row.stride == 2:
            groups.append([])
        groups[-1].append(row)
    return groups


def _scale_depth(rows: list[Row], depth: float) -> list[Row]:
    """Rows of equal width with `depth` times as many blocks; the last row gives or takes, the first stays."""
    if rows[-1].block == "mbpool":  # there can be only one
        return rows
    total = sum(row.repeat for row in rows)
    change = max(1, math.floor(total * depth + 0.5)) - total
    scaled = list(rows)
    while change < 0 and scaled[-1].repeat + change < 1:
        change += scaled.pop().repeat
    grown = scaled[-1]
    if change > 0 and len(scaled) == 1 and grown.stride == 2 and grown.dw_padding is not None:
        return [grown, replace(grown, stride=1, dw_padding=None, repeat=change)]
    return [*scaled[:-1], replace(grown, repeat=grown.repeat + change)]


def _with_resolution(defn: ArchDef, pixels: int) -> ArchDef:
    resize = max(pixels, round(defn.resize * pixels / defn.resolution))
    return replace(defn, resolution=pixels, resize=resize)
