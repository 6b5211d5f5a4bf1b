"""Print the cost of networks and detectors: `fbnetv3 analyze [NAME|FILE ...] [--stages] [--detectors]`.

Needs no torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tabulate import tabulate

from fbnetv3.arch import ArchDef, Cost, cost, get_arch, list_archs, register_arch_folder
from fbnetv3.arch.definition import BlockCost
from fbnetv3.arch.detector_cost import (
    TABLE_5,
    DetectorSettings,
    find_detector_config,
    is_detection_variant,
    list_detector_configs,
    read_detector_config,
)
from fbnetv3.errors import UnknownNameError, suggest
from fbnetv3.utils.command_line import ArgumentParser, positive_int

LEFT_ALIGNED = ("network", "block", "stage", "detector", "part")
Resolution = int | tuple[int, int] | None
COST_HEADERS = ("MACs (M)", "params (M)", "activations (M)")


def main(argv: Sequence[str] | None = None) -> None:
    """Print tables of costs."""
    parser = ArgumentParser(description="Print MACs and parameters of networks and detectors.")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME|FILE",
        help="architectures or detection configs (default: all architectures)",
    )
    parser.add_argument(
        "--stages", action="store_true", help="list stages of networks and parts of detectors"
    )
    parser.add_argument(
        "--detectors",
        action="store_true",
        help="print the costs of Table 5's detectors next to the paper's",
    )
    parser.add_argument(
        "--resolution",
        type=_parse_size,
        metavar="PIXELS|HxW",
        help="input size (default: each network's own; 384x640 for detectors)",
    )
    parser.add_argument(
        "--num-classes",
        type=positive_int,
        metavar="N",
        help="number of classes (default: 1000; 80 for detectors)",
    )
    parser.add_argument(
        "--arch-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="folder of architecture files to register (can be repeated)",
    )
    args = parser.parse_args(argv)
    if args.detectors and args.names:
        parser.error("--detectors takes no names")
    for folder in args.arch_dir:
        register_arch_folder(folder)

    # Classifiers and detectors may be mixed
    names = args.names or (TABLE_5 if args.detectors else list_archs())
    items = [_find_arch_or_detector(name, args.num_classes) for name in names]
    detectors = [item for item in items if isinstance(item, DetectorSettings)]
    networks = [item for item in items if not isinstance(item, DetectorSettings)]

    num_classes = args.num_classes or 1000
    image_size = args.resolution or (384, 640)
    if not isinstance(image_size, tuple):
        image_size = (image_size, image_size)
    tables = []
    if args.stages:
        tables += [_stage_table(arch, args.resolution, num_classes) for arch in networks]
        tables += [_part_table(settings, image_size) for settings in detectors]
    else:
        if networks:
            tables.append(_network_table(networks, args.resolution, num_classes))
        if detectors:
            tables.append(_detector_table(detectors, image_size, TABLE_5 if args.detectors else {}))
    print("\n\n".join(tables))


def _find_arch_or_detector(name: str, num_classes: int | None) -> ArchDef | DetectorSettings:
    """Return a classifier's architecture, or the settings of a detection config or detection variant."""
    if (file := find_detector_config(name)) is not None:
        settings = read_detector_config(file)
    elif name not in list_archs() and not name.endswith((".yaml", ".yml")):
        suggestion = suggest(name, [*list_archs(), *list_detector_configs()])
        raise UnknownNameError(f"unknown architecture or detection config '{name}': {suggestion}")
    else:
        arch = get_arch(name)
        if not is_detection_variant(arch):
            return arch
        settings = DetectorSettings(arch.name, arch)
    arguments = {**settings.arguments, "num_classes": num_classes}
    return replace(settings, arguments=arguments) if num_classes else settings


def _network_table(networks: Sequence[ArchDef], resolution: Resolution, num_classes: int) -> str:
    rows = []
    for arch in networks:
        total = cost(arch, resolution, num_classes=num_classes)
        size = _format_size(resolution or arch.resolution)
        rows.append([arch.name, size, len(total.blocks), *_cost_cells(total)])
    return _format_table(["network", "input", "blocks", *COST_HEADERS], rows)


def _stage_table(arch: ArchDef, resolution: Resolution, num_classes: int) -> str:
    total = cost(arch, resolution, num_classes=num_classes)
    rows = []
    for s, (stage, stage_cost) in enumerate(zip(arch.stages, total.by_stage(), strict=True)):
        blocks = [part for part in total.blocks if part.block.stage == s]
        rows.append(
            [s, stage.rows[-1].block, len(blocks), _output_shape(blocks[-1]), *_cost_cells(stage_cost)]
        )
    rows.append(["head", "linear", 1, f"{num_classes}", *_cost_cells(total.head)])
    rows.append(["all", "", len(total.blocks) + 1, "", *_cost_cells(total)])
    title = f"{arch.name} at {_format_size(resolution or arch.resolution)} pixels"
    return f"{title}\n{_format_table(['stage', 'block', 'blocks', 'output', *COST_HEADERS], rows)}"


def _detector_table(
    detectors: Sequence[DetectorSettings],
    image_size: tuple[int, int],
    paper: Mapping[str, tuple[float, float]],
) -> str:
    """Format one line per detector; MACs are those of convolutions, as in the paper."""
    headers = ["detector", "proposals", "trunk (G)", "RPN head (G)", "box head (G)", "MACs (G)", "params"]
    if paper:
        headers[6:] = ["paper (G)", "params", "paper"]
    rows = []
    for settings in detectors:
        total = settings.cost(*image_size)
        box_heads = total.num_proposals * total.box_head.macs_conv
        macs = (total.trunk.macs_conv, total.rpn_head.macs_conv, box_heads, total.macs_conv)
        row = [settings.name, total.num_proposals, *(f"{m / 1e9:.2f}" for m in macs)]
        if paper:
            paper_params, paper_macs = paper[settings.name]
            row += [f"{paper_macs:.1f}", f"{total.params:,}", f"{paper_params:.1f} M"]
        else:
            row.append(f"{total.params:,}")
        rows.append(row)
    notes = "".join(
        f"\n{settings.name}: without its mask head" for settings in detectors if settings.has_masks
    )
    return f"detectors at {_format_size(image_size)} pixels\n{_format_table(headers, rows)}{notes}"


def _part_table(settings: DetectorSettings, image_size: tuple[int, int]) -> str:
    total = settings.cost(*image_size)
    per_proposal = f"for each of {total.num_proposals} proposals"
    rows = [
        ["trunk", _output_shape(total.trunk.blocks[-1]), *_macs_and_params(total.trunk)],
        ["RPN head", "", *_macs_and_params(total.rpn_head)],
        ["box head", per_proposal, *_macs_and_params(total.box_head, total.num_proposals)],
        ["predictor", f"two linear layers, {per_proposal}", "-", f"{total.predictor.params / 1e6:,.3f}"],
        ["all", "", f"{total.macs_conv / 1e6:,.2f}", f"{total.params / 1e6:,.3f}"],
    ]
    linear_macs = total.num_proposals * total.predictor.macs / 1e6
    note = f"\nTable 5 does not count linear layers, which add {linear_macs:,.2f} M MACs"
    note += "\nthe mask head is not included" if settings.has_masks else ""
    title = f"{settings.name} at {_format_size(image_size)} pixels"
    return f"{title}\n{_format_table(['part', 'output', 'MACs (M)', 'params (M)'], rows)}{note}"


def _macs_and_params(part: Cost, count: int = 1) -> list[str]:
    return [f"{count * part.macs_conv / 1e6:,.2f}", f"{part.params / 1e6:,.3f}"]


def _output_shape(block_cost: BlockCost) -> str:
    return f"{block_cost.height} x {block_cost.width} x {block_cost.block.spec.out_channels}"


def _cost_cells(total: Cost) -> list[str]:
    return [f"{total.macs / 1e6:,.2f}", f"{total.params / 1e6:,.3f}", f"{total.activations / 1e6:,.2f}"]


def _format_table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    align = ["left" if header in LEFT_ALIGNED else "right" for header in headers]
    return tabulate(rows, headers, tablefmt="simple", colalign=align, disable_numparse=True)


def _format_size(resolution: int | tuple[int, int]) -> str:
    return "x".join(map(str, resolution)) if isinstance(resolution, tuple) else str(resolution)


def _parse_size(text: str) -> int | tuple[int, int]:
    """Parse a number of pixels, or height and width as HxW."""
    match [positive_int(side) for side in text.split("x")]:
        case [side]:
            return side
        case [height, width]:
            return height, width
    raise argparse.ArgumentTypeError(f"{text!r} must be a number of pixels or HxW")
