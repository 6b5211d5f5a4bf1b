#!/usr/bin/env python3
"""What a search would take on many GPUs: `simulate_search.py [--asynchronous] [--picture FILE]`; `simulate_search.py
--replay FILE [--space FILE]` compares the simulation with a search that has run."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from tabulate import tabulate

from fbnetv3.arch import configs_folder
from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.search_settings import SearchSettings
from fbnetv3.nars.simulation.cluster_sweep import draw, fastest_split, scale
from fbnetv3.nars.simulation.imagenet_workload import (
    MEASURES,
    PAPER_GPU_HOURS,
    PAPER_MACS,
    V100_RATE,
    V100_SCALING,
    pool_costs,
    trial_costs,
)
from fbnetv3.nars.simulation.replay import read_search, replay, share_out, spread
from fbnetv3.nars.simulation.workload import Cluster
from fbnetv3.nars.space.cost_model import CostModel
from fbnetv3.nars.space.search_space import load_space
from fbnetv3.utils.command_line import ArgumentParser, run_tool
from fbnetv3.utils.text import format_duration

SPACE = configs_folder() / "nars" / "spaces" / "fbnetv3.yaml"
STOPS_AFTER = 0.75  # of the epochs: where our rule stopped the search of docs/results.md, 6 of 8
LEARNING = 4.0  # seconds between two rounds of that search


def main(argv=None):
    parser = ArgumentParser(description="Simulate a search on many GPUs in virtual time, or compare with one that ran.")
    add = parser.add_argument
    add("--gpus", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256, 512], metavar="N", help="in all")
    add("--gpus-per-trial", default="auto", metavar="N", help="auto is 1, 2, 4 or 8, whichever ends first (auto)")
    add("--asynchronous", action="store_true", help="beside rounds, a search that proposes whenever a GPU is free")
    add("--in-flight", type=int, metavar="N", help="asynchronously, trials at a time at most (default: the batch)")
    add("--failure-rate", type=float, default=1e-3, metavar="X", help="of a GPU in an hour (default: %(default)s)")
    add("--stragglers", type=float, default=0.2, metavar="X", help="deviation of log time (default: %(default)s)")
    add("--startup", type=float, default=120.0, metavar="S", help="seconds before an attempt's first epoch (120)")
    add("--repair", type=float, default=600.0, metavar="S", help="seconds that a failure's GPUs are away (600)")
    add("--retries", type=int, default=SearchSettings.retries, metavar="N", help="of a failed trial (%(default)s)")
    add("--no-checkpoints", action="store_true", help="a retry begins from the first epoch")
    add("--scaling", type=float, default=V100_SCALING, metavar="X", help="speed left per doubling (%(default)s)")
    add("--gpu-hours", type=float, default=PAPER_GPU_HOURS, metavar="H", help="to calibrate to (%(default)s)")
    add("--rate", type=float, metavar="X", help=f"MACs/s of a GPU, not calibrated; V100 in float32: {V100_RATE:.3g}")
    add("--measure", choices=MEASURES, default=MEASURES[0], help="what time follows (default: %(default)s)")
    add("--costly", type=float, default=1.0, metavar="X", help="share of the pool that later rounds are from (1)")
    for name in ("pool", "batch", "epochs"):
        add(f"--{name}", type=int, default=getattr(SearchSettings, name), metavar="N", help="default: %(default)s")
    add("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    add("--stop-epoch", type=int, metavar="N", help="of trials after the first round (default: 3/4 of the epochs)")
    add("--space", default=str(SPACE), metavar="FILE", help="default: the paper's")
    add("--seed", type=int, default=0, metavar="N", help="of the pool and of all chances (default: %(default)s)")
    add("--repeats", type=int, default=20, metavar="N", help="simulations of each (default: %(default)s)")
    add("--picture", type=Path, metavar="FILE", help="PNG to draw")
    add("--replay", type=Path, metavar="FILE", help="folder or SQLite file of a search that has run")
    args = parser.parse_args(argv)
    compare(args) if args.replay else plan(args)


def plan(args):
    settings = SearchSettings(
        pool=args.pool,
        batch=args.batch,
        epochs=args.epochs,
        rounds=args.rounds,
        seed=args.seed,
        retries=args.retries,
        constraints={"macs": list(PAPER_MACS)},
    )
    space = load_space(args.space)
    stop = round(STOPS_AFTER * args.epochs) if args.stop_epoch is None else args.stop_epoch
    how = {"gpu_hours": args.gpu_hours, "rate": args.rate, "measure": args.measure, "costly": args.costly}
    costs = trial_costs(pool_costs(space, settings), settings, settings.rounds_in(space), stop, **how)
    print(described(costs, args.rate is not None))
    rows = simulated(args, settings, costs.load)
    print(tabulate([shown(row) for row in rows], headers="keys", disable_numparse=True, stralign="right"))
    if args.asynchronous:
        for rounds, free in zip(rows[::2], rows[1::2], strict=True):
            gain = 1 - free.wall.mean() / rounds.wall.mean()
            print(f"{rounds.cluster.gpus} GPUs: {100 * gain:.1f} % less wall time asynchronously")
    if (most := max(row.stopped for row in rows)) > 0:
        print(f"in up to {100 * most:.0f} % of the simulations a search would stop (max_failures) to be resumed")
    if args.picture:
        draw(rows, args.picture)


def described(costs, given):
    macs, load = costs.macs / 1e6, costs.load
    return (
        f"{macs.size} trials of {macs.min():.0f} to {macs.max():.0f} M MACs, mean {macs.mean():.0f}, and "
        f"{costs.params.mean() / 1e6:.1f} M parameters; {load.full_epochs} epochs in round 1, then {load.stop_epoch}\n"
        f"{load.gpu_seconds / 3600:,.0f} GPU hours on one GPU each, {'from the rate' if given else 'calibrated'}: "
        f"{costs.rate:.3g} multiply-adds a second, {costs.images:.0f} images a second, "
        f"{100 * costs.rate / V100_RATE:.0f} % of a V100's in float32"
    )


def simulated(args, settings, load):
    rows = []
    for gpus in args.gpus:
        failing = {"failure_rate": args.failure_rate, "repair": args.repair, "checkpoints": not args.no_checkpoints}
        cluster = Cluster(gpus, 1, args.scaling, stragglers=args.stragglers, startup=args.startup, **failing)
        cluster = replace(cluster, gpus_per_trial=split(args.gpus_per_trial, load, cluster))
        for asynchronous in (False, True)[: 1 + args.asynchronous]:
            rows.append(
                scale(
                    load,
                    cluster,
                    asynchronous=asynchronous,
                    in_flight=args.in_flight,
                    retries=args.retries,
                    max_failures=settings.max_failures,
                    learning=LEARNING,
                    seeds=range(args.seed, args.seed + args.repeats),
                )
            )
    return rows


def split(text, load, cluster):
    if text == "auto":
        return fastest_split(load, cluster, LEARNING)
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--gpus-per-trial {text}: is neither auto nor a number") from None


def shown(row):
    days = row.wall / 86400
    return {
        "GPUs": row.cluster.gpus,
        "a trial": row.cluster.gpus_per_trial,
        "": "asynchronous" if row.asynchronous else "rounds",
        "days": f"{days.mean():.2f}",
        "least to most": f"{days.min():.2f} to {days.max():.2f}",
        "GPU hours": f"{row.gpu_seconds.mean() / 3600:,.0f}",
        "utilisation": f"{100 * row.utilisation:.0f} %",
        "failures": f"{row.failures:.1f}",
        "trials lost": f"{row.lost:.2f}",
        "results known": f"{row.known:.0f}",
    }


def compare(args):
    search = read_search(args.replay)
    trials = search.trials
    parts = replay(trials)
    titles = {"times as recorded": parts}
    if args.space != str(SPACE):
        model = CostModel(load_space(args.space), search.settings.get("num_classes", 1000))
        costs = model(np.array([trial.candidate for trial in trials]))
        for name in MEASURES:
            seconds = share_out(trials, costs[name])
            titles[f"times by {name}"] = replay(trials, seconds)
            by_round = ", ".join(f"{value:.2f}" for value in spread(trials, costs[name]))
            print(f"times by {name}, at each round's rate: deviation of log(recorded / predicted) {by_round}")
    rows = []
    for i, part in enumerate(parts):
        row = {"round": part.round + 1, "trials": len(part.trials), "at a time": part.workers}
        row["recorded"] = format_duration(part.recorded)
        for title, found in titles.items():
            row[title] = f"{format_duration(found[i].simulated)} ({100 * found[i].error:+.1f} %)"
        rows.append(row)
    print(tabulate(rows, headers="keys", disable_numparse=True, stralign="right"))
    recorded = sum(part.recorded for part in parts)
    for title, found in titles.items():
        whole = sum(part.simulated for part in found)
        print(
            f"{title}: {format_duration(whole)} for {format_duration(recorded)} in all, {100 * (whole / recorded - 1):+.2f} %"
        )


if __name__ == "__main__":
    run_tool(main)
