"""How many measured accuracies pretraining on architecture statistics saves (Sec. 3.2, Fig. 4 e).

The accuracy predictor is trained on n random candidates with and without pretraining, many times; the metric is the
mean squared error on all other candidates. Without pretraining, the network and the number of epochs are the same, and
at each n the best of three learning rates is chosen on those other candidates, which favors the baseline. The ratio in
the table is the number of accuracies needed without pretraining, by interpolating its mean error over log n, to reach
the error with it.

The predictor combines networks with a Gaussian process, which needs few accuracies even without pretraining, so the
same is reported for the networks alone, which are the paper's predictor, and for the whole predictor relative to them.

There are two tasks: a table of measured networks (NAS-Bench-Macro's JSON file,
https://github.com/xiusu/NAS-Bench-Macro), and Table 2's joint space with a synthetic accuracy. Pretraining labels are
the paper's, MACs and parameters, or a richer set; with --naswot, the table's networks also have a score of untrained
networks (Mellor et al. 2021, NASWOT).

    benchmarks/predictor_efficiency.py --table nas-bench-macro_cifar10.json --naswot
    benchmarks/predictor_efficiency.py --synthetic
"""

import argparse
import sys
import time
from dataclasses import replace

import numpy as np
import torch
from tabulate import tabulate
from torch.nn import functional as F

from fbnetv3.arch import configs_folder
from fbnetv3.nars.evaluators.table_evaluator import read_table
from fbnetv3.nars.predictor.accuracy_predictor import AccuracyPredictor, PredictorSettings
from fbnetv3.nars.predictor.architecture_statistics import pretraining_labels
from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.sampling import sample_pool
from fbnetv3.nars.space.search_space import Space, load_space
from fbnetv3.nars.space.variables import Variable

LEARNING_RATES = (1e-3, 3e-3, 1e-2)  # without pretraining
# NAS-Bench-Macro's layers: channels between them, strides; and its stages, by output resolution
CHANNELS = (32, 64, 64, 128, 128, 128, 256, 256, 256)
STRIDES = (2, 1, 2, 1, 1, 2, 1, 1)
STAGES = (slice(0, 2), slice(2, 5), slice(5, 8))
NASWOT_IMAGES = 16
NASWOT_PIXELS = 16


class Table:
    """NAS-Bench-Macro: eight layers, each identity, a small or a large inverted residual; their mean accuracy."""

    name = "NAS-Bench-Macro"

    def __init__(self, file, naswot):
        rows = read_table(file)
        self.space = Space("macro", tuple(Variable(f"layer{i}", (0, 1, 2), True) for i in range(8)))
        self.candidates = np.array(sorted([int(c) for c in key] for key in rows))
        keys = ["".join(map(str, row)) for row in self.candidates]
        self.accuracies = np.array([rows[key]["mean_acc"] for key in keys])
        index = {row.tobytes(): i for i, row in enumerate(self.candidates)}

        def column(values):
            return lambda candidates: values[[index[row.tobytes()] for row in candidates]]

        costs = {name: np.array([rows[key][name] for key in keys], float) for name in ("flops", "params")}
        self.pool = self.candidates
        self.constraints = Constraints(
            self.space, columns={name: column(values) for name, values in costs.items()}
        )
        paper = pretraining_labels(self.constraints, self.pool)
        rich = pretraining_labels(self.constraints, self.pool, "rich") | stage_labels(
            self.candidates, costs
        )
        self.labels = {"MACs and parameters": paper, "rich": rich}
        if naswot:
            scores = naswot_scores()
            self.labels["rich and NASWOT"] = rich | {"naswot": np.array([scores[key] for key in keys])}

    def draw(self, rng):
        """Return the candidates in random order, and their measured accuracies."""
        order = rng.permutation(len(self.candidates))
        return self.candidates[order], self.accuracies[order]


def stage_labels(candidates, costs):
    """Return costs and number of layers of each stage; the cost of each layer comes from a fit to the table's sums."""
    layer_kinds = candidates[:, :, None] == np.arange(1, 3)
    design = np.c_[np.ones(len(candidates)), layer_kinds.reshape(len(candidates), -1)]
    labels = {}
    for name, values in costs.items():
        weights = np.linalg.lstsq(design, values, rcond=None)[0]
        assert np.abs(design @ weights - values).max() < 1, f"{name} is not a sum over layers"
        layer_costs = (layer_kinds * weights[1:].reshape(8, 2)).sum(2)
        labels |= {f"stage {i + 1} {name}": layer_costs[:, stage].sum(1) for i, stage in enumerate(STAGES)}
    labels |= {f"stage {i + 1} blocks": (candidates[:, stage] > 0).sum(1) for i, stage in enumerate(STAGES)}
    labels["blocks"] = (candidates > 0).sum(1)
    logarithms = {}
    for name, values in labels.items():
        logarithms[f"log {name}"] = np.log(values - values.min() + 0.1 * np.ptp(values))
    return labels | logarithms


def norm(x):
    """Normalize each channel over the batch."""
    return F.batch_norm(x, None, None, training=True)


def agreement(x):
    """Count the units in the same state for each pair of images."""
    on = (x > 0).flatten(1).float()
    return (on @ on.T + (1 - on) @ (1 - on).T).double()


@torch.no_grad()
def naswot_scores(seed=0):
    """Return the NASWOT scores of all 6561 networks by key.

    The score is the log-determinant of a kernel that counts, for each pair of random images, the activation units in
    the same state; as in the published code, a unit is on if its input is above 0. Networks share random weights, so
    a layer runs once for all networks with the same layers before it.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = {}

    def random_weight(out_channels, in_channels, kernel):
        scale = (2 / (in_channels * kernel**2)) ** 0.5
        return torch.randn(out_channels, in_channels, kernel, kernel, generator=generator) * scale

    def make_layer(number, kind):
        """Return a function from an input to the layer's output and its part of the kernel."""
        in_channels, out_channels = CHANNELS[number : number + 2]
        stride = STRIDES[number]
        if kind == 0:
            shortcut = random_weight(out_channels, in_channels, 1) if in_channels != out_channels else None
            return lambda x: (x if shortcut is None else norm(F.conv2d(x, shortcut, stride=stride)), 0)
        expansion, kernel = ((3, 3), (6, 5))[kind - 1]
        mid_channels = in_channels * expansion
        expand = random_weight(mid_channels, in_channels, 1)
        depthwise = random_weight(mid_channels, 1, kernel)
        project = random_weight(out_channels, mid_channels, 1)

        def inverted_residual(x):
            y = norm(F.conv2d(x, expand))
            z = norm(
                F.conv2d(F.relu6(y), depthwise, stride=stride, padding=kernel // 2, groups=mid_channels)
            )
            output = norm(F.conv2d(F.relu6(z), project))
            if in_channels == out_channels:
                output = output + x
            return output, agreement(y) + agreement(z)

        return inverted_residual

    layers = [[make_layer(number, kind) for kind in range(3)] for number in range(8)]

    def visit(x, kernel, key):
        """Score all networks that begin with the layers of `key`."""
        if len(key) == 8:
            scores[key] = float(torch.linalg.slogdet(kernel)[1])
            return
        for kind in range(3):
            output, layer_kernel = layers[len(key)][kind](x)
            visit(output, kernel + layer_kernel, key + str(kind))

    stem = random_weight(32, 3, 3)
    images = torch.randn(NASWOT_IMAGES, 3, NASWOT_PIXELS, NASWOT_PIXELS, generator=generator)
    x = norm(F.conv2d(images, stem, padding=1))
    visit(F.relu6(x), agreement(x), "")
    return scores


class Synthetic:
    """Table 2's joint space between 400 and 800 M MACs, with a smooth synthetic accuracy and noise of 0.15.

    The accuracy grows with the logarithms of MACs and parameters. Each variable of the architecture has its own effect
    with diminishing returns, and some pairs interact, none of which the pretraining labels reveal. The best learning
    rate falls with depth, and the best regularization rises with parameters.

    Args:
        seed: seed of the effects and the noise.
        pool: size of the pool; 0 for none.
    """

    name = "Table 2, synthetic"

    def __init__(self, seed=0, pool=20_000):
        self.space = load_space(configs_folder() / "nars" / "spaces" / "fbnetv3.yaml")
        self.constraints = Constraints(self.space, [Constraint("macs", 4e8, 8e8)])
        rng = np.random.default_rng(seed)
        self.arch = self.space.variable_indices("architecture")
        self.names = [variable.name for variable in self.space.variables]
        self.weights = rng.gamma(2.0, 0.25, len(self.space))
        self.shapes = rng.uniform(0.6, 4.0, len(self.space))
        self.weights[self.names.index("s6_kernel")] = 0
        pairs = [rng.choice(self.arch, 2, replace=False) for _ in range(12)]
        self.pairs = [(*pair, rng.normal(0, 0.4)) for pair in pairs]
        self.pool = sample_pool(self.constraints, pool) if pool else None
        if pool:
            self.labels = {
                "MACs and parameters": pretraining_labels(self.constraints, self.pool, "paper"),
                "rich": pretraining_labels(self.constraints, self.pool, "rich"),
            }

    def truth(self, candidates):
        """Return the accuracies without noise, (N,)."""
        x = candidates / np.maximum(self.space.sizes - 1, 1)
        value = dict(zip(self.names, x.T, strict=True))
        costs = self.constraints.column_values(candidates, "macs", "params")
        log_params = np.log(costs["params"] / 8e6)
        total = 1.5 * np.log(costs["macs"] / 6e8) + log_params
        # Effects of single variables and of pairs
        total += (self.weights * (1 - np.exp(-self.shapes * x)))[:, self.arch].sum(1)
        total += sum(weight * (x[:, i] - 0.5) * (x[:, j] - 0.5) for i, j, weight in self.pairs)
        # The recipe that suits the architecture
        depth = np.mean([value[name] for name in self.names if name.endswith("repeat")], 0)
        total -= 3 * (value["lr"] - (0.9 - 0.7 * depth)) ** 2
        regularization = (value["drop_rate"] + value["drop_path_rate"] + value["mixup"]) / 3
        total -= 4 * (regularization - 0.5 - 0.5 * log_params) ** 2 + (value["weight_decay"] - 0.5) ** 2
        return 70 + total + 0.4 * value["optimizer"] * (value["lr"] > 0.4) - 0.3 * value["ema"]

    def draw(self, rng, count=3000):
        """Return some candidates of the pool in random order, and their accuracies with noise."""
        chosen = self.pool[rng.permutation(len(self.pool))[:count]]
        return chosen, self.truth(chosen) + rng.normal(0, 0.15, count)


# Variants by prefix of their row: fixed weights of the predictor's parts, or None for the fitted ones
VARIANTS = {"": None, "networks alone, ": np.array([1.0, 0.0, 0.0])}


def errors_on_others(predictor, candidates, accuracies, n):
    """Train on the first n candidates and return each variant's mean squared error on the others."""
    predictor.fit(candidates[:n], accuracies[:n])
    fitted_weights = predictor._weights
    errors = []
    for weights in VARIANTS.values():
        predictor._weights = fitted_weights if weights is None else weights
        errors.append(float(np.mean((predictor(candidates[n:]) - accuracies[n:]) ** 2)))
    return errors


def compare(task, sizes, seeds, settings):
    """Measure the errors with and without pretraining; print them and the ratios."""
    shape = (seeds, len(sizes), len(VARIANTS))
    errors = {name: np.zeros(shape) for name in task.labels}
    errors_by_rate = np.zeros((len(LEARNING_RATES), *shape))
    pretrained = {}
    start = time.time()
    for name, labels in task.labels.items():
        pretrained[name] = AccuracyPredictor(task.space, settings)
        report = pretrained[name].pretrain(task.pool, labels)
        print(
            f"{name}: {len(labels)} labels, R2 on held-out candidates at least {min(report.r2):.3f}",
            flush=True,
        )
    for seed in range(seeds):
        candidates, accuracies = task.draw(np.random.default_rng(seed))
        for k, n in enumerate(sizes):
            for j, lr in enumerate(LEARNING_RATES):
                predictor = AccuracyPredictor(task.space, replace(settings, lr=lr), seed)
                errors_by_rate[j, seed, k] = errors_on_others(predictor, candidates, accuracies, n)
            for name, predictor in pretrained.items():
                predictor.seed = seed
                errors[name][seed, k] = errors_on_others(predictor, candidates, accuracies, n)
        print(f"{task.name}: seed {seed}, {time.time() - start:.0f} s", file=sys.stderr, flush=True)
    print(
        f"\n{task.name}: mean squared error, {seeds} seeds. In brackets: accuracies needed without pretraining, over n;"
        "\nfor the whole predictor, also those that the networks alone need\n"
    )
    headers = ["", *(f"n = {n}" for n in sizes)]
    rows = table_rows(errors, errors_by_rate, sizes)
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True), "\n", flush=True)


def table_rows(errors, errors_by_rate, sizes):
    """Format the errors, (seeds, sizes, variants) each, with the ratios of accuracies needed."""
    rows = []
    networks_alone = None
    for variant in reversed(range(len(VARIANTS))):  # the networks first
        # Without pretraining, with the best learning rate at each size
        best = errors_by_rate[..., variant].mean(1).argmin(0)
        baseline = np.stack([errors_by_rate[j, :, k, variant] for k, j in enumerate(best)], 1)
        if networks_alone is None:
            networks_alone = baseline.mean(0)
        pretrained = {name: values[..., variant] for name, values in errors.items()}
        for name, values in {"not pretrained": baseline, **pretrained}.items():
            cells = []
            standard_errors = values.std(0, ddof=1) / len(values) ** 0.5
            for mean, standard_error, n in zip(values.mean(0), standard_errors, sizes, strict=True):
                ratios = [] if values is baseline else [needed_ratio(mean, sizes, baseline.mean(0), n)]
                ratios += [needed_ratio(mean, sizes, networks_alone, n)] if variant == 0 else []
                cells.append(
                    f"{mean:.3f} ± {standard_error:.3f}" + (f" ({', '.join(ratios)})" if ratios else "")
                )
            rows.append([list(VARIANTS)[variant] + name, *cells])
    return rows


def needed_ratio(error, sizes, baseline, n):
    """Format the number of accuracies that the baseline needs for an error, as a multiple of n."""
    falling = np.minimum.accumulate(baseline)
    if error < falling[-1]:
        return f"> {sizes[-1] / n:.1f} x"
    if error > falling[0]:
        return f"< {sizes[0] / n:.1f} x"
    return f"{np.exp(np.interp(-error, -falling, np.log(sizes))) / n:.1f} x"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", metavar="FILE", help="NAS-Bench-Macro's JSON file")
    parser.add_argument(
        "--naswot", action="store_true", help="add NASWOT scores to the labels of the table's networks"
    )
    parser.add_argument("--synthetic", action="store_true", help="Table 2's joint space")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20, 40, 80, 160, 320])
    args = parser.parse_args()
    if not args.table and not args.synthetic:
        parser.error("nothing to do: --table FILE or --synthetic")
    tasks = [Table(args.table, args.naswot)] if args.table else []
    tasks += [Synthetic()] if args.synthetic else []
    for task in tasks:
        compare(task, sorted(args.sizes), args.seeds, PredictorSettings())


if __name__ == "__main__":
    main()
