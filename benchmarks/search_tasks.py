"""Tasks of the search benchmark: search spaces whose best candidate is known, with learning curves.

A task's values are accuracies in percent; larger is better. `build_task` makes a task from its name:

- lcbench3945, ...: a surrogate of trainings on an OpenML task (YAHPO Gym's model of LCBench), 758,160 candidates; the
  folder holds `model.onnx` and `encoding.json` of https://github.com/slds-lmu/yahpo_data. Needs onnxruntime.
- macro: measured networks (NAS-Bench-Macro's JSON file, https://github.com/xiusu/NAS-Bench-Macro).
- joint0, joint1, ...: Table 2's joint space within bounds on MACs, with a synthetic accuracy.
- mixed0, mixed1, ...: integers, categories and conditional variables, with a synthetic accuracy.
- continuous0, continuous1, ...: the same with continuous variables, and some on a log scale.
"""

import functools
import json
import re
from pathlib import Path

import numpy as np
from search_synthetic_tasks import ContinuousTask, JointTask, MixedTask
from search_task_base import Task

from fbnetv3.errors import UsageError
from fbnetv3.nars.evaluators.table_evaluator import read_table
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.space.variables import RECIPE, Variable
from fbnetv3.utils.downloads import cache_dir
from fbnetv3.utils.files import atomic_write, file_sha256, make_folder

LCBENCH_EPOCHS = 52
LCBENCH_GRID = {
    "num_layers": range(1, 6),
    "max_units": (64, 96, 128, 192, 256, 384, 512, 768, 1024),
    "batch_size": (16, 32, 64, 128, 256, 512),
    "learning_rate": tuple(float(f"{rate:.3g}") for rate in np.geomspace(1e-4, 1e-1, 13)),
    "momentum": (0.1, 0.3, 0.5, 0.7, 0.9, 0.99),
    "weight_decay": (1e-5, 1e-3, 1e-2, 3e-2, 6e-2, 1e-1),
    "max_dropout": (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
}
LCBENCH_ARCHITECTURE = ("num_layers", "max_units")
# The surrogate's numeric inputs after the epoch, in its order, and the position of the validation accuracy
LCBENCH_INPUTS = (
    "batch_size",
    "learning_rate",
    "momentum",
    "weight_decay",
    "num_layers",
    "max_units",
    "max_dropout",
)
LCBENCH_ACCURACY = 1


class LCBenchTask(Task):
    """Multilayer perceptrons on an OpenML task: a grid of architectures and recipes.

    Args:
        number: number of the OpenML task.
        folder: folder of the surrogate's `model.onnx` and `encoding.json`.
        cache: folder in which the true accuracies of all candidates are stored; computing them takes 20 seconds.
        noise: see `Task`.
    """

    def __init__(self, number, folder, cache, noise=0.0):
        import onnxruntime

        model = Path(folder) / "model.onnx"
        numbers = json.loads((Path(folder) / "encoding.json").read_text())["OpenML_task_id"]
        if number not in numbers:
            raise UsageError(f"lcbench{number}: {folder} has no OpenML task {number}")
        self.encoded_number = numbers[number]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3  # errors only
        options.enable_cpu_mem_arena = False  # which would keep the memory of the largest batch
        self.session = onnxruntime.InferenceSession(str(model), options)
        variables = [
            Variable(name, tuple(values), False, *([] if name in LCBENCH_ARCHITECTURE else [RECIPE]))
            for name, values in LCBENCH_GRID.items()
        ]
        columns = {"weights": lambda vectors: count_weights(self.column_values(vectors))}
        super().__init__(
            "lcbench" + number, Space("lcbench", tuple(variables)), LCBENCH_EPOCHS, noise, {}, columns
        )
        self.truth = self._load_truth(Path(cache) / f"lcbench_{number}_{file_sha256(model)[:8]}.npy")

    @property
    def best(self):
        return float(self.truth.max())

    def _load_truth(self, file):
        """Return the true accuracies of all candidates in the order of their indices, from the file if it exists."""
        if file.exists():
            return np.load(file)
        vectors = np.stack(np.unravel_index(np.arange(self.space.num_candidates()), self.space.sizes), 1)
        chunks = np.array_split(vectors, 40)
        truth = np.concatenate([self._predict(chunk, np.full(len(chunk), self.epochs)) for chunk in chunks])
        make_folder(file.parent)
        with atomic_write(file) as f:
            np.save(f, truth)
        return truth

    def column_values(self, vectors):
        """Return the values of each variable by name, (N,) each."""
        columns = np.asarray(vectors).T
        return {
            variable.name: np.array(variable.values, float)[column]
            for variable, column in zip(self.space.variables, columns, strict=True)
        }

    def _predict(self, vectors, epochs):
        values = self.column_values(vectors)
        numbers = np.stack([epochs, *(values[name] for name in LCBENCH_INPUTS)], 1).astype(np.float32)
        category = np.full((len(numbers), 1), self.encoded_number, np.int32)
        return self.session.run(None, {"x_cat": category, "x_cont": numbers})[0][:, LCBENCH_ACCURACY]

    def true_values(self, vectors):
        return self.truth[np.ravel_multi_index(np.asarray(vectors).T, self.space.sizes)].astype(float)

    def noiseless_curve(self, vector):
        epochs = np.arange(1, self.epochs + 1)
        return self._predict(np.repeat(np.asarray(vector)[None], self.epochs, 0), epochs).astype(float)


def count_weights(values):
    """Return the approximate number of weights of LCBench's networks, whose layers narrow from `max_units`."""
    num_inputs = 50  # depends on the data set; the same for all candidates
    units, layers = values["max_units"], values["num_layers"]
    return units * num_inputs + (layers - 1) * units**2 / 2


class TableTask(Task):
    """NAS-Bench-Macro: eight layers with three choices each; the mean of three measured accuracies.

    Args:
        file: the benchmark's JSON file.
        noise: see `Task`.
    """

    def __init__(self, file, noise=0.0):
        self.rows = read_table(file)
        space = Space("macro", tuple(Variable(f"layer{i}", (0, 1, 2), True) for i in range(8)))
        columns = {name: functools.partial(self._column, name) for name in ("flops", "params")}
        super().__init__("macro", space, 1, noise, {}, columns)

    @property
    def best(self):
        return max(row["mean_acc"] for row in self.rows.values())

    def _column(self, name, vectors):
        return np.array([self.rows["".join(map(str, vector))][name] for vector in vectors], float)

    def true_values(self, vectors):
        return self._column("mean_acc", vectors)

    def noiseless_curve(self, vector):
        return np.array([self.true_value(vector)])


def build_task(name, lcbench=None, table=None, cache=None, noise=None):
    """Build a task.

    Args:
        name: see the list above.
        lcbench: folder of LCBench's surrogate.
        table: NAS-Bench-Macro's JSON file.
        cache: folder for computed true accuracies; default: the cache folder of fbnetv3.
        noise: standard deviation of a measured accuracy; default: the task's.
    """
    match = re.fullmatch(r"(lcbench|macro|joint|mixed|continuous)(\d*)", name)
    if not match or (match[1] == "macro") != (match[2] == ""):
        raise UsageError(
            f"unknown task {name}: must be lcbench3945, macro, joint0 or mixed0, or another number"
        )
    kind, number = match.groups()
    options = {} if noise is None else {"noise": noise}
    if kind == "lcbench":
        require(lcbench, name, "--lcbench, the folder of the surrogate")
        return LCBenchTask(number, lcbench, cache or cache_dir(), **options)
    if kind == "macro":
        require(table, name, "--table, NAS-Bench-Macro's JSON file")
        return TableTask(table, **options)
    synthetic = {"joint": JointTask, "mixed": MixedTask, "continuous": ContinuousTask}
    return synthetic[kind](int(number), **options)


def require(path, name, description):
    if not path:
        raise UsageError(f"task {name} needs {description}")
