"""A training recipe as frozen data: the lower half of the paper's Table 2."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from fbnetv3.errors import FieldError
from fbnetv3.registry import Registry
from fbnetv3.utils.checks import check_keys, check_type, error_context, is_number
from fbnetv3.utils.files import write_text
from fbnetv3.utils.yaml_files import parse_number, read_mapping

# Builders of optimizers, as lazy entries, so that recipes need no torch
OPTIMIZERS = Registry("optimizer")
OPTIMIZERS.register("fbnetv3.training.optimizers:build_sgd", name="sgd")
OPTIMIZERS.register("fbnetv3.training.optimizers:build_rmsprop", name="rmsprop")
OPTIMIZERS.register("fbnetv3.training.optimizers:build_rmsprop_tf", name="rmsprop_tf")
OPTIMIZERS.register("fbnetv3.training.optimizers:build_adamw", name="adamw")

# Optimizers of timm by their names there, such as timm/lion; they are checked when they are built
TIMM_PREFIX = "timm/"

# Smallest and largest values of Table 2. The table gives d and m in tenths, which would exceed 1. They are read as
# hundredths, like p; Sec. 4.2 confirms this with d = 0.2 for F and G.
TABLE_2_RANGES = {
    "lr": (0.020, 0.030),
    "drop_rate": (0.01, 0.31),
    "drop_path_rate": (0.10, 0.31),
    "mixup": (0.0, 0.41),
    "weight_decay": (7e-6, 21e-6),
}
# The fields that are numbers, with their exclusive upper bounds; the lower bounds are 0
_NUMBERS = {"lr": 1e3, "weight_decay": 1e3, "mixup": 1e3, "drop_rate": 1.0, "drop_path_rate": 1.0}


class RecipeError(FieldError):
    """An invalid recipe."""


def check_optimizer(name: object, field: str, error: type[FieldError]) -> None:
    """Raise `error`, naming `field`, unless `name` is a registered optimizer or begins with `TIMM_PREFIX`."""
    if not (isinstance(name, str) and name.startswith(TIMM_PREFIX)):
        OPTIMIZERS.check(name, field, error)


@dataclass(frozen=True)
class Recipe:
    """How to train a network: the lower half of Table 2."""

    optimizer: str  # registered name ("optim" in Table 2)
    lr: float  # learning rate of the search space; SGD uses four times the value, see `training_lr`
    weight_decay: float = 0.0  # L2 penalty ("wd")
    mixup: float = 0.0  # alpha of mixup's Beta distribution; 0 for none ("m")
    drop_rate: float = 0.0  # dropout before the classifier ("p")
    drop_path_rate: float = 0.0  # stochastic depth of the last block ("d")
    ema: bool = True  # whether to evaluate an average of the weights over training

    def __post_init__(self) -> None:
        check_optimizer(self.optimizer, "optimizer", RecipeError)
        check_type(self.ema, "ema", bool, "true or false", RecipeError)
        for name, high in _NUMBERS.items():
            value = getattr(self, name)
            if not is_number(value, 0) or value >= high:
                raise RecipeError(f"{value!r} must be a number in [0, {high:g})", name)

    @property
    def training_lr(self) -> float:
        """The learning rate after the warmup, SOLVER.LR: that of Table 2, times 4 for SGD."""
        return self.lr * 4.0 if self.optimizer == "sgd" else self.lr

    def check_table_2_ranges(self) -> None:
        """Require the recipe to be in the paper's search space."""
        for name, (low, high) in TABLE_2_RANGES.items():
            value = getattr(self, name)
            if not low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
                raise RecipeError(f"{value} must be in Table 2's range [{low:g}, {high:g}]", name)

    def to_config(self) -> dict[str, Any]:
        """Return the recipe as nested keys of a training config."""
        return {
            "SOLVER": {
                "OPTIMIZER": self.optimizer,
                "LR": self.training_lr,
                "WEIGHT_DECAY": self.weight_decay,
            },
            "MODEL": {"DROP_RATE": self.drop_rate, "DROP_PATH_RATE": self.drop_path_rate},
            "INPUT": {"MIXUP": self.mixup},
            "EMA": {"ENABLED": self.ema},
        }


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """Build a recipe from a plain mapping."""
    check_keys(data, RecipeError, tuple(f.name for f in fields(Recipe)), required=("optimizer", "lr"))
    return Recipe(**{key: parse_number(value) if key in _NUMBERS else value for key, value in data.items()})


def load_recipe(path: str | os.PathLike) -> Recipe:
    """Read a recipe from YAML; a `RecipeError` names the file and the field."""
    data = read_mapping(path, RecipeError, (f.name for f in fields(Recipe)))
    with error_context(file=str(path)):
        return recipe_from_dict(data)


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML, which `load_recipe` reads back as an equal recipe."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False)


def save_recipe(recipe: Recipe, path: str | os.PathLike) -> None:
    """Write a recipe to a YAML file."""
    write_text(Path(path), dump_recipe(recipe))
