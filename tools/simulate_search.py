#!/usr/bin/env python3
"""Simulate Algorithm 1 on clusters of several sizes: `simulate_search.py [--asynchronous] [--figure FILE]`.

`simulate_search.py --replay FILE [--space FILE]` compares the simulation with a search that was run.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

from fbnetv3.arch import configs_folder
from fbnetv3.errors import UsageError
from fbnetv3.nars.settings.search_settings import SearchSettings
from fbnetv3.nars.simulation.cluster_sweep import (
    SweepPoint,
    fastest_gpus_per_trial,
    plot_sweep,
    simulate_seeds,
)
from fbnetv3.nars.simulation.imagenet_workload import (
    PAPER_GPU_HOURS,
    PAPER_MACS,
    TIME_COLUMNS,
    V100_MACS_PER_SECOND,
    V100_SCALING,
    ImageNetWorkload,
    build_imagenet_workload,
    pool_costs,
)
from fbnetv3.nars.simulation.replay import (
    ReplayedPeriod,
    proportional_times,
    read_search,
    replay,
    residual_spread,
)
from fbnetv3.nars.simulation.simulator import Cluster, Workload
from fbnetv3.nars.space.cost_model import CostModel
from fbnetv3.nars.space.search_space import load_space
from fbnetv3.utils.command_line import ArgumentParser, positive_int, run_tool
from fbnetv3.utils.text import format_duration

PAPER_SPACE = configs_folder() / "nars" / "spaces" / "fbnetv3.yaml"
# Both from the search in docs/results.md: it stopped later trials after 6 of 8 epochs, and paused 4 s between rounds
STOP_FRACTION = 0.75
PREDICTOR_SECONDS = 4.0


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.replay:
        compare_with_recorded(args)
    else:
        simulate_sweep(args)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        description="Simulate a search on many GPUs, or compare the simulation with a real search."
    )
    add_cluster_arguments(parser)
    add_search_arguments(parser)
    add_time_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="first random seed")
    parser.add_argument(
        "--repeats", type=positive_int, default=20, metavar="N", help="seeds to simulate per cluster"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE", help="PNG file to write")
    parser.add_argument(
        "--replay", type=Path, metavar="FILE", help="folder or SQLite file of a search that was run"
    )
    args = parser.parse_args(argv)
    if args.max_in_flight and not args.asynchronous:
        parser.error("--max-in-flight needs --asynchronous")
    # A replay takes its trials from the recorded search
    used_by_replay = ("replay", "space")
    for name, value in vars(args).items() if args.replay else ():
        if name not in used_by_replay and value != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} has no effect with --replay: omit it")
    return args


def add_cluster_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("cluster").add_argument
    add(
        "--gpus",
        type=positive_int,
        nargs="+",
        default=[8, 16, 32, 64, 128, 256, 512],
        metavar="N",
        help="cluster sizes, in GPUs (default: 8 to 512)",
    )
    add(
        "--gpus-per-trial",
        type=parse_gpus_per_trial,
        default="auto",
        metavar="N",
        help="GPUs per trial; auto picks the fastest of 1, 2, 4, 8 (default: auto)",
    )
    add(
        "--scaling",
        type=float,
        default=V100_SCALING,
        metavar="X",
        help="parallel efficiency per doubling of a trial's GPUs",
    )
    add("--failure-rate", type=float, default=1e-3, metavar="X", help="failures per GPU hour")
    add(
        "--stragglers",
        type=float,
        default=0.2,
        metavar="X",
        help="standard deviation of the logarithm of an attempt's slowdown",
    )
    add(
        "--startup",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds from an attempt's start to its first epoch",
    )
    add("--repair", type=float, default=600.0, metavar="S", help="seconds to replace failed GPUs")
    add("--no-checkpoints", action="store_true", help="restart failed trials from the first epoch")


def add_search_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("search").add_argument
    add(
        "--asynchronous", action="store_true", help="also simulate a search that proposes trials one by one"
    )
    add(
        "--max-in-flight",
        type=positive_int,
        metavar="N",
        help="limit of concurrent trials with --asynchronous (default: the round size)",
    )
    add(
        "--retries",
        type=int,
        default=SearchSettings.retries,
        metavar="N",
        help="additional attempts at a failed trial",
    )
    for name, meaning in {
        "pool_size": "candidates in the pool",
        "round_size": "trials per round",
        "epochs": "epochs of a trial in the first round",
    }.items():
        add(
            f"--{name.replace('_', '-')}",
            type=positive_int,
            default=getattr(SearchSettings, name),
            metavar="N",
            help=meaning,
        )
    add("--rounds", type=positive_int, default=5, metavar="N", help="rounds of the search")
    add(
        "--stopping-epoch",
        type=int,
        metavar="N",
        help="epochs of trials after the first round (default: 3/4 of the epochs)",
    )
    add(
        "--space",
        metavar="FILE",
        help="search space (default: the paper's); with --replay, also predict times from the costs in that space",
    )
    low, high = (macs / 1e6 for macs in PAPER_MACS)
    add(
        "--macs",
        type=float,
        nargs=2,
        default=PAPER_MACS,
        metavar=("LOW", "HIGH"),
        help=f"bounds for the MACs of candidates (default: the paper's {low:.0f} to {high:.0f} million)",
    )


def add_time_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("time of a trial").add_argument
    add(
        "--gpu-hours",
        type=float,
        default=PAPER_GPU_HOURS,
        metavar="H",
        help="total GPU hours to calibrate to",
    )
    add(
        "--macs-per-second",
        type=float,
        metavar="X",
        help=f"throughput of a GPU instead of calibration; V100, float32: {V100_MACS_PER_SECOND:.3g}",
    )
    add(
        "--time-column",
        choices=TIME_COLUMNS,
        default=TIME_COLUMNS[0],
        help="column that the time of an epoch is proportional to",
    )
    add(
        "--costly-fraction",
        type=float,
        default=1.0,
        metavar="X",
        help="fraction of the pool, costliest first, that later rounds draw from",
    )


def parse_gpus_per_trial(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return positive_int(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} must be auto or a positive integer") from None


def simulate_sweep(args: argparse.Namespace) -> None:
    settings = SearchSettings(
        paper=True,
        pool_size=args.pool_size,
        round_size=args.round_size,
        epochs=args.epochs,
        rounds=args.rounds,
        seed=args.seed,
        retries=args.retries,
        constraints={"macs": list(args.macs)},
    )
    space = load_space(args.space or PAPER_SPACE)
    stopping_epoch = (
        round(STOP_FRACTION * args.epochs) if args.stopping_epoch is None else args.stopping_epoch
    )
    trials = build_imagenet_workload(
        pool_costs(space, settings),
        settings,
        settings.num_rounds(space),
        stopping_epoch,
        gpu_hours=args.gpu_hours,
        macs_per_second=args.macs_per_second,
        time_column=args.time_column,
        costly_fraction=args.costly_fraction,
    )
    print(describe_trials(trials, is_calibrated=args.macs_per_second is None))
    points = sweep_points(args, settings, trials.workload)
    print(
        tabulate(
            [table_row(point) for point in points], headers="keys", disable_numparse=True, stralign="right"
        )
    )
    if args.asynchronous:
        for in_rounds, asynchronous in zip(points[::2], points[1::2], strict=True):
            saved = 1 - asynchronous.wall_seconds.mean() / in_rounds.wall_seconds.mean()
            print(f"{in_rounds.cluster.gpus} GPUs: {100 * saved:.1f}% less wall time asynchronously")
    max_stopped = max(point.stopped for point in points)
    if max_stopped > 0:
        print(
            f"up to {100 * max_stopped:.0f}% of the searches would stop after max_failures and have to be resumed"
        )
    if args.figure:
        plot_sweep(points, args.figure)


def describe_trials(trials: ImageNetWorkload, is_calibrated: bool) -> str:
    macs = trials.macs / 1e6
    workload = trials.workload
    return (
        f"{macs.size} trials of {macs.min():.0f} to {macs.max():.0f} M MACs, mean {macs.mean():.0f} M, and "
        f"{trials.params.mean() / 1e6:.1f} M parameters; {workload.full_epochs} epochs in round 1, then "
        f"{workload.stopping_epoch}\n"
        f"{workload.gpu_seconds / 3600:,.0f} GPU hours with one GPU per trial, "
        f"{'calibrated' if is_calibrated else 'from the throughput'}: {trials.macs_per_second:.3g} MACs/s, "
        f"{trials.images_per_second:.0f} images/s, "
        f"{100 * trials.macs_per_second / V100_MACS_PER_SECOND:.0f}% of a V100 in float32"
    )


def sweep_points(
    args: argparse.Namespace, settings: SearchSettings, workload: Workload
) -> list[SweepPoint]:
    points = []
    for gpus in args.gpus:
        cluster = Cluster(
            gpus,
            scaling=args.scaling,
            failure_rate=args.failure_rate,
            stragglers=args.stragglers,
            startup=args.startup,
            repair=args.repair,
            checkpoints=not args.no_checkpoints,
        )
        gpus_per_trial = args.gpus_per_trial
        if gpus_per_trial == "auto":
            gpus_per_trial = fastest_gpus_per_trial(workload, cluster, PREDICTOR_SECONDS)
        cluster = replace(cluster, gpus_per_trial=gpus_per_trial)
        for asynchronous in (False, True) if args.asynchronous else (False,):
            point = simulate_seeds(
                workload,
                cluster,
                seeds=range(args.seed, args.seed + args.repeats),
                max_failures=settings.max_failures,
                asynchronous=asynchronous,
                max_in_flight=args.max_in_flight,
                retries=args.retries,
                predictor_seconds=PREDICTOR_SECONDS,
            )
            points.append(point)
    return points


def table_row(point: SweepPoint) -> dict[str, object]:
    days = point.wall_seconds / 86400
    return {
        "GPUs": point.cluster.gpus,
        "per trial": point.cluster.gpus_per_trial,
        "": "asynchronous" if point.asynchronous else "rounds",
        "days": f"{days.mean():.2f}",
        "min to max": f"{days.min():.2f} to {days.max():.2f}",
        "GPU hours": f"{point.gpu_seconds.mean() / 3600:,.0f}",
        "utilization": f"{100 * point.utilization:.0f}%",
        "failures": f"{point.failures:.1f}",
        "trials lost": f"{point.lost_trials:.2f}",
        "results at proposal": f"{point.results_at_proposal:.0f}",
    }


def compare_with_recorded(args: argparse.Namespace) -> None:
    search = read_search(args.replay)
    simulated = {"recorded times": replay(search.segments)}
    if args.space:
        space = load_space(args.space)
        candidates = search.candidates
        if candidates.shape[1] != len(space):
            raise UsageError(
                f"{args.space}: has {len(space)} variables, but the recorded candidates {candidates.shape[1]}: pass "
                "the space of the recorded search"
            )
        costs = CostModel(space, search.settings.get("num_classes", 1000))(candidates)
        for column in TIME_COLUMNS:
            seconds = proportional_times(search.segments, costs[column])
            simulated[f"times from {column}"] = replay(search.segments, seconds)
            spreads = ", ".join(f"{value:.2f}" for value in residual_spread(search.segments, costs[column]))
            print(
                f"times from {column}, one rate per round: deviation of log(recorded / predicted) {spreads}"
            )
    print(tabulate(period_rows(simulated), headers="keys", disable_numparse=True, stralign="right"))
    for title, periods in simulated.items():
        recorded = sum(period.recorded_seconds for period in periods)
        total = sum(period.simulated_seconds for period in periods)
        error = 100 * (total / recorded - 1)
        print(f"{title}: {format_duration(total)} for {format_duration(recorded)} in total, {error:+.2f}%")


def period_rows(simulated: Mapping[str, list[ReplayedPeriod]]) -> list[dict[str, object]]:
    """Build one table row per period, with a column for each way to predict the trials' times."""
    rows = []
    for periods in zip(*simulated.values(), strict=True):
        period = periods[0]
        row: dict[str, object] = {
            "round": period.round + 1,
            "segments": len(period.segments),
            "concurrent": period.workers,
            "recorded": format_duration(period.recorded_seconds),
        }
        for title, replayed in zip(simulated, periods, strict=True):
            row[title] = f"{format_duration(replayed.simulated_seconds)} ({100 * replayed.error:+.1f}%)"
        rows.append(row)
    return rows


if __name__ == "__main__":
    run_tool(main)
