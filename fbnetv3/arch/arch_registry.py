"""The registry of architectures: those of `configs/archs/`, and those that users add."""

from __future__ import annotations

import os
from pathlib import Path

from fbnetv3.arch.arch_files import load_arch
from fbnetv3.arch.definition import ArchDef, ArchError
from fbnetv3.arch.network_cost import NetworkCost, cost_of
from fbnetv3.errors import UsageError
from fbnetv3.registry import Registry, caller
from fbnetv3.utils.files import shipped_folder


def configs_folder() -> Path:
    """Return the folder `configs/`, in a checkout or installed."""
    return shipped_folder("configs")


def _shipped() -> list[tuple[str, ArchDef, str]]:
    entries = [(load_arch(file), file) for file in sorted((configs_folder() / "archs").rglob("*.yaml"))]
    for defn, file in entries:
        if defn.name != file.stem:
            raise ArchError(f"'{defn.name}' is not the file's own name", "name", str(file))
    return [(defn.name, defn, str(file)) for defn, file in entries]


ARCHS = Registry("architecture", _shipped)


def register_arch(arch: ArchDef | str | os.PathLike) -> ArchDef:
    """Add an architecture to the registry: a definition, or the path of a YAML file.

    Registering the same file again changes nothing.

    Raises:
        ArchError: the file describes no network.
        UsageError: the name is taken; the text says by what.
    """
    if isinstance(arch, ArchDef):
        ARCHS.add(arch.name, arch, caller())
        return arch
    defn, origin = load_arch(arch), os.path.abspath(arch)
    if defn.name in ARCHS and ARCHS.origin(defn.name) == origin and ARCHS.get(defn.name) == defn:
        return defn
    ARCHS.add(defn.name, defn, origin)
    return defn


def register_arch_folder(folder: str | os.PathLike) -> list[str]:
    """Add every `*.yaml` of a folder and its subfolders. Returns the names.

    Raises:
        UsageError: there is no such folder or no YAML file in it, or a name is taken.
        ArchError: a file describes no network.
    """
    return [register_arch(file).name for file in _arch_files(folder)]


def load_arch_folder(folder: str | os.PathLike) -> list[ArchDef]:
    """The architectures of every `*.yaml` of a folder and its subfolders, without adding them to the registry.

    Raises:
        UsageError: there is no such folder or no YAML file in it.
        ArchError: a file describes no network.
    """
    return [load_arch(file) for file in _arch_files(folder)]


def _arch_files(folder: str | os.PathLike) -> list[Path]:
    files = sorted(Path(folder).rglob("*.yaml"))
    if not files:
        raise UsageError(f"{folder}: no folder with architecture files (*.yaml)")
    return files


def get_arch(arch: ArchDef | str | os.PathLike) -> ArchDef:
    """An architecture by its registered name, by the path of a YAML file, or as it is given.

    Raises:
        UnknownNameError: no architecture of that name; the text suggests close ones.
        ArchError: the file is missing or describes no network.
    """
    if isinstance(arch, ArchDef):
        return arch
    name = os.fspath(arch)
    if name.endswith((".yaml", ".yml")):
        return load_arch(name)
    return ARCHS.get(name)


def list_archs() -> list[str]:
    """Names of all registered architectures, sorted."""
    return ARCHS.names()


def cost(
    arch: ArchDef | str | os.PathLike,
    resolution: int | tuple[int, int] | None = None,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
) -> NetworkCost:
    """Exact cost of a network from its definition alone, without building it and without torch.

    Args:
        arch: a registered name, the path of a YAML file, or a definition.
        resolution: pixels of the square input, or (height, width); default: the network's own.
        num_classes: outputs of the classifier; 0 for the trunk alone.
        in_chans: channels of the input.

    Returns:
        `.macs`, `.params` and `.activations`; `.macs_by_kind` and `.params_by_kind`; `.by_stage()`, `.blocks`.
    """
    return cost_of(get_arch(arch), resolution, num_classes=num_classes, in_chans=in_chans)
