"""Latency of networks from a table of their blocks', measured one by one on a device (as for FBNet and ProxylessNAS).

A table is a file of JSON lines: what was measured, on what; then a line for each block, and for some whole networks,
from which it is learned how the blocks' latencies add up. Lines are only ever added: an interrupted measurement goes on
where it ended.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from fbnetv3.arch.arch_files import arch_from_dict, dump_arch
from fbnetv3.arch.block_specs import BLOCK_SPECS, BlockSpec
from fbnetv3.arch.definition import ArchDef
from fbnetv3.errors import UsageError, UserError

LAYOUT = 1
HEAD = "head"
# Whole networks from which on the way in which latencies add up is learned from them.
_LEAST_NETWORKS = 8


class LatencyError(UserError):
    """A table of latencies that cannot be read, or lacks what is asked for."""


@dataclass(frozen=True)
class HeadSpec:
    """What follows the last block: global average pool, and a 1x1 convolution to the classes."""

    in_channels: int
    out_channels: int


class BlockShape(NamedTuple):
    """A block where it could stand.

    Attributes:
        kind: its registered name, or "head".
        spec: what it is made of.
        side: height and width of its input, in pixels.
    """

    kind: str
    spec: BlockSpec | HeadSpec
    side: int


@dataclass(frozen=True)
class Device:
    """On what was measured.

    Attributes:
        device: the machine's processor, or whatever its owner calls it.
        runtime: what ran the blocks, with its version.
        threads: how many it had.
        batch: images at once.
    """

    device: str
    runtime: str
    threads: int
    batch: int

    def __str__(self) -> str:
        return f"{self.device}, {self.runtime}, {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}"


@dataclass(frozen=True)
class Fit:
    """How latencies of blocks add up to a network's, in ms: `scale` x their sum + `block` x their number.

    Attributes:
        scale, block: learned from whole networks; 1 and 0 where there are too few.
        networks: how many.
    """

    scale: float = 1.0
    block: float = 0.0
    networks: int = 0


@dataclass(frozen=True)
class LatencyTable:
    """Latencies on a device.

    Attributes:
        device: which.
        blocks: ms of each block.
        networks: whole networks: architecture, number of classes, ms.
    """

    device: Device
    blocks: Mapping[BlockShape, float]
    networks: tuple[tuple[ArchDef, int, float], ...] = ()

    @cached_property
    def fit(self) -> Fit:
        """How the blocks' latencies add up, by least squares on relative errors over the whole networks."""
        if len(self.networks) < _LEAST_NETWORKS:
            return Fit(networks=len(self.networks))
        parts = np.array([self._parts(defn, num_classes) for defn, num_classes, _ in self.networks])
        measured = np.array([ms for *_, ms in self.networks])
        scale, block = np.linalg.lstsq(parts / measured[:, None], np.ones(len(parts)), rcond=None)[0]
        return Fit(float(scale), float(block), len(parts))

    def of(self, defn: ArchDef, num_classes: int = 1000) -> float:
        """Predicted latency of a network in ms.

        Raises:
            LatencyError: one of its blocks was not measured.
        """
        total, blocks = self._parts(defn, num_classes)
        return float(self.combined(total, blocks))

    def combined(self, total: Any, blocks: Any) -> Any:
        """Latency in ms of networks from the sum over their blocks and the number of these; numbers or arrays."""
        return self.fit.scale * total + self.fit.block * blocks

    def of_block(self, shape: BlockShape) -> float:
        """Latency of a block in ms.

        Raises:
            LatencyError: it was not measured.
        """
        try:
            return self.blocks[shape]
        except KeyError:
            raise LatencyError(
                f"the latency table has no {shape.kind} at {shape.side} pixels with {shape.spec}: it is of another "
                "space, or unfinished; tools/measure_net.py --space goes on with it"
            ) from None

    def _parts(self, defn: ArchDef, num_classes: int) -> tuple[float, int]:
        shapes = shapes_of(defn, num_classes)
        return sum(map(self.of_block, shapes)), len(shapes)


def shapes_of(defn: ArchDef, num_classes: int = 1000) -> list[BlockShape]:
    """The blocks of a network at its resolution, in order, and its head where it has classes."""
    found, side = [], defn.resolution
    for block in defn.blocks():
        found.append(BlockShape(block.kind, block.spec, side))
        _, side, _ = block.spec.cost(side, side)
    return [*found, head_shape(defn.out_channels, num_classes, side)] if num_classes else found


def head_shape(in_channels: int, num_classes: int, side: int) -> BlockShape:
    """A head for maps of that side."""
    return BlockShape(HEAD, HeadSpec(in_channels, num_classes), side)


def load_latency_table(path: str | os.PathLike) -> LatencyTable:
    """Read a table. Of a block measured several times, the shortest time counts: whatever else a machine does can only
    make it longer.

    Raises:
        LatencyError: the file is missing, damaged, or no table.
    """
    path = Path(path).expanduser()
    try:
        lines = path.read_text().splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise LatencyError(f"{path}: cannot be read ({reason}); tools/measure_net.py --space makes tables") from None
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]  # cut off when its writer was killed
    blocks: dict[BlockShape, float] = {}
    networks, number = [], 1
    try:
        device = _device(json.loads(lines[0]))
        for line in lines[1:]:
            number += 1
            entry = json.loads(line)
            ms = float(entry["ms"])
            if not 0 < ms < float("inf"):
                raise ValueError(f"{ms} ms")
            if "network" in entry:
                networks.append((arch_from_dict(entry["network"]), int(entry["num_classes"]), ms))
            else:
                shape = _shape(entry)
                blocks[shape] = min(ms, blocks.get(shape, ms))
    except (IndexError, KeyError, TypeError, ValueError, UserError) as error:
        raise LatencyError(f"{path}: line {number} is not one of a latency table ({error!r})") from None
    return LatencyTable(device, blocks, tuple(networks))


class TableWriter:
    """Adds measurements to a table's file, each at once.

    Args:
        path: the file; one that is there must be of the same device.
        device: what is measured on.

    Raises:
        LatencyError: the file is no table, or another device's.
    """

    def __init__(self, path: str | os.PathLike, device: Device) -> None:
        self.path = Path(path).expanduser()
        if self.path.exists() and self.path.stat().st_size:
            there = load_latency_table(self.path).device
            if there != device:
                raise LatencyError(f"{self.path}: is of {there}; this is {device}: choose another file")
            _drop_partial_line(self.path)
            self._file = self.path.open("a")
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("w")
            self._write({"layout": LAYOUT, **asdict(device)})

    def block(self, shape: BlockShape, ms: float) -> None:
        """Add a block's latency."""
        self._write({"block": shape.kind, "side": shape.side, "spec": asdict(shape.spec), "ms": round(ms, 6)})

    def network(self, defn: ArchDef, num_classes: int, ms: float) -> None:
        """Add a whole network's latency."""
        self._write({"network": yaml.safe_load(dump_arch(defn)), "num_classes": num_classes, "ms": round(ms, 6)})

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


def _drop_partial_line(path: Path) -> None:
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as f:
            f.truncate(whole)


def _device(entry: Mapping[str, Any]) -> Device:
    if entry["layout"] > LAYOUT:
        raise UsageError("written by a newer fbnetv3")
    return Device(**{f.name: entry[f.name] for f in fields(Device)})


def _shape(entry: Mapping[str, Any]) -> BlockShape:
    kind = entry["block"]
    make: Callable[..., Any] = HeadSpec if kind == HEAD else BLOCK_SPECS.get(kind)
    return BlockShape(kind, make(**entry["spec"]), int(entry["side"]))
