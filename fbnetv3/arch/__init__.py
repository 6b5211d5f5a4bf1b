"""Architectures as data: definitions, registry, scaling and exact cost. No torch in here."""

from fbnetv3.arch.arch_files import arch_from_dict, dump_arch, load_arch, save_arch
from fbnetv3.arch.arch_registry import (
    ARCHS,
    configs_folder,
    cost,
    get_arch,
    list_archs,
    load_arch_folder,
    register_arch,
    register_arch_folder,
)
from fbnetv3.arch.block_specs import BLOCK_SPECS, round8
from fbnetv3.arch.complexity import Cost
from fbnetv3.arch.compound_scaling import compound_scale, same_padding, scale_to_macs, small_images
from fbnetv3.arch.definition import ArchDef, ArchError, Block, Row, Stage
from fbnetv3.arch.network_cost import NetworkCost, cost_of

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
