"""Architectures as data: definitions, registry, scaling and exact cost. Does not import torch."""

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
from fbnetv3.arch.compound_scaling import (
    adapt_to_small_images,
    compound_scale,
    scale_to_macs,
    with_same_padding,
)
from fbnetv3.arch.definition import ArchDef, ArchError, Block, Row, Stage
from fbnetv3.arch.layer_cost import Cost
from fbnetv3.arch.network_cost import NetworkCost, compute_cost

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
    "compute_cost",
    "dump_arch",
    "get_arch",
    "list_archs",
    "load_arch",
    "load_arch_folder",
    "register_arch",
    "register_arch_folder",
    "round8",
    "with_same_padding",
    "save_arch",
    "scale_to_macs",
    "adapt_to_small_images",
]
