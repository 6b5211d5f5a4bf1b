#!/usr/bin/env python3
"""NARS and its peers at equal cost, on tasks whose best candidate is known, over many seeds.

All searchers train for the same number of epochs. The regret is the best true accuracy minus that of the candidate
that a searcher recommends; it is reported after a quarter, half and all of the epochs. Tasks and searchers are those of
`search_tasks.py`, `search_peers.py` and `search_nars.py`. Results are appended to the output file as they are
finished, one line per search; a rerun skips those that the file has.

    benchmarks/search_benchmark.py --tasks macro --table nas-bench-macro_cifar10.json --output macro.jsonl
    benchmarks/search_benchmark.py --tasks mixed0 joint0 --searchers tpe gp --output results.jsonl --plot regret.png
"""

import argparse
import functools
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from search_nars import VARIANTS, run_nars
from search_peers import BASIC_PEERS, NotApplicableError, is_installed, regrets
from search_peers_automl import AUTOML_PEERS
from search_report import plot_regrets, print_report
from search_tasks import build_task

from fbnetv3.errors import UserError
from fbnetv3.utils.json_lines import append_json_line, drop_partial_line, read_json_lines

NARS = {name: functools.partial(run_nars, **settings) for name, settings in VARIANTS.items()}
SEARCHERS = NARS | BASIC_PEERS | AUTOML_PEERS
# What determines a result
KEYS = ("task", "searcher", "seed", "trainings", "noise")


def main():
    args = parse_arguments()
    jobs = list_jobs(args)
    results = read_results(args.output)
    missing = [job for job in jobs if key_of(job) not in results]
    failed = run_jobs(missing, args, results)
    finished = [results[key_of(job)] for job in jobs if key_of(job) in results]
    print_report(finished, args.trainings)
    if args.plot and finished:
        plot_regrets(finished, args.plot)
        print(f"wrote {args.plot}", file=sys.stderr)
    if failed:
        raise UserError(f"{failed} searches failed; the others are complete")


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", required=True, metavar="TASK")
    parser.add_argument(
        "--searchers", nargs="+", default=list(SEARCHERS), choices=list(SEARCHERS), metavar="SEARCHER"
    )
    parser.add_argument("--seeds", type=parse_seeds, default=range(16), help="first and last: 0-15")
    parser.add_argument("--trainings", type=int, default=88, help="full trainings of each search")
    parser.add_argument("--noise", type=float, help="deviation of measured accuracies; default: the task's")
    parser.add_argument("--jobs", type=int, default=1, help="searches at the same time")
    parser.add_argument("--output", type=Path, metavar="FILE", help="results, as JSON lines")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="figure of the regret over the epochs"
    )
    parser.add_argument(
        "--lcbench", metavar="FOLDER", help="LCBench's surrogate: model.onnx, encoding.json"
    )
    parser.add_argument("--table", metavar="FILE", help="NAS-Bench-Macro's JSON file")
    parser.add_argument("--cache", metavar="FOLDER", help="true accuracies; default: ~/.cache/fbnetv3")
    return parser.parse_args()


def parse_seeds(text):
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def list_jobs(args):
    """Return the searches, task by task; peers that are not installed are left out with a note."""
    searchers = []
    for name in args.searchers:
        if is_installed(SEARCHERS[name]):
            searchers.append(name)
        else:
            print(f"{name}: skipped; {SEARCHERS[name].package} is not installed", file=sys.stderr)
    return [
        {"task": task, "searcher": searcher, "seed": seed, "trainings": args.trainings, "noise": args.noise}
        for task in args.tasks
        for searcher in searchers
        for seed in args.seeds
    ]


def key_of(entry):
    return tuple(entry[key] for key in KEYS)


def read_results(file):
    """Return the finished searches of a results file by key."""
    if file is None or not file.exists():
        return {}
    drop_partial_line(file)
    entries = [{**entry, "regrets": expand_steps(entry)} for entry in read_json_lines(file)]
    return {key_of(entry): entry for entry in entries}


def expand_steps(entry):
    """Return the regret after each training of a result in a file, which has only those that differ from the last."""
    values = dict(entry["regrets"])
    regrets = []
    for training in range(1, entry["trainings"] + 1):
        regrets.append(values[training] if training in values else regrets[-1])
    return regrets


def steps_of(regrets):
    """Return the regrets that differ from the last, each after the number of trainings."""
    return [
        [training, regret]
        for training, (regret, last) in enumerate(zip(regrets, [None, *regrets], strict=False), 1)
        if regret != last
    ]


def run_jobs(jobs, args, results):
    """Run searches, add them to `results` and the output file, and return the number of those that failed."""
    failed = 0
    inputs = (args.lcbench, args.table, args.cache, args.noise)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        futures = {pool.submit(run_job, job, inputs): job for job in jobs}
        for future in as_completed(futures):
            job = futures[future]
            try:
                result = future.result()
            except NotApplicableError as error:
                print(f"{describe(job)}: skipped; {error}", file=sys.stderr, flush=True)
                continue
            except Exception as error:
                failed += 1
                print(f"{describe(job)}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
            results[key_of(job)] = result
            if args.output:
                append_json_line(args.output, {**result, "regrets": steps_of(result["regrets"])})
            print(
                f"{describe(job)}: regret {result['regrets'][-1]:.3f}, {result['seconds']:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    return failed


def describe(job):
    return f"{job['task']}, {job['searcher']}, seed {job['seed']}"


def run_job(job, inputs):
    """Run a search and return its result, in a process of the pool."""
    task = cached_task(job["task"], *inputs)
    start = time.time()
    evaluations = SEARCHERS[job["searcher"]](task, job["trainings"], job["seed"])
    seconds = round(time.time() - start, 1)
    trajectory = [round(regret, 6) for regret in regrets(task, evaluations, job["trainings"])]
    return {**job, "epochs": task.epochs, "seconds": seconds, "regrets": trajectory}


@functools.lru_cache(maxsize=4)
def cached_task(name, lcbench, table, cache, noise):
    return build_task(name, lcbench, table, cache, noise)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
