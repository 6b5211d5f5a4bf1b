"""Measure networks on this machine: `fbnetv3 measure [NAME|FILE|DIR ...]`.

`fbnetv3 measure --space FILE --table FILE` measures every block of a search space, for searches with a latency budget.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from fbnetv3.arch import ArchDef, compute_cost, get_arch
from fbnetv3.arch.latency_table import LatencyTable, load_latency_table
from fbnetv3.deploy.latency.benchmark import (
    ONNX_RUNTIME,
    measure_exported,
    measure_network,
    runtime_format,
    runtime_names,
)
from fbnetv3.deploy.latency.table_measurement import describe_device, evaluate_table, fill_table
from fbnetv3.modeling.torch_device import CPU
from fbnetv3.nars.space.latency_model import possible_shapes
from fbnetv3.nars.space.search_space import Space, load_space
from fbnetv3.nars.space.variables import ARCHITECTURE
from fbnetv3.utils.command_line import ArgumentParser, positive_int

PUBLISHED = [f"fbnetv3_{letter}" for letter in "abcdefg"]
DEFAULT_NETWORKS = 24
TABLE_SEED = 0  # of the random networks that a table learns from
CHECK_SEED = 1  # of those that it is checked with


def main(argv: Sequence[str] | None = None) -> None:
    """Measure networks, or fill or check a latency table."""
    args = _parse_args(argv)
    if not all(Path(name).is_dir() for name in args.names) or not args.names:
        runtime_format(args.runtime or ONNX_RUNTIME)  # raises for an unknown name
    torch.set_num_threads(args.threads)
    if args.check:
        _check_latency_table(args)
    elif args.space:
        _fill_latency_table(args)
    else:
        _run_comparison(args)


def _parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _build_parser()
    args = parser.parse_args(argv)
    if args.seconds <= 0:
        parser.error(f"--seconds {args.seconds} must be greater than 0")
    if args.space:
        _check_table_options(parser, args)
    if args.check is not None and args.check < 2:
        parser.error(f"--check {args.check} must be at least 2, to rank networks")
    if args.check and not args.space:
        parser.error("--check needs --space FILE, from which the networks are drawn")
    for option in () if args.space and not args.check else ("networks", "remeasure"):
        if getattr(args, option) is not None:
            parser.error(f"--{option} is for filling a table: it needs --space, without --check")
    if args.networks is None:
        args.networks = DEFAULT_NETWORKS
    if args.networks < 0:
        parser.error(f"--networks {args.networks} must be at least 0")
    return args


def _check_table_options(parser: ArgumentParser, args: argparse.Namespace) -> None:
    if not args.table:
        parser.error("--space needs --table FILE, the file to write")
    if args.names:
        parser.error("--space takes no names")
    if args.device != CPU:
        # Each block would include the copies of its maps to the device and back
        parser.error(f"--device {args.device}: latency tables are for CPUs only")


def _build_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Measure latency and memory of networks, or fill a latency table.")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME|FILE|DIR",
        help="architecture, its YAML file, or an exported folder (default: the published networks)",
    )
    runtimes = ", ".join(runtime_names())
    parser.add_argument(
        "--runtime",
        metavar="NAME",
        help=f"{runtimes}, or a format that an imported module registers (default: {ONNX_RUNTIME}); for exported "
        "folders, one of the format's runtimes (default: its own), or auto: the fastest",
    )
    parser.add_argument(
        "--threads", type=positive_int, default=1, metavar="N", help="number of CPU threads"
    )
    parser.add_argument("--batch", type=positive_int, default=1, metavar="N", help="images per call")
    parser.add_argument(
        "--seconds", type=float, default=3.0, metavar="S", help="seconds to measure each network"
    )
    parser.add_argument(
        "--num-classes", type=positive_int, default=1000, metavar="N", help="number of classes"
    )
    parser.add_argument(
        "--table", metavar="FILE", help="latency table to fill, or to predict latencies from"
    )
    parser.add_argument("--space", metavar="FILE", help="search space whose blocks to measure for --table")
    parser.add_argument(
        "--networks",
        type=int,
        metavar="N",
        help=f"random networks to measure end to end, to fit the table's predictions (default: {DEFAULT_NETWORKS})",
    )
    parser.add_argument(
        "--remeasure",
        action="store_true",
        default=None,
        help="measure all blocks again and keep the shorter time of each",
    )
    parser.add_argument(
        "--check", type=int, metavar="N", help="compare the table with N random networks of the space"
    )
    parser.add_argument(
        "--device",
        default=CPU,
        metavar="NAME",
        help="device to compute on, such as cuda or cuda:1, if the runtime can; auto: a GPU if there is one",
    )
    parser.add_argument(
        "--device-name", default="", metavar="NAME", help="name of this machine in the table"
    )
    return parser


def _run_comparison(args: argparse.Namespace) -> None:
    table = load_latency_table(args.table) if args.table else None
    rows = []
    is_disturbed = False
    for name in args.names or PUBLISHED:
        row = _measure_row(name, args, table)
        is_disturbed |= row.pop("disturbed")
        rows.append(row)
    plural = "s" if args.threads > 1 else ""
    print(f"{args.threads} thread{plural}, batch {args.batch}, float32 unless exported otherwise")
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    if is_disturbed:
        print(
            "the machine was busy: half of the calls took much longer than the fastest; rerun when it is idle"
        )


def _measure_row(name: str, args: argparse.Namespace, table: LatencyTable | None) -> dict[str, Any]:
    predictions = {}
    if Path(name).is_dir():
        measurement = measure_exported(
            name, batch=args.batch, runtime=args.runtime, device=args.device, seconds=args.seconds
        )
    else:
        arch = get_arch(name)
        measurement = measure_network(
            args.runtime or ONNX_RUNTIME,
            arch,
            num_classes=args.num_classes,
            batch=args.batch,
            device=args.device,
            seconds=args.seconds,
        )
        predictions["M MACs"] = compute_cost(arch, num_classes=args.num_classes).macs / 1e6
        if table:
            predictions["predicted ms"] = table.predict(arch, args.num_classes)
    timing = measurement.timing
    return {
        "network": name,
        "runtime": measurement.runtime,
        "pixels": measurement.resolution,
        **predictions,
        "median ms": timing.median,
        "min": timing.min,
        "p90": timing.p90,
        "p99": timing.p99,
        "images/s": 1e3 * args.batch / timing.median,
        "memory MB" if args.device == CPU else "CPU memory MB": measurement.peak_memory_bytes / 1e6,
        "disturbed": timing.is_disturbed,
    }


def _fill_latency_table(args: argparse.Namespace) -> None:
    space = load_space(args.space)
    shapes = possible_shapes(space, args.num_classes)
    device = describe_device(args.runtime or ONNX_RUNTIME, args.batch, args.device_name)
    print(f"{device}: {len(shapes):,} blocks of {space.name}")
    networks = _draw_networks(space, args.networks, TABLE_SEED)
    with tqdm(unit="", mininterval=1, disable=None) as bar:

        def show_progress(kind: str, done: int, total: int) -> None:
            bar.total = total
            bar.n = done
            bar.set_description(kind, refresh=False)
            bar.update(0)

        table = fill_table(
            Path(args.table),
            device,
            shapes,
            networks,
            num_classes=args.num_classes,
            remeasure=bool(args.remeasure),
            progress=show_progress,
        )
    fit = table.fit
    print(f"{args.table}: {len(table.blocks):,} blocks, {len(table.networks)} networks")
    if fit.num_networks:
        print(
            f"latency of a network = {fit.scale:.3f} x sum of its blocks {1e3 * fit.per_block:+.1f} us per block"
        )


def _check_latency_table(args: argparse.Namespace) -> None:
    space = load_space(args.space)
    table = load_latency_table(args.table)
    networks = _draw_networks(space, args.check, CHECK_SEED)
    quality = evaluate_table(table, networks, args.num_classes, log=print)
    print(
        f"{quality.num_networks} networks that are not in the table, on {table.device}: "
        f"rank correlation {quality.rank_correlation:.3f}, median error {100 * quality.median_error:.1f}%, "
        f"largest error {100 * quality.max_error:.1f}%"
    )


def _draw_networks(space: Space, count: int, seed: int) -> list[ArchDef]:
    """Draw random architectures from a search space."""
    subspace = space.subspace(ARCHITECTURE)
    candidates = np.random.default_rng(seed).integers(0, subspace.sizes, (count, len(subspace)))
    return [
        subspace.build_arch(candidate, f"{subspace.name}_{seed}_{i}")
        for i, candidate in enumerate(candidates)
    ]
