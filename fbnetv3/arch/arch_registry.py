"""The registry of architectures: those in `configs/archs/`, and those that users add."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from fbnetv3.arch.arch_files import load_arch
from fbnetv3.arch.definition import ArchDef
from fbnetv3.arch.network_cost import NetworkCost, compute_cost
from fbnetv3.errors import UsageError
from fbnetv3.registry import Registry, caller_location
from fbnetv3.utils.files import shipped_folder


def configs_folder() -> Path:
    """Return the folder `configs/`, in a checkout or installed."""
    return shipped_folder("configs")


class _ArchRegistry(Registry):
    """A registry whose entries may also be files, which are read on first use."""

    def get(self, name: object) -> ArchDef:
        entry = self.entry(name)
        return _read_once(entry) if isinstance(entry, Path) else entry


_read_once = cache(load_arch)
ARCHS = _ArchRegistry("architecture")
for _file in (configs_folder() / "archs").rglob("*.yaml"):
    ARCHS.add(_file.stem, _file, str(_file))


def register_arch(arch: ArchDef | str | os.PathLike) -> ArchDef:
    """Add an architecture, or the one in a YAML file, to the registry. Adding the same file again has no effect.

    Raises:
        ArchError: the file is missing or invalid.
        UsageError: the name is taken.
    """
    if isinstance(arch, ArchDef):
        ARCHS.add(arch.name, arch, caller_location())
        return arch
    loaded = load_arch(arch)
    origin = os.path.abspath(arch)
    if loaded.name not in ARCHS or ARCHS.origin(loaded.name) != origin:
        ARCHS.add(loaded.name, loaded, origin)
    elif ARCHS.get(loaded.name) != loaded:
        raise UsageError(
            f"{origin} has changed since architecture '{loaded.name}' was registered: restart, or rename it"
        )
    return loaded


def register_arch_folder(folder: str | os.PathLike) -> list[str]:
    """Register all architectures in `*.yaml` files of a folder and its subfolders, and return their names."""
    return [register_arch(file).name for file in _yaml_files(folder)]


def load_arch_folder(folder: str | os.PathLike) -> list[ArchDef]:
    """Load all architectures in `*.yaml` files of a folder and its subfolders, without registering them."""
    return [load_arch(file) for file in _yaml_files(folder)]


def _yaml_files(folder: str | os.PathLike) -> list[Path]:
    files = sorted(Path(folder).rglob("*.yaml"))
    if not files:
        problem = "contains no architecture files (*.yaml)" if Path(folder).is_dir() else "no such folder"
        raise UsageError(f"{folder}: {problem}")
    return files


def get_arch(arch: ArchDef | str | os.PathLike) -> ArchDef:
    """Return an architecture by its registered name or the path of its YAML file; return an `ArchDef` unchanged.

    Raises:
        UnknownNameError: no architecture has that name; the message suggests similar ones.
        ArchError: the file is missing or invalid.
    """
    if isinstance(arch, ArchDef):
        return arch
    name = os.fspath(arch)
    return load_arch(name) if name.endswith((".yaml", ".yml")) else ARCHS.get(name)


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

    Raises:
        UnknownNameError: no architecture has that name; the message suggests similar ones.
        UsageError: the input is too small for the network, or an argument is out of range.
    """
    return compute_cost(get_arch(arch), resolution, num_classes=num_classes, in_chans=in_chans)
