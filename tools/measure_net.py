#!/usr/bin/env python3
"""How fast networks are here: `measure_net.py [NAME|FILE|EXPORTED ...]`; `measure_net.py --space FILE --table FILE`
measures every block of a search space, for networks searched for their latency."""

from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from tqdm import tqdm

from fbnetv3.arch import compute_cost, get_arch
from fbnetv3.arch.latency_table import load_latency_table
from fbnetv3.deploy.latency.benchmark import RUNTIMES, measure_exported, measure_network
from fbnetv3.deploy.latency.latency_measurement import describe_device, evaluate_table, fill_table
from fbnetv3.nars.space.latency_model import possible_shapes
from fbnetv3.nars.space.search_space import ARCHITECTURE, load_space
from fbnetv3.utils.command_line import ArgumentParser, run_tool

PUBLISHED = [f"fbnetv3_{letter}" for letter in "abcdefg"]
LEARNED, CHECKED = 0, 1  # seeds of the networks that a table learns from, and of those that it is checked on


def main(argv=None):
    parser = ArgumentParser(description="Measure latency and memory of networks, or fill a table of latencies.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="architecture, its file, or exported folder")
    parser.add_argument("--runtime", choices=RUNTIMES, default="onnxruntime", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="images at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each network (default: %(default)s)")
    parser.add_argument("--num-classes", type=int, default=1000, metavar="N", help="default: %(default)s")
    parser.add_argument("--table", metavar="FILE", help="latency table to fill, or to predict from")
    parser.add_argument("--space", metavar="FILE", help="measure all of its blocks that the table lacks")
    parser.add_argument("--networks", type=int, default=24, metavar="N", help="whole ones in a table (default: 24)")
    parser.add_argument("--again", action="store_true", help="measure blocks once more; the shorter time counts")
    parser.add_argument("--check", type=int, metavar="N", help="compare the table with N random networks of the space")
    parser.add_argument("--device", default="", metavar="NAME", help="what to call this machine in a table")
    args = parser.parse_args(argv)
    for name in ("threads", "batch", "seconds", "num_classes"):
        if getattr(args, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)}: is not more than 0")
    if args.space and not args.table:
        parser.error("--space needs --table FILE, to write to")
    if args.networks < 0:
        parser.error(f"--networks {args.networks}: is less than 0")
    if args.check is not None and args.check < 2:
        parser.error(f"--check {args.check}: a ranking takes at least 2 networks")
    if args.check and not args.space:
        parser.error("--check needs --space FILE, where the networks come from")
    torch.set_num_threads(args.threads)
    if args.check:
        check(args)
    elif args.space:
        fill(args)
    else:
        compare(args)


def compare(args):
    table = load_latency_table(args.table) if args.table else None
    rows, disturbed = [], False
    for name in args.names or PUBLISHED:
        row = measured_row(name, args, table)
        disturbed |= row.pop("disturbed")
        rows.append(row)
    print(f"{args.threads} thread{'s' * (args.threads > 1)}, batch {args.batch}, float32 unless exported otherwise")
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    if disturbed:
        print("the machine was busy with something else: half of the calls took much longer than the shortest")


def measured_row(name, args, table):
    how = {"batch": args.batch, "seconds": args.seconds}
    predicted = {}
    if Path(name).is_dir():
        found = measure_exported(name, **how)
    else:
        defn = get_arch(name)
        found = measure_network(args.runtime, defn, num_classes=args.num_classes, **how)
        predicted["M MACs"] = compute_cost(defn, num_classes=args.num_classes).macs / 1e6
        if table:
            predicted["predicted ms"] = table.predict(defn, args.num_classes)
    timing = found.timing
    return {
        "network": name,
        "runtime": found.runtime,
        "pixels": found.side,
        **predicted,
        "median ms": timing.median,
        "least": timing.least,
        "p90": timing.p90,
        "p99": timing.p99,
        "images/s": 1e3 * args.batch / timing.median,
        "memory MB": found.memory / 1e6,
        "disturbed": timing.is_disturbed,
    }


def fill(args):
    space = load_space(args.space)
    shapes = possible_shapes(space, args.num_classes)
    device = describe_device(args.runtime, args.batch, args.device)
    print(f"{device}: {len(shapes):,} blocks of {space.name}")
    networks = drawn(space, args.networks, LEARNED)
    with tqdm(unit="", mininterval=1, disable=None) as bar:

        def watch(what, done, total):
            bar.total, bar.n = total, done
            bar.set_description(what, refresh=False)
            bar.update(0)

        table = fill_table(
            Path(args.table), device, shapes, networks, num_classes=args.num_classes, again=args.again, watch=watch
        )
    fit = table.fit
    print(f"{args.table}: {len(table.blocks):,} blocks, {len(table.networks)} networks")
    if fit.num_networks:
        print(f"a network takes {fit.scale:.3f} x the sum of its blocks' ms and {1e3 * fit.per_block:+.1f} us a block")


def check(args):
    space, table = load_space(args.space), load_latency_table(args.table)
    found = evaluate_table(table, drawn(space, args.check, CHECKED), args.num_classes, watch=lambda line: print(line))
    print(
        f"{found.networks} networks that the table has not seen, on {table.device}: rank correlation {found.rank:.3f}, "
        f"median error {100 * found.median_error:.1f} %, at most {100 * found.largest_error:.1f} %"
    )


def drawn(space, count, seed):
    """Architectures of random candidates."""
    part = space.subspace(ARCHITECTURE)
    candidates = np.random.default_rng(seed).integers(0, part.sizes, (count, len(part)))
    return [part.make_arch(candidate, f"{part.name}_{seed}_{i}") for i, candidate in enumerate(candidates)]


if __name__ == "__main__":
    run_tool(main, after_interrupt="what is in the table stays; the same command goes on", sigterm=True)
