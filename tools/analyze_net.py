#!/usr/bin/env python3
"""What networks and detectors cost: `analyze_net.py [NAME|FILE ...] [--stages] [--detectors]`. Needs no torch."""

from tabulate import tabulate

from fbnetv3.arch import cost, get_arch, list_archs, register_arch_folder
from fbnetv3.arch.detector_cost import TABLE_5, is_detection_variant
from fbnetv3.arch.detector_settings import (
    DetectorSettings,
    find_detector_config,
    list_detector_configs,
    read_detector_config,
)
from fbnetv3.errors import UnknownNameError, suggest
from fbnetv3.utils.command_line import ArgumentParser, run_tool

LEFT = ("network", "block", "stage", "detector", "part")


def main(argv=None):
    parser = ArgumentParser(description="Print MACs and parameters of one, several or all networks and detectors.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME|FILE", help="architectures or detection configs; default: all architectures"
    )
    parser.add_argument("--stages", action="store_true", help="stage by stage, and detectors part by part")
    parser.add_argument("--detectors", action="store_true", help="Table 5, beside the paper's figures")
    parser.add_argument(
        "--resolution",
        type=pixels,
        metavar="PIXELS|HxW",
        help="instead of each network's own, and of 384x640 for detectors",
    )
    parser.add_argument("--num-classes", type=positive, metavar="N", help="default: 1000, for detectors 80")
    parser.add_argument("--arch-dir", action="append", default=[], metavar="DIR", help="register its YAML files first")
    args = parser.parse_args(argv)
    for folder in args.arch_dir:
        register_arch_folder(folder)
    if args.detectors and args.names:
        parser.error("--detectors has networks of its own")
    networks, detectors = [], []
    for name in args.names or (TABLE_5 if args.detectors else list_archs()):
        found = lookup(name, args.num_classes)
        (detectors if isinstance(found, DetectorSettings) else networks).append(found)
    size = args.resolution if isinstance(args.resolution, tuple) else (args.resolution,) * 2
    size = (384, 640) if args.resolution is None else size
    if args.stages:
        tables = [stage_table(defn, args.resolution, args.num_classes or 1000) for defn in networks]
        tables += [part_table(settings, size) for settings in detectors]
    else:
        tables = [network_table(networks, args.resolution, args.num_classes or 1000)] if networks else []
        tables += [detector_table(detectors, size, TABLE_5 if args.detectors else {})] if detectors else []
    print("\n\n".join(tables))


def lookup(name, num_classes):
    """A classifier's architecture, or what a detector's config or a detection variant says."""
    if (file := find_detector_config(name)) is not None:
        settings = read_detector_config(file)
    elif name not in list_archs() and not name.endswith((".yaml", ".yml")):
        known = suggest(name, [*list_archs(), *list_detector_configs()])
        raise UnknownNameError(f"unknown architecture or detection config '{name}': {known}")
    elif is_detection_variant(defn := get_arch(name)):
        settings = DetectorSettings(defn.name, defn)
    else:
        return defn
    return settings.with_classes(num_classes) if num_classes else settings


def network_table(defns, resolution, num_classes):
    rows = []
    for defn in defns:
        c = cost(defn, resolution, num_classes=num_classes)
        rows.append([defn.name, shown(resolution or defn.resolution), len(c.blocks), *figures(c)])
    return table(["network", "input", "blocks", "MACs (M)", "params (M)", "activations (M)"], rows)


def stage_table(defn, resolution, num_classes):
    c = cost(defn, resolution, num_classes=num_classes)
    rows = []
    for s, (stage, total) in enumerate(zip(defn.stages, c.by_stage(), strict=True)):
        parts = [part for part in c.blocks if part.block.stage == s]
        rows.append([s, stage.rows[-1].block, len(parts), output_of(parts[-1]), *figures(total)])
    rows.append(["head", "linear", 1, f"{num_classes}", *figures(c.head)])
    rows.append(["all", "", len(c.blocks) + 1, "", *figures(c)])
    title = f"{defn.name} at {shown(resolution or defn.resolution)} pixels"
    return (
        title + "\n" + table(["stage", "block", "blocks", "output", "MACs (M)", "params (M)", "activations (M)"], rows)
    )


def detector_table(detectors, size, paper):
    """One line a detector; MACs are those of convolutions, as in the paper."""
    rows = []
    for settings in detectors:
        c = settings.cost(*size)
        parts = (c.trunk.macs_conv, c.rpn_head.macs_conv, c.proposals * c.box_head.macs_conv, c.macs_conv)
        row = [settings.name, c.proposals, *(f"{macs / 1e9:.2f}" for macs in parts)]
        params, macs = paper.get(settings.name, (None, None))
        row += [f"{macs:.1f}"] if paper else []
        rows.append([*row, f"{c.params:,}", *([f"{params:.1f} M"] if paper else [])])
    headers = ["detector", "proposals", "trunk (G)", "RPN head (G)", "box head (G)", "MACs (G)", "params"]
    if paper:
        headers[6:] = ["paper (G)", "params", "paper"]
    notes = "".join(f"\n{s.name}: its mask head is not counted" for s in detectors if s.has_masks)
    return f"detectors at {shown(size)} pixels\n{table(headers, rows)}{notes}"


def part_table(settings, size):
    c = settings.cost(*size)
    each = f"for each of {c.proposals} proposals"
    rows = [
        ["trunk", output_of(c.trunk.blocks[-1]), *macs_and_params(c.trunk)],
        ["RPN head", "", *macs_and_params(c.rpn_head)],
        ["box head", each, *macs_and_params(c.box_head, c.proposals)],
        ["predictor", "two linear layers, " + each, "-", f"{c.predictor.params / 1e6:,.3f}"],
        ["all", "", f"{c.macs_conv / 1e6:,.2f}", f"{c.params / 1e6:,.3f}"],
    ]
    note = f"\nlinear layers do not count in Table 5: {c.proposals * c.predictor.macs / 1e6:,.2f} M MACs more with them"
    note += "\nits mask head is not counted" if settings.has_masks else ""
    title = f"{settings.name} at {shown(size)} pixels\n"
    return title + table(["part", "output", "MACs (M)", "params (M)"], rows) + note


def macs_and_params(c, times=1):
    return [f"{times * c.macs_conv / 1e6:,.2f}", f"{c.params / 1e6:,.3f}"]


def output_of(part):
    return f"{part.height} x {part.width} x {part.block.spec.out_channels}"


def figures(c):
    return [f"{c.macs / 1e6:,.2f}", f"{c.params / 1e6:,.3f}", f"{c.activations / 1e6:,.2f}"]


def table(headers, rows):
    align = ["left" if header in LEFT else "right" for header in headers]
    return tabulate(rows, headers, tablefmt="simple", colalign=align, disable_numparse=True)


def shown(resolution):
    return "x".join(map(str, resolution)) if isinstance(resolution, tuple) else str(resolution)


def positive(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def pixels(text):
    """A number of pixels, or height and width."""
    sides = tuple(positive(side) for side in text.split("x"))
    if len(sides) > 2:
        raise ValueError
    return sides if len(sides) == 2 else sides[0]


if __name__ == "__main__":
    run_tool(main)
