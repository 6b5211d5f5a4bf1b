"""A training recipe as frozen data: the lower half of the paper's Table 2."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from fbnetv3.errors import FieldError
from fbnetv3.utils.yaml_files import check_keys, number_of, read_mapping

OPTIMIZERS = ("rmsprop", "sgd")
SGD_FACTOR = 4.0

# Lowest and highest value of Table 2. It prints d and m in tenths, which would make them larger than 1; they are
# taken as hundredths, like p, which is where the 0.2 lies that Sec. 4.2 gives F and G for d.
TABLE_2 = {
    "lr": (0.020, 0.030),
    "drop_rate": (0.01, 0.31),
    "drop_path_rate": (0.10, 0.31),
    "mixup": (0.0, 0.41),
    "weight_decay": (7e-6, 21e-6),
}


class RecipeError(FieldError):
    """A recipe that makes no sense."""


@dataclass(frozen=True)
class Recipe:
    """How to train a network.

    Attributes:
        optimizer: "rmsprop" or "sgd" (Table 2, optim).
        lr: initial learning rate as the search sees it (lr); SGD gets four times as much, see `initial_lr`.
        weight_decay: (wd).
        mixup: alpha of mixup's Beta distribution; 0 for none (m).
        drop_rate: dropout before the classifier (p).
        drop_path_rate: stochastic depth of the last block (d).
        ema: whether to average the weights over training and evaluate the average (ema).
    """

    optimizer: str
    lr: float
    weight_decay: float = 0.0
    mixup: float = 0.0
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    ema: bool = True

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise RecipeError(f"{self.optimizer!r} is not one of {', '.join(OPTIMIZERS)}", "optimizer")
        if not isinstance(self.ema, bool):
            raise RecipeError(f"{self.ema!r} is neither true nor false", "ema")
        for name, high in (("lr", 1e3), ("weight_decay", 1e3), ("mixup", 1e3), ("drop_rate", 1), ("drop_path_rate", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < high:
                raise RecipeError(f"{value!r} is not a number in [0, {high:g})", name)

    @property
    def initial_lr(self) -> float:
        """The learning rate to train with: Table 2's, times 4 for SGD."""
        return self.lr * SGD_FACTOR if self.optimizer == "sgd" else self.lr

    def check_table_2(self) -> None:
        """Refuse a recipe from outside the paper's search space.

        Raises:
            RecipeError: names the field, its value and its range.
        """
        for name, (low, high) in TABLE_2.items():
            value = getattr(self, name)
            if not low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
                raise RecipeError(f"{value} is not in Table 2's [{low:g}, {high:g}]", name)

    def to_config(self) -> dict[str, Any]:
        """The same as keys of a training config."""
        return {
            "SOLVER": {"OPTIMIZER": self.optimizer, "LR": self.initial_lr, "WEIGHT_DECAY": self.weight_decay},
            "MODEL": {"DROP_RATE": self.drop_rate, "DROP_PATH_RATE": self.drop_path_rate},
            "INPUT": {"MIXUP": self.mixup},
            "EMA": {"ENABLED": self.ema},
        }


def recipe_from_dict(data: Mapping[str, Any]) -> Recipe:
    """A recipe from a plain mapping.

    Raises:
        RecipeError: names the field at fault.
    """
    check_keys(data, RecipeError, tuple(f.name for f in fields(Recipe)), required=("optimizer", "lr"))
    numbers = {f.name for f in fields(Recipe)} - {"optimizer", "ema"}
    return Recipe(**{key: number_of(value) if key in numbers else value for key, value in data.items()})


def load_recipe(path: str | os.PathLike) -> Recipe:
    """Read a recipe from YAML.

    Raises:
        RecipeError: the file is missing, not YAML, or holds no recipe. The text names file and field.
    """
    data = read_mapping(path, RecipeError, (f.name for f in fields(Recipe)))
    try:
        return recipe_from_dict(data)
    except RecipeError as error:
        raise error.in_file(str(path)) from None


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML. Reads back equal."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False)


def save_recipe(recipe: Recipe, path: str | os.PathLike) -> None:
    """Write the recipe to a YAML file."""
    Path(path).write_text(dump_recipe(recipe))
