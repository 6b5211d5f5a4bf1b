"""FBNetV3 and the search that found it: definitions, exact cost, networks, training, published weights.

Nothing is imported before it is used, so that `import fbnetv3` costs nothing and `fbnetv3.cost` needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

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

# Installed, `model_zoo` and `configs` lie in this package; in a checkout they lie beside it.
_checkout = Path(__file__).resolve().parent.parent
if not (Path(__file__).parent / "model_zoo").is_dir() and (_checkout / "model_zoo" / "__init__.py").is_file():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in ("arch", "data", "engine", "modeling", "model_zoo"):
        return import_module(f"fbnetv3.{name}")
    raise AttributeError(f"module 'fbnetv3' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
