"""Tasks of the search benchmark with synthetic accuracies: Table 2's joint space, and a space of mixed variables."""

import numpy as np
from search_task_base import Task

from fbnetv3.arch import configs_folder
from fbnetv3.nars.space.search_space import load_space, space_from_dict
from fbnetv3.nars.space.variables import RECIPE

JOINT_MACS = (4e8, 8e8)
MIXED_VARIABLES = {
    "depth": {"range": [2, 8]},
    "width": {"range": [16, 72, 8]},
    "expansion": {"range": [1, 6]},
    "kernel": {"choices": [3, 5, 7]},
    "attention": {"choices": ["none", "se", "eca"]},
    "reduction": {"choices": [2, 4, 8, 16, 32], "ordered": True, "when": {"attention": "se"}},
    "optimizer": {"choices": ["sgd", "adam", "rmsprop"], "part": RECIPE},
    "lr": {"choices": np.geomspace(1e-4, 1e-1, 14).tolist(), "ordered": True, "part": RECIPE},
    "momentum": {"range": [0.7, 0.95, 0.05], "when": {"optimizer": ["sgd", "rmsprop"]}, "part": RECIPE},
    "beta2": {"range": [0.95, 0.99, 0.01], "when": {"optimizer": "adam"}, "part": RECIPE},
    "weight_decay": {"choices": np.geomspace(1e-6, 1e-3, 7).tolist(), "ordered": True, "part": RECIPE},
    "augmentation": {"choices": ["none", "mixup", "cutmix", "randaugment"], "part": RECIPE},
    "strength": {
        "range": [1, 8],
        "when": {"augmentation": ["mixup", "cutmix", "randaugment"]},
        "part": RECIPE,
    },
    "warmup": {"range": [0, 4], "part": RECIPE},
}
# Continuous and log-scale variables in place of grids
CONTINUOUS_RANGES = {
    "width": {"range": [16, 256], "log": True},
    "lr": {"range": [1e-4, 1e-1], "log": True},
    "momentum": {"range": [0.5, 0.99]},
    "beta2": {"range": [0.9, 0.999]},
    "weight_decay": {"range": [1e-6, 1e-3], "log": True},
    "strength": {"range": [0.0, 1.0]},
}


class JointTask(Task):
    """Table 2's space between 400 and 800 M MACs, with a synthetic accuracy.

    Each choice of the architecture has its own effect, with diminishing returns. The best learning rate falls
    with depth, the best regularization rises with width, and the optimizers differ. Learning curves approach the
    accuracy at a rate that depends on the learning rate.

    Args:
        seed: seed of the effects.
        noise: see `Task`.
    """

    def __init__(self, seed=0, noise=0.15):
        space = load_space(configs_folder() / "nars" / "spaces" / "fbnetv3.yaml")
        super().__init__(f"joint{seed}", space, 30, noise, {"macs": list(JOINT_MACS)})
        rng = np.random.default_rng(seed)
        self.names = [variable.name for variable in space.variables]
        self.arch_columns = [
            i for i, v in enumerate(space.variables) if v.part == "architecture" and v.name != "s6_kernel"
        ]
        self.weights = rng.gamma(2.0, 0.5, len(space))
        self.shapes = rng.uniform(0.3, 2.0, len(space))
        self.pairs = [
            (*rng.choice(self.arch_columns, 2, replace=False), rng.normal(0, 0.5)) for _ in range(12)
        ]

    def true_values(self, vectors):
        x = (vectors / np.maximum(self.space.sizes - 1, 1)).T
        value = dict(zip(self.names, x, strict=True))
        total = sum(self.weights[i] * (1 - np.exp(-self.shapes[i] * 2 * x[i])) for i in self.arch_columns)
        total += sum(weight * (x[i] - 0.5) * (x[j] - 0.5) for i, j, weight in self.pairs)
        depth = np.mean([value[name] for name in self.names if name.endswith("repeat")], 0)
        width = np.mean([value[name] for name in self.names if name.endswith("channels")], 0)
        total -= 4 * (value["lr"] - (0.8 - 0.6 * depth)) ** 2
        strength = 0.4 * value["drop_rate"] + 0.3 * value["drop_path_rate"] + 0.3 * value["mixup"]
        total -= 6 * (strength - 0.2 - 0.5 * width) ** 2 + (value["weight_decay"] - 0.5) ** 2
        total += 0.4 * (value["optimizer"] == 1) * (value["lr"] > 0.4) + 0.3 * (value["ema"] == 0)
        return 60 + 1.2 * total

    def noiseless_curve(self, vector):
        speed = 3 + 4 * vector[self.names.index("lr")] / 10
        epochs = np.arange(1, self.epochs + 1) / self.epochs
        return self.true_value(vector) - 30 * np.exp(-speed * epochs) * (1 - epochs)


class MixedTask(Task):
    """A small joint space of integers, categories and conditional variables, with a synthetic accuracy.

    Larger networks are better if their depth and width agree. The best learning rate depends on optimizer, depth and
    momentum; the best weight decay and augmentation on the network's size. Far above the best learning rate,
    trainings diverge, unless a warmup prevents it. High learning rates make learning curves rise faster, strong
    augmentation slower.

    Args:
        seed: seed of the effects.
        noise: see `Task`.
    """

    kind = "mixed"
    variables = MIXED_VARIABLES

    def __init__(self, seed=0, noise=0.2):
        space = space_from_dict({"name": self.kind, "variables": self.variables})
        super().__init__(f"{self.kind}{seed}", space, 40, noise)
        rng = np.random.default_rng([14, seed])
        self.kernel_gain = rng.uniform(-0.8, 0.8, 3)
        self.attention_gain = np.array([0, *rng.uniform(0, 1, 2)])
        self.optimizer_gain = rng.uniform(-1, 1, 3)
        self.augmentation_gain = np.array([0, *rng.uniform(0, 1.5, 3)])
        self.best_lr = rng.uniform(0.3, 0.7, 3)
        self.best_strength = rng.uniform(0.2, 0.8, 4)
        self.best_reduction, self.best_momentum, self.best_beta2, self.imbalance = rng.uniform(0.2, 0.8, 4)

    def _split(self, vectors):
        """Return the indices of the variables' values and their positions in [0, 1], each by name."""
        names = [variable.name for variable in self.space.variables]
        vectors = np.asarray(vectors)
        positions = self.space.positions(vectors)
        return dict(zip(names, vectors.T, strict=True)), dict(zip(names, positions.T, strict=True))

    def true_values(self, vectors):
        index, x = self._split(vectors)
        lr_excess = x["lr"] - self._best_lr(index, x)
        total = self._architecture_value(index, x) + self._recipe_value(index, x, lr_excess)
        value = 74 + 1.5 * total
        diverges = lr_excess - 0.15 * x["warmup"] > 0.3
        return np.where(diverges, 10 + 0.05 * value, value)

    def _best_lr(self, index, x):
        has_momentum = index["optimizer"] != 1
        slower = 0.25 * (x["depth"] - 0.5) + 0.3 * has_momentum * (x["momentum"] - 0.5)
        return self.best_lr[index["optimizer"]] - slower

    @staticmethod
    def _size(x):
        return 0.35 * x["depth"] + 0.45 * x["width"] + 0.2 * x["expansion"]

    def _architecture_value(self, index, x):
        size = self._size(x)
        value = 7 * (1 - np.exp(-2.2 * size)) - 5 * (x["depth"] - x["width"] + self.imbalance - 0.5) ** 2
        value += self.kernel_gain[index["kernel"]] * (0.4 + x["expansion"])
        value += self.attention_gain[index["attention"]]
        return value - 2.5 * (index["attention"] == 1) * (x["reduction"] - self.best_reduction) ** 2

    def _recipe_value(self, index, x, lr_excess):
        size = self._size(x)
        strength = x["strength"] * (index["augmentation"] > 0)
        value = self.optimizer_gain[index["optimizer"]] - 22 * lr_excess**2
        momentum_loss = 3 * (x["momentum"] - self.best_momentum) ** 2
        beta2_loss = 3 * (x["beta2"] - self.best_beta2) ** 2
        value -= np.where(index["optimizer"] == 1, beta2_loss, momentum_loss)
        value -= 4 * (x["weight_decay"] - 0.2 - 0.6 * size + 0.2 * strength) ** 2
        best_strength = self.best_strength[index["augmentation"]] + 0.4 * (size - 0.5)
        strength_loss = 5 * (x["strength"] - best_strength) ** 2
        value += self.augmentation_gain[index["augmentation"]] - (index["augmentation"] > 0) * strength_loss
        return value - 1.5 * (x["warmup"] - 0.2 - 0.5 * x["lr"]) ** 2

    def noiseless_curve(self, vector):
        index, x = self._split(np.asarray(vector)[None])
        strength = x["strength"][0] * (index["augmentation"][0] > 0)
        rate = 3.5 + 5 * x["lr"][0] - 2 * strength
        time = np.arange(1, self.epochs + 1) / self.epochs
        final = self.true_value(vector)
        return final - 0.9 * (final - 10) * (np.exp(-rate * time) - np.exp(-rate))


class ContinuousTask(MixedTask):
    """The mixed task with continuous variables, and some on a log scale."""

    kind = "continuous"
    variables = {
        name: {key: entry[key] for key in ("part", "when") if key in entry} | CONTINUOUS_RANGES[name]
        if name in CONTINUOUS_RANGES
        else entry
        for name, entry in MIXED_VARIABLES.items()
    }
