#!/usr/bin/env python3
"""Networks searched for a latency, and whether they keep to it: NARS on Table 2's joint space with `latency_ms` as its
budget; each emitted network is then measured on the machine of the table. Goal: at most 5 % above its budget.

The accuracy is made up, as in nars_search.py; what is shown is the latency. The table comes from

    tools/measure_net.py --space configs/nars/spaces/fbnetv3.yaml --table table.jsonl
    benchmarks/latency_search.py --table table.jsonl --budgets 12 16 20 24
"""

import argparse
import tempfile

import torch
from measure import fact
from nars_search import JointTask

from fbnetv3.arch import load_arch
from fbnetv3.arch.latency_table import load_latency_table
from fbnetv3.deploy.latency.benchmark import measure_network
from fbnetv3.deploy.latency.latency_measurement import this_device
from fbnetv3.nars import search


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", required=True, help="latency table of this machine")
    parser.add_argument("--budgets", type=float, nargs="+", default=(12, 16, 20, 24), metavar="MS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=20, help="evaluations a round")
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring each network")
    args = parser.parse_args()
    device = load_latency_table(args.table).device
    torch.set_num_threads(device.threads)
    runtime = device.runtime.split()[0]
    if this_device(runtime, device.batch, device.device) != device:
        parser.error(f"the table is of {device}")
    task = JointTask()
    with tempfile.TemporaryDirectory() as folder:
        found = search(
            task.space,
            lambda candidate, epochs: task.curve(candidate.vector, 0)[:epochs],
            folder,
            latency=args.table,
            budgets=[{"latency_ms": budget} for budget in args.budgets],
            epochs=task.epochs,
            rounds=args.rounds,
            batch=args.batch,
            executor="serial",
        ).found
        networks = [load_arch(result.emitted.arch) for result in found]
    print(f"{device}; {args.rounds * args.batch} evaluations, then a network for each budget")
    for budget, result, defn in zip(args.budgets, found, networks, strict=True):
        measured = measure_network(runtime, defn, batch=device.batch, seconds=args.seconds).timing
        about = (
            f"predicted {result.columns['latency_ms']:.2f} ms, measured {measured.median:.2f} ms, "
            f"{result.columns['macs'] / 1e6:.0f} M MACs, true accuracy {task.truth(result.candidate.vector):.2f}"
        )
        fact(f"budget {budget:g} ms over what was measured", budget / measured.median, 1 / 1.05, about)


if __name__ == "__main__":
    main()
