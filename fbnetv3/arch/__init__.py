"""Architectures as data: definitions, registry, scaling and exact cost. No torch in here."""

from fbnetv3.arch.analysis import NetworkCost, cost_of
from fbnetv3.arch.blocks import BLOCK_SPECS, round8
from fbnetv3.arch.complexity import Cost
from fbnetv3.arch.definition import ArchDef, ArchError, Block, Row, Stage
from fbnetv3.arch.library import (
    ARCHS,
    configs_folder,
    cost,
    get_arch,
    list_archs,
    load_arch_folder,
    register_arch,
    register_arch_folder,
)
from fbnetv3.arch.scaling import compound_scale, same_padding, scale_to_macs, small_images
from fbnetv3.arch.serialization import arch_from_dict, dump_arch, load_arch, save_arch

__all__ = [
    "ARCHS",
    "BLOCK_SPECS",
    "ArchDef",
    "ArchError",
    "Block",
    "Cost",
    "NetworkCost",
    "Row",
    "Stage",
    "arch_from_dict",
    "compound_scale",
    "configs_folder",
    "cost",
    "cost_of",
    "dump_arch",
    "get_arch",
    "list_archs",
    "load_arch",
    "load_arch_folder",
    "register_arch",
    "register_arch_folder",
    "round8",
    "same_padding",
    "save_arch",
    "scale_to_macs",
    "small_images",
]
