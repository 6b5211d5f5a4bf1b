"""List and download networks of the model zoo: `fbnetv3 zoo [PATTERN]`, `fbnetv3 zoo --download NAME ...`."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from tabulate import tabulate

from fbnetv3 import model_zoo
from fbnetv3.model_zoo import ClassifierEntry
from fbnetv3.model_zoo.zoo import ZooEntry
from fbnetv3.utils.command_line import ArgumentParser


def main(argv: Sequence[str] | None = None) -> None:
    """List entries, or download their weights."""
    parser = ArgumentParser(description="List the networks of the model zoo, or download their weights.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help='entries, or patterns such as "coco/*" (default: all)'
    )
    parser.add_argument(
        "--download", action="store_true", help="download the weights into the cache, and print their paths"
    )
    args = parser.parse_args(argv)
    entries = _find_entries(args.names)
    if args.download:
        for entry in entries:
            print(f"{entry.name}: {entry.local_weights()}", flush=True)
        return
    headers = ["name", "task", "input", "parameters", "MACs", "accuracy", "source"]
    rows = [_describe(entry) for entry in entries]
    print(tabulate(rows, headers, tablefmt="simple", disable_numparse=True))


def _find_entries(names: Sequence[str]) -> list[ZooEntry]:
    entries: list[ZooEntry] = [*model_zoo.list_classifiers(), *model_zoo.list_detectors()]
    if not names:
        return entries
    chosen: list[ZooEntry] = []
    for name in names:
        pattern = name if name.endswith((".yaml", "*")) else f"{name}.yaml"
        matches = [entry for entry in entries if fnmatch.fnmatch(entry.name, pattern)]
        # An unknown name raises an error that suggests similar ones
        chosen += matches or [model_zoo.entry(name)]
    return list(dict.fromkeys(chosen))


def _describe(entry: ZooEntry) -> list[str]:
    name = entry.name.removesuffix(".yaml")
    if isinstance(entry, ClassifierEntry):
        accuracy = "" if entry.top1 is None else f"top-1 {entry.top1:.1f}%"
        cost = [f"{entry.params / 1e6:.2f} M", f"{entry.macs / 1e6:,.0f} M"]
        return [name, "classification", str(entry.resolution), *cost, accuracy, entry.source]
    ap = getattr(entry, "ap", None)
    return [name, "detection", "", "", "", "" if ap is None else f"box AP {ap:.1f}", entry.source]
