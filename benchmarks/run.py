#!/usr/bin/env python3
"""Run benchmarks and write docs/benchmarks.md: `run.py [NAME ...]`, by default all that `--list` lists.

Run by hand: `predictor_efficiency.py` and other tasks and searchers of `search_benchmark.py`, which take longer (see
docs/results.md), and `cpu_pieces.py`, which justifies each module of `fbnetv3.modeling.cpu`.

Each benchmark is a script in this folder and runs in its own process, one after the other. Its results are stored
in benchmarks/results.json with machine, versions and date, so the page can combine runs from several days; benchmarks
that are not rerun keep their results. Peers come from PyPI: pip install '.[benchmarks]'.
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

from measure import RESULTS_VARIABLE
from tabulate import tabulate

from fbnetv3.deploy.latency.timing import device_name

FOLDER = Path(__file__).resolve().parent
RESULTS_FILE = FOLDER / "results.json"
PAGE = FOLDER.parent / "docs" / "benchmarks.md"
PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "onnxruntime",
    "openvino",
    "executorch",
    "pymoo",
    "optuna",
    "numpy",
)

# Results of searches, which take hours: those that the file has are not run again
SEARCH_RESULTS = FOLDER / "search_results.jsonl"
LCBENCH_TASKS = tuple(
    f"lcbench{number}" for number in (3945, 7593, 34539, 126025, 146212, 167149, 167181, 189354, 189906)
)
LCBENCH_INPUT = {"lcbench": "folder of LCBench's surrogate, with model.onnx and encoding.json"}
SEARCH_SEEDS = "100-115"


@dataclass(frozen=True)
class Benchmark:
    """A script with its arguments, and its section on the page.

    Attributes:
        script: file name.
        title: title of the section.
        description: description of the comparison.
        arguments: arguments of the script; "{name}" stands for the path of an input.
        figure: Markdown of the figure that it writes.
        threads: OMP_NUM_THREADS of its process.
        inputs: required files and folders by name, with a description; each is an option of this tool.
    """

    script: str
    title: str
    description: str
    arguments: tuple[str, ...] = ()
    figure: str = ""
    threads: int = 2
    inputs: dict[str, str] = field(default_factory=dict)


BENCHMARKS = {
    "inference": Benchmark(
        "inference.py",
        "Inference",
        "FBNetV3-B and G at 224 pixels, the same weights and images. *eager*: torch without an export, as "
        "`tools/classify.py` runs a network; *deployed*: `deploy.load` of an ONNX export, in ONNX Runtime; *auto*: "
        "`deploy.load` with `runtime='auto'`, which takes OpenVINO where that is faster. timm's networks run "
        "unchanged; OpenVINO runs the same ONNX file.",
    ),
    "roofline": Benchmark(
        "roofline.py",
        "Distance to the limit",
        "GFLOP/s of the deployed FBNetV3-B over the machine's peak in matrix products, measured in the same run; and "
        "for one image, each kind of layer and operator. No layer can be faster than its arithmetic and its memory "
        "traffic allow; the last lines say what would remain if all layers were at that limit. ONNX Runtime computes "
        "convolutions in a blocked layout and the products of the squeeze-and-excite gates in the plain one; each "
        "change of layout (Reorder) moves a whole map.",
        ("--figure", str(FOLDER.parent / "docs" / "roofline.png")),
        figure="![Roofline of one image](roofline.png)",
    ),
    "serve": Benchmark(
        "serve.py",
        "Server",
        "`fbnetv3 serve` against its predictor without HTTP, on 127.0.0.1. The digits network takes so little time "
        "that HTTP dominates; FBNetV3-B at 224 pixels, with photos of 500 x 375 pixels, is the case of the goal. The "
        "client shares the machine with the server; CPU time is that of the server alone.",
        ("--per-request", "1", "8"),
        threads=1,
    ),
    "runtimes": Benchmark(
        "runtimes.py",
        "Runtimes",
        "Exported networks at 224 pixels against timm's in torch, the same random weights with BatchNorm "
        "statistics of photos. All sides take turns in one process. Milliseconds are CPU time of one thread. *auto* is "
        "`load(folder, 'auto')` of the ONNX export. The classes of an untrained network are close calls. Lower "
        "precisions depend on the processor: this one has AVX512-BF16 and VNNI, but no AMX, and bfloat16 is slower "
        "than float32. OpenVINO was also kept from using these instructions; *auto* is then `load` of the three "
        "exports for OpenVINO, which chooses the fastest.",
        ("--rounds", "7", "--mask", "--images", "{photos}"),
        threads=1,
        inputs={"photos": "folder of photos"},
    ),
    "int8": Benchmark(
        "int8.py", "int8", "int8 against float32 of the same network, in both runtimes.", threads=1
    ),
    "latency_search": Benchmark(
        "latency_search.py",
        "Networks searched for a latency budget",
        "NARS with budgets of `latency_ms` in Table 2's space, with a synthetic accuracy; the networks are measured.",
        ("--table", "{latencies}"),
        threads=1,
        inputs={"latencies": "latency table of this machine, from tools/measure_net.py --space"},
    ),
    "train_step": Benchmark(
        "train_step.py",
        "Training step",
        "FBNetV3-B as `tools/train_net.py` trains it, against timm's network in a plain loop.",
    ),
    "input_pipeline": Benchmark(
        "input_pipeline.py",
        "Input pipeline",
        "Images that reach the training loop, against timm's loader with the same transforms.",
        ("{images}",),
        inputs={"images": "folder with one folder of images per class"},
    ),
    "loop_overhead": Benchmark(
        "loop_overhead.py",
        "Loop overhead",
        "The fraction of training time spent on neither data, forward, backward nor the optimizer's step.",
        threads=1,
    ),
    "detection": Benchmark(
        "detection.py",
        "Detection",
        "One image of 320 pixels, the smallest Faster R-CNN against torchvision's mobile detectors.",
        ("--threads", "1", "--rounds", "15"),
        threads=1,
    ),
    "detector_export": Benchmark(
        "detector_export.py",
        "Exported detector",
        "Detections and time of a detector's ONNX export and of the original in torch, on the same images.",
        (
            "--config",
            "{config}",
            "--weights",
            "{weights}",
            "--exported",
            "{exported}",
            "--images",
            "{photos}",
        ),
        threads=1,
        inputs={
            "config": "config of a trained detector",
            "weights": "checkpoint of that detector",
            "exported": "folder of its export, from tools/export_net.py",
            "photos": "folder of images with objects that it detects",
        },
    ),
    "pool_cost": Benchmark(
        "pool_cost.py",
        "Search: costs, pool, pretraining, evolution",
        "The parts of a search without trials, in Table 2's space.",
        threads=1,
    ),
    "evolution": Benchmark(
        "evolution.py",
        "Search: evolution",
        "Against pymoo's genetic algorithm with the same number of predictor calls.",
        ("--seeds", "6"),
        threads=1,
    ),
    "evolution_table": Benchmark(
        "evolution.py",
        "Search: evolution against enumeration",
        "How often it finds the best of all measured networks within a budget.",
        ("--table", "{table}"),
        threads=1,
        inputs={"table": "NAS-Bench-Macro's JSON file, nas-bench-macro_cifar10.json"},
    ),
    "search_lcbench": Benchmark(
        "search_benchmark.py",
        "Search: architectures and recipes with learning curves",
        "NARS and its peers at equal cost, on nine tasks of LCBench (a surrogate of real trainings): seven variables, "
        "758,160 candidates, 52 epochs. `nars_full` stops no trial early.",
        (
            "--tasks",
            *LCBENCH_TASKS,
            "--lcbench",
            "{lcbench}",
            "--searchers",
            *("nars", "nars_full", "gp", "tpe", "tpe_univariate", "evolution", "random"),
            *("--seeds", SEARCH_SEEDS, "--output", str(SEARCH_RESULTS)),
            *("--plot", str(FOLDER.parent / "docs" / "search_regret.png")),
        ),
        figure="![Regret over epochs on nine tasks](search_regret.png)",
        threads=1,
        inputs=LCBENCH_INPUT,
    ),
    "search_automl": Benchmark(
        "search_benchmark.py",
        "Search: SMAC3, DEHB, NePS",
        "Tools of the AutoML groups, of which a search takes longer; fewer seeds, next to other work. NePS's Bayesian "
        "optimization takes more than 200 seconds for a search, and is left out.",
        (
            "--tasks",
            *LCBENCH_TASKS,
            "--lcbench",
            "{lcbench}",
            "--searchers",
            *("nars", "smac", "smac_hyperband", "dehb", "neps_hyperband"),
            *("--seeds", "100-101", "--output", str(SEARCH_RESULTS)),
        ),
        threads=1,
        inputs=LCBENCH_INPUT,
    ),
    "search_noise": Benchmark(
        "search_benchmark.py",
        "Search: noisy values",
        "The same tasks, with noise of 0.5 points.",
        (
            "--tasks",
            *LCBENCH_TASKS,
            "--lcbench",
            "{lcbench}",
            *("--noise", "0.5", "--searchers", "nars", "gp", "tpe", "random"),
            *("--seeds", "100-103", "--output", str(SEARCH_RESULTS)),
        ),
        threads=1,
        inputs=LCBENCH_INPUT,
    ),
    "search_mixed": Benchmark(
        "search_benchmark.py",
        "Search: mixed spaces",
        "Integers, categories, continuous and conditional variables with interactions, synthetic values.",
        (
            *("--tasks", "mixed0", "mixed1", "mixed2", "continuous0"),
            *("--searchers", "nars", "nars_full", "gp", "tpe", "tpe_univariate", "evolution", "random"),
            *("--seeds", "100-107", "--output", str(SEARCH_RESULTS)),
        ),
        threads=1,
    ),
    "search_joint": Benchmark(
        "search_benchmark.py",
        "Search: Table 2's space",
        "Architectures and recipes of FBNetV3 within bounds on MACs: 37 variables, synthetic accuracies, of which the "
        "best is 88.44, and 100 trainings.",
        (
            *(
                "--tasks",
                "joint0",
                "--trainings",
                "100",
                "--searchers",
                "nars",
                "tpe",
                "evolution",
                "random",
            ),
            *("--seeds", "100-103", "--output", str(SEARCH_RESULTS)),
        ),
        threads=1,
    ),
    "search_macro": Benchmark(
        "search_benchmark.py",
        "Search: measured networks",
        "NARS against random search, regularized evolution and Optuna's TPE at equal cost, on NAS-Bench-Macro.",
        (
            "--tasks",
            "macro",
            "--table",
            "{table}",
            *("--searchers", "nars", "random", "evolution", "tpe", "--trainings", "100"),
            *("--seeds", "100-115", "--output", str(SEARCH_RESULTS)),
        ),
        threads=1,
        inputs={"table": "NAS-Bench-Macro's JSON file, nas-bench-macro_cifar10.json"},
    ),
    "import_time": Benchmark(
        "import_time.py",
        "Import",
        "`import fbnetv3` with everything that builds networks, against torch and torchvision alone. A ratio of 0.77 "
        "means at most 30% slower.",
    ),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; default: all")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    parser.add_argument("--page", action="store_true", help="only write the page from the stored results")
    inputs = {name: text for benchmark in BENCHMARKS.values() for name, text in benchmark.inputs.items()}
    for name, description in inputs.items():
        parser.add_argument(f"--{name}", metavar="PATH", help=description)
    args = parser.parse_args()
    if unknown := set(args.names) - set(BENCHMARKS):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}: choose from {', '.join(BENCHMARKS)}")
    if args.list:
        print(tabulate([(name, b.script, b.title) for name, b in BENCHMARKS.items()], tablefmt="plain"))
        return
    failed = [] if args.page else run_benchmarks(args.names or list(BENCHMARKS), args)
    PAGE.write_text(build_page(read_results()))
    print(f"wrote {PAGE}")
    if failed:
        sys.exit(f"error: failed: {', '.join(failed)}; their earlier results are kept")


def read_results():
    return json.loads(RESULTS_FILE.read_text()) if RESULTS_FILE.exists() else {}


def run_benchmarks(names, args):
    """Run benchmarks, store their results, and return the names of those that failed."""
    failed = []
    for name in names:
        benchmark = BENCHMARKS[name]
        paths = {key: getattr(args, key) for key in benchmark.inputs}
        missing = [key for key, path in paths.items() if not path]
        if missing:
            print(f"{name}: skipped; it needs --{missing[0]}, {benchmark.inputs[missing[0]]}")
            continue
        print(f"== {name}", flush=True)
        result = run_benchmark(benchmark, paths)
        if result is None:
            failed.append(name)
        else:
            RESULTS_FILE.write_text(json.dumps({**read_results(), name: result}, indent=1) + "\n")
    return failed


def run_benchmark(benchmark, paths):
    """Run a benchmark and return its result, or None if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        rows_file = Path(folder) / "rows.jsonl"
        arguments = [argument.format(**paths) for argument in benchmark.arguments]
        command = [sys.executable, str(FOLDER / benchmark.script), *arguments]
        environment = {
            **os.environ,
            RESULTS_VARIABLE: str(rows_file),
            "OMP_NUM_THREADS": str(benchmark.threads),
        }
        start = time.time()
        lines = []
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
        if process.wait():
            return None
        rows = rows_file.read_text().splitlines() if rows_file.exists() else []
        return {
            "date": time.strftime("%Y-%m-%d"),
            "minutes": round((time.time() - start) / 60, 1),
            "machine": f"{device_name()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "versions": package_versions(),
            "threads": benchmark.threads,
            "rows": [json.loads(row) for row in rows],
            "printed": lines,
        }


def package_versions():
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def build_page(results):
    """Return the text of docs/benchmarks.md."""
    environments = [describe_environment(result) for result in results.values()]
    usual_environment = max(environments, key=environments.count, default="")
    parts = [
        "# Benchmarks\n",
        "Written by `python benchmarks/run.py`. Both sides of a comparison are measured alternately, in the same run.\n"
        "Times are medians; ± is the range over all rounds relative to the median. A ratio above 1 means that\n"
        "fbnetv3 is faster.\n",
    ]
    if usual_environment:
        parts.append(f"Unless noted otherwise: {usual_environment}.\n")
    for name, benchmark in BENCHMARKS.items():
        if name in results:
            parts += build_section(name, benchmark, results[name], usual_environment)
    return "\n".join(parts)


def build_section(name, benchmark, result, usual_environment):
    """Return the parts of a benchmark's section: command, tables, printed lines, date."""
    arguments = [
        argument.split("/")[-1] if argument.startswith("/") else argument.format_map(_Placeholders())
        for argument in benchmark.arguments
    ]
    command = f"OMP_NUM_THREADS={result['threads']} python benchmarks/{benchmark.script} {' '.join(arguments)}".strip()
    parts = [f"## {benchmark.title}\n", f"{benchmark.description}\n", f"```sh\n{command}\n```\n"]
    if result["rows"]:
        parts.append(f"{build_tables(result['rows'])}\n")
    if benchmark.figure:
        parts.append(f"{benchmark.figure}\n")
    # Lines that are not rows of the tables
    row_names = tuple(row["name"] for row in result["rows"])
    lines = [line for line in result["printed"] if not (row_names and line.startswith(row_names))]
    if any(lines):
        parts.append("```text\n" + "\n".join(lines).strip("\n") + "\n```\n")
    environment = describe_environment(result)
    note = "" if environment == usual_environment else f"; {environment}"
    # Searches of earlier runs are not repeated, so the time says nothing
    is_stored = str(SEARCH_RESULTS) in benchmark.arguments
    origin = (
        f"searches in benchmarks/{SEARCH_RESULTS.name}" if is_stored else f"{result['minutes']:g} minutes"
    )
    parts.append(f"{result['date']}, {origin}{note}.\n")
    return parts


def describe_environment(result):
    """Return the machine and versions of a result."""
    versions = ", ".join(f"{package} {number}" for package, number in result["versions"].items())
    return f"{result['machine']}; {versions}"


class _Placeholders(dict):
    """Formats the names of inputs as placeholders: {images} as IMAGES."""

    def __missing__(self, key):
        return key.upper()


def build_tables(rows):
    """Return rows as Markdown tables: comparisons, then single values."""
    comparisons = [
        [
            row["name"],
            f"{1e3 * row['fbnetv3']:,.1f} ms ± {row['fbnetv3_spread']:.0%}",
            f"{1e3 * row['peer']:,.1f} ms ± {row['peer_spread']:.0%}",
            row["peer_name"],
            f"**{row['ratio']:.2f} ×**",
            describe_goal(row["ratio"], row["goal"]),
        ]
        for row in rows
        if "ratio" in row
    ]
    values = [
        [row["name"], f"**{row['value']:.3g}**", describe_value_goal(row), row["details"]]
        for row in rows
        if "value" in row
    ]
    tables = (
        (["", "fbnetv3", "peer", "peer is", "ratio", "goal"], comparisons),
        (["", "value", "goal", ""], values),
    )
    return "\n\n".join(
        tabulate(table, headers, tablefmt="github", disable_numparse=True)
        for headers, table in tables
        if table
    )


def describe_goal(value, goal):
    return "" if goal is None else f"{goal:.2g}, {'reached' if value >= goal else 'missed'}"


def describe_value_goal(row):
    if not row.get("lower_is_better"):
        return describe_goal(row["value"], row["goal"])
    return f"at most {row['goal']:.2g}, {'reached' if row['value'] <= row['goal'] else 'missed'}"


if __name__ == "__main__":
    main()
