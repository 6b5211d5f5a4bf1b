#!/usr/bin/env python3
"""Search for latency budgets and measure whether the recommended networks meet them.

NARS on Table 2's joint space with `latency_ms` as the budget; each recommended network is then measured on the machine
of the latency table. Goal: at most 5% above its budget. The accuracy is synthetic, that of search_synthetic_tasks.py:
only the latency is of interest here. The table comes from

    tools/measure_net.py --space configs/nars/spaces/fbnetv3.yaml --table table.jsonl
    benchmarks/latency_search.py --table table.jsonl --budgets 12 16 20 24
"""

import argparse
import tempfile

import torch
from measure import report_value
from search_synthetic_tasks import JointTask

from fbnetv3.arch import load_arch
from fbnetv3.arch.latency_table import load_latency_table
from fbnetv3.deploy.latency.benchmark import measure_network
from fbnetv3.deploy.latency.table_measurement import describe_device
from fbnetv3.nars import search


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", required=True, help="latency table of this machine")
    parser.add_argument("--budgets", type=float, nargs="+", default=(12, 16, 20, 24), metavar="MS")
    parser.add_argument("--evaluations", type=int, default=60, help="full evaluations (default: 60)")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of each measurement")
    args = parser.parse_args()
    device = load_latency_table(args.table).device
    torch.set_num_threads(device.threads)
    runtime = device.runtime.split()[0]
    if describe_device(runtime, device.batch, device.device) != device:
        parser.error(f"the table was measured on {device}")
    task = JointTask()
    with tempfile.TemporaryDirectory() as folder:
        recommendations = search(
            task.space,
            lambda candidate, epochs: task.curve(candidate.vector, 0)[:epochs],
            folder,
            latency=args.table,
            budgets=[{"latency_ms": budget} for budget in args.budgets],
            epochs=task.epochs,
            evaluations=args.evaluations,
            executor="serial",
        ).recommendations
        archs = [load_arch(recommendation.files.arch) for recommendation in recommendations]
    print(f"{device}; {args.evaluations} evaluations, and a network for each budget")
    for budget, recommendation, arch in zip(args.budgets, recommendations, archs, strict=True):
        measured = measure_network(runtime, arch, batch=device.batch, seconds=args.seconds).timing
        columns = recommendation.columns
        details = (
            f"predicted {columns['latency_ms']:.2f} ms, measured {measured.median:.2f} ms, "
            f"{columns['macs'] / 1e6:.0f} M MACs, "
            f"true accuracy {task.true_value(recommendation.candidate.vector):.2f}"
        )
        report_value(
            f"budget {budget:g} ms over measured latency", budget / measured.median, 1 / 1.05, details
        )


if __name__ == "__main__":
    main()
