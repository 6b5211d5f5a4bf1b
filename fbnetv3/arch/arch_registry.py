"""The registry of architectures: those in `configs/archs/`, and those that users add."""

from __future__ import annotations

import os
from pathlib import Path

from fbnetv3.arch.arch_files import load_arch
from fbnetv3.arch.definition import ArchDef, ArchError
from fbnetv3.arch.network_cost import NetworkCost, compute_cost
from fbnetv3.errors import UsageError
from fbnetv3.registry import Registry, caller_location
from fbnetv3.utils.files import shipped_folder


def configs_folder() -> Path:
    """Return the folder `configs/`, in a checkout or installed."""
    return shipped_folder("configs")


def _load_builtin_archs() -> list[tuple[str, ArchDef, str]]:
    entries = []
    for file in sorted((configs_folder() / "archs").rglob("*.yaml")):
        arch = load_arch(file)
        if arch.name != file.stem:
            raise ArchError(f"'{arch.name}' does not match the file name; rename one of them", "name", str(file))
        entries.append((arch.name, arch, str(file)))
    return entries


ARCHS = Registry("architecture", _load_builtin_archs)


def register_arch(arch: ArchDef | str | os.PathLike) -> ArchDef:
    """Add an architecture, or the one in a YAML file, to the registry.

    Registering the same file again has no effect.

    Raises:
        ArchError: the file holds no valid architecture.
        UsageError: the name is taken; the message says where it was registered.
    """
    if isinstance(arch, ArchDef):
        ARCHS.add(arch.name, arch, caller_location())
        return arch
    loaded = load_arch(arch)
    origin = os.path.abspath(arch)
    if loaded.name in ARCHS and ARCHS.origin(loaded.name) == origin and ARCHS.get(loaded.name) == loaded:
        return loaded
    ARCHS.add(loaded.name, loaded, origin)
    return loaded


def register_arch_folder(folder: str | os.PathLike) -> list[str]:
    """Register all architectures in `*.yaml` files of a folder and its subfolders, and return their names.

    Raises:
        UsageError: there is no such folder, it has no YAML file, or a name is taken.
        ArchError: a file holds no valid architecture.
    """
    return [register_arch(file).name for file in _yaml_files(folder)]


def load_arch_folder(folder: str | os.PathLike) -> list[ArchDef]:
    """Load all architectures in `*.yaml` files of a folder and its subfolders, without registering them.

    Raises:
        UsageError: there is no such folder, or it has no YAML file.
        ArchError: a file holds no valid architecture.
    """
    return [load_arch(file) for file in _yaml_files(folder)]


def _yaml_files(folder: str | os.PathLike) -> list[Path]:
    files = sorted(Path(folder).rglob("*.yaml"))
    if not files:
        raise UsageError(f"{folder}: no such folder, or no architecture files (*.yaml) in it")
    return files


def get_arch(arch: ArchDef | str | os.PathLike) -> ArchDef:
    """Return an architecture by its registered name or the path of its YAML file; return an `ArchDef` unchanged.

    Raises:
        UnknownNameError: no such name; the message suggests similar ones.
        ArchError: the file is missing or holds no valid architecture.
    """
    if isinstance(arch, ArchDef):
        return arch
    name = os.fspath(arch)
    if name.endswith((".yaml", ".yml")):
        return load_arch(name)
    return ARCHS.get(name)


def list_archs() -> list[str]:
    """Return the names of all registered architectures, sorted."""
    return ARCHS.names()


def cost(
    arch: ArchDef | str | os.PathLike,
    resolution: int | tuple[int, int] | None = None,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
) -> NetworkCost:
    """Compute the exact cost of a network from its definition alone, without building it and without torch.

    Args:
        arch: a registered name, the path of a YAML file, or an architecture.
        resolution: side of the square input in pixels, or (height, width); default: the network's own.
        num_classes: outputs of the classifier; 0 for the trunk alone.
        in_chans: channels of the input.

    Returns:
        The cost, with `.macs`, `.params` and `.activations`, `.macs_by_kind` and `.params_by_kind`, `.by_stage()` and
        `.blocks`.
    """
    return compute_cost(get_arch(arch), resolution, num_classes=num_classes, in_chans=in_chans)
