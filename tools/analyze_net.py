#!/usr/bin/env python3
"""What networks cost: `analyze_net.py [NAME|FILE ...] [--stages] [--resolution PIXELS]`. Needs no torch."""

from tabulate import tabulate

from fbnetv3.arch import cost, get_arch, list_archs, register_arch_folder
from fbnetv3.cli import ArgumentParser, run_tool


def main(argv=None):
    parser = ArgumentParser(description="Print MACs, parameters and activations of one, several or all networks.")
    parser.add_argument("archs", nargs="*", metavar="NAME|FILE", help="registered names or YAML files; default: all")
    parser.add_argument("--stages", action="store_true", help="stage by stage")
    parser.add_argument("--resolution", type=positive, metavar="PIXELS", help="instead of each network's own")
    parser.add_argument("--num-classes", type=positive, default=1000, metavar="N", help="outputs (default: 1000)")
    parser.add_argument("--arch-dir", action="append", default=[], metavar="DIR", help="register its YAML files first")
    args = parser.parse_args(argv)
    for folder in args.arch_dir:
        register_arch_folder(folder)
    defns = [get_arch(name) for name in args.archs or list_archs()]
    if args.stages:
        print("\n\n".join(stage_table(defn, args.resolution, args.num_classes) for defn in defns))
    else:
        print(network_table(defns, args.resolution, args.num_classes))


def network_table(defns, resolution, num_classes):
    rows = []
    for defn in defns:
        c = cost(defn, resolution, num_classes=num_classes)
        depth = len(c.blocks)
        rows.append([defn.name, resolution or defn.resolution, depth, *figures(c)])
    return table(["network", "input", "blocks", "MACs (M)", "params (M)", "activations (M)"], rows)


def stage_table(defn, resolution, num_classes):
    c = cost(defn, resolution, num_classes=num_classes)
    rows = []
    for s, (stage, total) in enumerate(zip(defn.stages, c.by_stage(), strict=True)):
        parts = [part for part in c.blocks if part.block.stage == s]
        last = parts[-1]
        size = f"{last.height} x {last.width} x {last.block.spec.out_channels}"
        rows.append([s, stage.rows[-1].block, len(parts), size, *figures(total)])
    rows.append(["head", "linear", 1, f"{num_classes}", *figures(c.head)])
    rows.append(["all", "", len(c.blocks) + 1, "", *figures(c)])
    title = f"{defn.name} at {resolution or defn.resolution} pixels"
    return (
        title + "\n" + table(["stage", "block", "blocks", "output", "MACs (M)", "params (M)", "activations (M)"], rows)
    )


def figures(c):
    return [f"{c.macs / 1e6:,.2f}", f"{c.params / 1e6:,.3f}", f"{c.activations / 1e6:,.2f}"]


def table(headers, rows):
    align = ["left" if header in ("network", "block", "stage") else "right" for header in headers]
    return tabulate(rows, headers, tablefmt="simple", colalign=align, disable_numparse=True)


def positive(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


if __name__ == "__main__":
    run_tool(main)
