"""FBNetV3 and the search that found it: definitions, exact cost, networks, training, published weights.

Nothing is imported before it is used, so that `import fbnetv3` costs nothing and `fbnetv3.cost` needs no torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "1.0.0"

if TYPE_CHECKING:
    from fbnetv3.api import create_model, list_models
    from fbnetv3.arch import ArchDef, cost, get_arch, register_arch, register_arch_folder
    from fbnetv3.modeling.weights import load_weights

_HOME = {
    "create_model": "fbnetv3.api",
    "list_models": "fbnetv3.api",
    "ArchDef": "fbnetv3.arch",
    "cost": "fbnetv3.arch",
    "get_arch": "fbnetv3.arch",
    "register_arch": "fbnetv3.arch",
    "register_arch_folder": "fbnetv3.arch",
    "load_weights": "fbnetv3.modeling.weights",
}

__all__ = ["__version__", *_HOME]


class _CheckoutFinder:
    """Finds `fbnetv3.model_zoo` and `fbnetv3.configs` in a checkout, where they lie beside this package."""

    root = Path(__file__).resolve().parent.parent
    names = ("fbnetv3.model_zoo", "fbnetv3.configs")

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        folder = cls.root / name.rpartition(".")[2]
        if name not in cls.names or not (folder / "__init__.py").is_file():
            return None
        return spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=[str(folder)])


if not (Path(__file__).parent / "model_zoo").is_dir() and _CheckoutFinder not in sys.meta_path:
    sys.meta_path.append(_CheckoutFinder)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in ("arch", "data", "deploy", "detection", "engine", "modeling", "model_zoo", "nars"):
        return import_module(f"fbnetv3.{name}")
    raise AttributeError(f"module 'fbnetv3' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
