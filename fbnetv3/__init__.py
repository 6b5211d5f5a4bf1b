"""FBNetV3: architecture definitions, exact cost, networks, training, pretrained weights, and architecture search.

Attributes are imported on first use, so `import fbnetv3` is fast. `fbnetv3.cost` needs only fvcore and PyYAML.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fbnetv3.utils.imports import lazy_attributes

__version__ = "2.0.0.dev0"

if TYPE_CHECKING:
    from fbnetv3.arch import ArchDef, cost, get_arch, register_arch, register_arch_folder
    from fbnetv3.factory import create_model, list_models
    from fbnetv3.modeling.weights import load_weights

# The module that defines each attribute
_ATTRIBUTES = {
    "create_model": "fbnetv3.factory",
    "list_models": "fbnetv3.factory",
    "ArchDef": "fbnetv3.arch",
    "cost": "fbnetv3.arch",
    "get_arch": "fbnetv3.arch",
    "register_arch": "fbnetv3.arch",
    "register_arch_folder": "fbnetv3.arch",
    "load_weights": "fbnetv3.modeling.weights",
}
_SUBPACKAGES = (
    "arch",
    "config",
    "data",
    "deploy",
    "detection",
    "modeling",
    "model_zoo",
    "nars",
    "training",
)

__all__ = ["__version__", *_ATTRIBUTES]

__getattr__ = lazy_attributes(__name__, _ATTRIBUTES | {name: f"{__name__}.{name}" for name in _SUBPACKAGES})


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
