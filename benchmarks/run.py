#!/usr/bin/env python3
"""Run benchmarks and write docs/benchmarks.md: `run.py [NAME ...]`, all of them by default; `--list` shows them.

Each is a script of this folder, in a process of its own, one after the other. What it prints is kept in
benchmarks/results.json with machine, versions and date, so that a page can be made of runs of several days; those that
are not run again keep their figures. Peers come from PyPI: pip install '.[benchmarks]'.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from measure import RESULTS
from tabulate import tabulate

from fbnetv3.deploy.latency.timing import device_name

HERE = Path(__file__).resolve().parent
KEPT, PAGE = HERE / "results.json", HERE.parent / "docs" / "benchmarks.md"
PACKAGES = ("torch", "torchvision", "timm", "onnxruntime", "openvino", "executorch", "pymoo", "optuna", "numpy")


@dataclass(frozen=True)
class Benchmark:
    """A script, its arguments, and what it shows.

    Attributes:
        script: its name.
        title: of its section.
        about: what is compared with what.
        arguments: of the script.
        needs: data that has to be there: arguments named so are asked for.
        threads: OMP_NUM_THREADS of its process.
    """

    script: str
    title: str
    about: str
    arguments: tuple[str, ...] = ()
    threads: int = 2
    needs: dict[str, str] = field(default_factory=dict)


BENCHMARKS = {
    "inference": Benchmark(
        "inference.py",
        "Inference",
        "FBNetV3-B and G at 224 pixels, the same weights and images. *eager*: torch without an export, as "
        "`tools/classify.py` runs a network; *deployed*: `deploy.load` of an ONNX export. timm's networks come as they "
        "are; OpenVINO runs our file. The goals against timm are B's; for G they would take nine tenths of this "
        "machine's peak in matrix products at batch 1, and more than all of it at batch 16.",
    ),
    "roofline": Benchmark(
        "roofline.py",
        "Distance to the limit",
        "GFLOP/s of the deployed FBNetV3-B over the machine's peak in matrix products, measured in the same run; then "
        "one image, layer kinds apart.",
        ("--picture", str(HERE.parent / "docs" / "roofline.png")),
    ),
    "int8": Benchmark("int8.py", "int8", "Float32 against int8 of the same network, by both runtimes.", threads=1),
    "latency_search": Benchmark(
        "latency_search.py",
        "Networks searched for a latency",
        "NARS with `latency_ms` as its budget on Table 2's space, with a made-up accuracy; the networks are measured.",
        ("--table", "{latencies}"),
        threads=1,
        needs={"latencies": "latency table of this machine, from tools/measure_net.py --space"},
    ),
    "train_step": Benchmark(
        "train_step.py", "Training step", "FBNetV3-B as our tools train it, against timm's network in a plain loop."
    ),
    "input_pipeline": Benchmark(
        "input_pipeline.py",
        "Input pipeline",
        "Images that reach the training loop, against timm's loader with the same transforms.",
        ("{images}",),
        needs={"images": "folder with a folder of images a class"},
    ),
    "loop_overhead": Benchmark(
        "loop_overhead.py",
        "Loop overhead",
        "What of a training's steps is neither data, forward, backward nor the optimiser's.",
        threads=1,
    ),
    "detection": Benchmark(
        "detection.py",
        "Detection",
        "One image of 320 pixels, our smallest Faster R-CNN against torchvision's for phones.",
        ("--threads", "1", "--rounds", "15"),
        threads=1,
    ),
    "detector_export": Benchmark(
        "detector_export.py",
        "Exported detector",
        "Detections and time of a detector's ONNX export beside those of torch, on the same images.",
        ("--config", "{config}", "--weights", "{weights}", "--exported", "{exported}", "--images", "{photos}"),
        threads=1,
        needs={
            "config": "of a trained detector",
            "weights": "its checkpoint",
            "exported": "folder of its export, from tools/export_net.py",
            "photos": "folder of images that it finds something in",
        },
    ),
    "pool_cost": Benchmark(
        "pool_cost.py",
        "Search: costs, pool, pretraining, evolution",
        "The free part of a search on Table 2's space.",
        threads=1,
    ),
    "evolution": Benchmark(
        "evolution.py",
        "Search: evolution",
        "Against pymoo's genetic algorithm at as many calls of the predictor.",
        ("--seeds", "6"),
        threads=1,
    ),
    "evolution_table": Benchmark(
        "evolution.py",
        "Search: evolution against enumeration",
        "How often it finds the best of all measured networks inside a budget.",
        ("--table", "{table}"),
        threads=1,
        needs={"table": "NAS-Bench-Macro's JSON file, nas-bench-macro_cifar10.json"},
    ),
    "nars_table": Benchmark(
        "nars_search.py",
        "Search: whole searches",
        "NARS against random search, regularised evolution and Optuna's TPE at equal cost, on measured networks.",
        ("--table", "{table}", "--seeds", "5"),
        threads=1,
        needs={"table": "NAS-Bench-Macro's JSON file, nas-bench-macro_cifar10.json"},
    ),
    "import_time": Benchmark(
        "import_time.py", "Import", "`import fbnetv3` with all that builds networks, against torch and torchvision."
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; default: all")
    parser.add_argument("--list", action="store_true", help="show what there is")
    parser.add_argument("--page", action="store_true", help="write the page from what is kept, and run nothing")
    needs = {key: what for b in BENCHMARKS.values() for key, what in b.needs.items()}
    for key, what in needs.items():
        parser.add_argument(f"--{key}", metavar="PATH", help=what)
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    if args.list:
        print(tabulate([(name, b.script, b.title) for name, b in BENCHMARKS.items()], tablefmt="plain"))
        return
    failed = [] if args.page else run_all(args.names or list(BENCHMARKS), args)
    PAGE.write_text(page(json.loads(KEPT.read_text()) if KEPT.exists() else {}))
    print(f"wrote {PAGE}")
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}; they keep their earlier figures")


def run_all(names, args):
    """Run benchmarks and keep what they give; the names of those that failed."""
    failed = []
    for name in names:
        benchmark = BENCHMARKS[name]
        missing = [key for key in benchmark.needs if not getattr(args, key)]
        if missing:
            print(f"{name}: left out: give --{missing[0]}, {benchmark.needs[missing[0]]}")
            continue
        print(f"== {name}", flush=True)
        found = run(benchmark, {key: getattr(args, key) for key in benchmark.needs})
        if found is None:
            failed.append(name)
            continue
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        KEPT.write_text(json.dumps({**kept, name: found}, indent=1) + "\n")
    return failed


def run(benchmark, paths):
    """What a benchmark gives; None where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        command = [sys.executable, str(HERE / benchmark.script), *(a.format(**paths) for a in benchmark.arguments)]
        environment = {**os.environ, RESULTS: str(rows), "OMP_NUM_THREADS": str(benchmark.threads)}
        start, lines = time.time(), []
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
        if process.wait():
            return None
        return {
            "date": time.strftime("%Y-%m-%d"),
            "minutes": round((time.time() - start) / 60, 1),
            "machine": f"{device_name()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "versions": {package: found for package in PACKAGES if (found := version_of(package))},
            "threads": benchmark.threads,
            "rows": [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else [],
            "printed": lines,
        }


def version_of(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def page(kept):
    """docs/benchmarks.md."""
    text = [
        "# Benchmarks\n",
        "Written by `python benchmarks/run.py`. Both sides of a comparison are measured in the same run and take\n"
        "turns; figures are medians, the spread is the range of all rounds over the median. A ratio above 1 means\n"
        "that ours is faster.\n",
    ]
    settings = [on_what(found) for found in kept.values()]
    usual = max(settings, key=settings.count, default="")
    text += [f"Where nothing else is said: {usual}.\n"] if usual else []
    for name, benchmark in BENCHMARKS.items():
        if name not in kept:
            continue
        found = kept[name]
        arguments = [a.split("/")[-1] if a.startswith("/") else a.format_map(_Named()) for a in benchmark.arguments]
        shown = f"OMP_NUM_THREADS={found['threads']} python benchmarks/{benchmark.script} {' '.join(arguments)}".strip()
        text += [f"## {benchmark.title}\n", f"{benchmark.about}\n", f"```sh\n{shown}\n```\n"]
        if found["rows"]:
            text.append(f"{comparisons(found['rows'])}\n")
        if name == "roofline":
            text.append("![Roofline of one image](roofline.png)\n")
        told = {line for row in found["rows"] for line in found["printed"] if line.startswith(row["name"])}
        rest = [line for line in found["printed"] if line not in told]
        if any(rest):
            text.append("```text\n" + "\n".join(rest).strip("\n") + "\n```\n")
        here = on_what(found)
        text.append(f"{found['date']}, {found['minutes']:g} minutes{'' if here == usual else f'; {here}'}.\n")
    return "\n".join(text)


def on_what(found):
    """Machine and versions that a benchmark was run with."""
    return f"{found['machine']}; " + ", ".join(f"{package} {number}" for package, number in found["versions"].items())


class _Named(dict):
    """Names of paths in place of the paths."""

    def __missing__(self, key):
        return key.upper()


def comparisons(rows):
    """Rows as tables: comparisons, and single figures."""
    sides = [
        [
            row["name"],
            f"{1e3 * row['ours']:,.1f} ms ± {row['ours_spread']:.0%}",
            f"{1e3 * row['theirs']:,.1f} ms ± {row['theirs_spread']:.0%}",
            row["peer"],
            f"**{row['ratio']:.2f} ×**",
            goal(row["ratio"], row["goal"]),
        ]
        for row in rows
        if "ratio" in row
    ]
    facts = [
        [r["name"], f"**{r['value']:.3g}**", goal(r["value"], r["goal"]), r["about"]] for r in rows if "value" in r
    ]
    heads = (["", "ours", "theirs", "peer", "ratio", "goal"], ["", "figure", "goal", ""])
    return "\n\n".join(
        tabulate(table, head, tablefmt="github", disable_numparse=True)
        for table, head in zip((sides, facts), heads, strict=True)
        if table
    )


def goal(value, wanted):
    return "" if wanted is None else f"{wanted:.2g}, {'reached' if value >= wanted else 'missed'}"


if __name__ == "__main__":
    main()
