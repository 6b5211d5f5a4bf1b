"""Latency of networks predicted from a table of block latencies, measured on a device (as in FBNet and ProxylessNAS).

A table is a file of JSON lines. The first describes the device; each of the others holds the latency of one block, or
of one whole network, from which `LatencyTable.fit` learns how block latencies add up. Lines are only ever appended, so
an interrupted measurement can be resumed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import yaml

from fbnetv3.arch.arch_files import arch_from_dict, dump_arch
from fbnetv3.arch.block_specs import BLOCK_SPECS, BlockSpec
from fbnetv3.arch.definition import ArchDef
from fbnetv3.errors import UserError
from fbnetv3.utils.files import expand_path, make_folder
from fbnetv3.utils.json_lines import append_json_line, drop_partial_line
from fbnetv3.utils.text import describe_error

LAYOUT_VERSION = 1
HEAD = "head"
_MIN_NETWORKS_TO_FIT = 8


class LatencyError(UserError):
    """A latency table that cannot be read, or lacks a block."""


@dataclass(frozen=True)
class HeadSpec:
    """The classifier's head: global average pool, and a 1x1 convolution to the classes."""

    in_channels: int
    out_channels: int


class BlockShape(NamedTuple):
    """A block at a given input size."""

    kind: str  # registered name of the block, or "head"
    spec: BlockSpec | HeadSpec
    side: int  # height and width of the input in pixels


@dataclass(frozen=True)
class MeasuredDevice:
    """The setup of a measurement."""

    device: str  # name of the processor, or a name chosen by its user
    runtime: str  # name and version of what ran the blocks
    threads: int
    batch: int  # images per run

    def __str__(self) -> str:
        return f"{self.device}, {self.runtime}, {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}"


@dataclass(frozen=True)
class LatencyFit:
    """How block latencies add up to a network's, in ms: `scale` * their sum + `per_block` * their number."""

    scale: float = 1.0  # these are the coefficients if there are too few whole networks to fit them
    per_block: float = 0.0
    num_networks: int = 0


@dataclass(frozen=True)
class LatencyTable:
    """Latencies on a device, in ms."""

    device: MeasuredDevice
    blocks: Mapping[BlockShape, float]
    networks: tuple[tuple[ArchDef, int, float], ...] = ()  # architecture, number of classes, latency

    @cached_property
    def fit(self) -> LatencyFit:
        """The least-squares fit of relative errors over the whole networks."""
        if len(self.networks) < _MIN_NETWORKS_TO_FIT:
            return LatencyFit(num_networks=len(self.networks))
        sums = np.array([self._sum_blocks(arch, num_classes) for arch, num_classes, _ in self.networks])
        measured = np.array([ms for *_, ms in self.networks])
        # Dividing by the measured latency turns absolute errors into relative ones
        scale, per_block = np.linalg.lstsq(sums / measured[:, None], np.ones(len(sums)), rcond=None)[0]
        return LatencyFit(float(scale), float(per_block), len(sums))

    def predict(self, arch: ArchDef, num_classes: int = 1000) -> float:
        """Predict the latency of a network in ms."""
        total, num_blocks = self._sum_blocks(arch, num_classes)
        return float(self.predict_from_sum(total, num_blocks))

    def predict_from_sum(self, total: Any, num_blocks: Any) -> Any:
        """Predict the latency of networks in ms from their blocks' total latency and number, for numbers or arrays."""
        return self.fit.scale * total + self.fit.per_block * num_blocks

    def block_ms(self, shape: BlockShape) -> float:
        """Return the latency of a block in ms."""
        if shape not in self.blocks:
            block = f"{shape.kind} at {shape.side} pixels with {shape.spec}"
            raise LatencyError(
                f"the latency table has no {block}; complete it with tools/measure_net.py --space"
            )
        return self.blocks[shape]

    def _sum_blocks(self, arch: ArchDef, num_classes: int) -> tuple[float, int]:
        shapes = block_shapes(arch, num_classes)
        return sum(map(self.block_ms, shapes)), len(shapes)


def block_shapes(arch: ArchDef, num_classes: int = 1000) -> list[BlockShape]:
    """Return the blocks of a network at its resolution, in order, and its head unless `num_classes` is 0."""
    shapes = []
    side = arch.resolution
    for block_cost in arch.block_costs(side, side):
        shapes.append(BlockShape(block_cost.block.kind, block_cost.block.spec, side))
        side = block_cost.height
    if num_classes:
        shapes.append(head_shape(arch.out_channels, num_classes, side))
    return shapes


def head_shape(in_channels: int, num_classes: int, side: int) -> BlockShape:
    """Return the shape of a head for maps of `side` x `side`."""
    return BlockShape(HEAD, HeadSpec(in_channels, num_classes), side)


def load_latency_table(path: str | os.PathLike) -> LatencyTable:
    """Read a table. Of several measurements of a block, keep the shortest, because noise only adds to it.

    Raises:
        LatencyError: the file is missing, corrupt, or not a latency table.
    """
    path = expand_path(path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise LatencyError(
            f"{path}: cannot be read ({reason}); create it with tools/measure_net.py --space"
        ) from None
    # The first line describes the device, the others hold one measurement each; a killed writer's last line is partial
    complete_lines = text[: text.rfind("\n") + 1].splitlines()
    if not complete_lines:
        raise LatencyError(f"{path}: is empty; delete it and measure again")
    blocks: dict[BlockShape, float] = {}
    networks = []
    number = 1
    try:
        first_line, *lines = complete_lines
        header = json.loads(first_line)
        if header["layout"] > LAYOUT_VERSION:
            raise LatencyError(
                f"{path}: was written by a newer version of fbnetv3; update this one, or measure again"
            )
        device = MeasuredDevice(**{f.name: header[f.name] for f in fields(MeasuredDevice)})
        for line in lines:
            number += 1
            entry = json.loads(line)
            ms = float(entry["ms"])
            if not 0 < ms < math.inf:
                raise ValueError(f"{ms} ms")
            if "network" in entry:
                networks.append((arch_from_dict(entry["network"]), int(entry["num_classes"]), ms))
            else:
                shape = _parse_shape(entry)
                blocks[shape] = min(ms, blocks.get(shape, ms))
    except LatencyError:
        raise
    except (KeyError, TypeError, ValueError, UserError) as error:
        reason = describe_error(error)
        raise LatencyError(f"{path}: line {number} is not an entry of a latency table ({reason})") from None
    return LatencyTable(device, blocks, tuple(networks))


def _parse_shape(entry: Mapping[str, Any]) -> BlockShape:
    kind = entry["block"]
    spec_class: Callable[..., Any] = HeadSpec if kind == HEAD else BLOCK_SPECS.get(kind)
    return BlockShape(kind, spec_class(**entry["spec"]), int(entry["side"]))


class LatencyTableWriter:
    """Appends measurements to the file of a latency table; if it exists, it must be of the same device."""

    def __init__(self, path: str | os.PathLike, device: MeasuredDevice) -> None:
        self.path = expand_path(path)
        header = {"layout": LAYOUT_VERSION, **asdict(device)}
        make_folder(self.path.parent)
        # A writer may have been killed during its first line
        if self.path.exists() and json.dumps(header).encode().startswith(self.path.read_bytes()):
            drop_partial_line(self.path)
        if not self.path.exists() or not self.path.stat().st_size:
            append_json_line(self.path, header)
        # Resume only a table of the same device
        measured = load_latency_table(self.path).device
        if measured != device:
            raise LatencyError(
                f"{self.path}: was measured on {measured}, but this is {device}; choose a different file"
            )
        drop_partial_line(self.path)

    def add_block(self, shape: BlockShape, ms: float) -> None:
        """Append the latency of a block."""
        entry = {"block": shape.kind, "side": shape.side, "spec": asdict(shape.spec), "ms": round(ms, 6)}
        append_json_line(self.path, entry)

    def add_network(self, arch: ArchDef, num_classes: int, ms: float) -> None:
        """Append the latency of a whole network."""
        entry = {"network": yaml.safe_load(dump_arch(arch)), "num_classes": num_classes, "ms": round(ms, 6)}
        append_json_line(self.path, entry)
