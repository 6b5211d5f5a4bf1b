"""How many measured accuracies pretraining on free labels saves (Sec. 3.2, Fig. 4 e).

The accuracy predictor is trained on n random candidates with and without pretraining, many times; what counts is the
mean squared error on candidates that it has not seen. The side without pretraining has the same network, as many
epochs, and at each n whichever of three learning rates is best for it on those very candidates. The ratio is how many
labels it needs, by its mean curve over log n, for the error that the pretrained one has at n.

The predictor is a sum of networks and a Gaussian process, which needs few labels without any pretraining; so the same
is shown of the networks alone, which are the paper's predictor, and of the whole against these.

Two targets: a table of measured networks (NAS-Bench-Macro's JSON file, https://github.com/xiusu/NAS-Bench-Macro), and
Table 2's joint space with an accuracy that is made up below. Free labels are the paper's, MACs and parameters; rich
ones; and with --naswot the table's networks have a score of untrained networks too (Mellor et al. 2021, NASWOT).

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
from fbnetv3.nars.evaluators.evaluator_registry import read_table
from fbnetv3.nars.predictor.accuracy_predictor import Predictor, PredictorSettings
from fbnetv3.nars.predictor.architecture_statistics import free_labels
from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.sampling import sample_pool
from fbnetv3.nars.space.search_space import Space, Variable, load_space

PLAIN_RATES = (1e-3, 3e-3, 1e-2)
# NAS-Bench-Macro's layers: channels in and out, stride; stages by the size of what comes out.
CHANNELS, STRIDES = (32, 64, 64, 128, 128, 128, 256, 256, 256), (2, 1, 2, 1, 1, 2, 1, 1)
STAGES = (slice(0, 2), slice(2, 5), slice(5, 8))
IMAGES, PIXELS = 16, 16  # of NASWOT


class Table:
    """NAS-Bench-Macro: eight layers, each identity, a small or a large inverted residual; their mean accuracy."""

    name = "NAS-Bench-Macro"

    def __init__(self, file, naswot):
        rows = read_table(file)
        space = Space("macro", tuple(Variable(f"layer{i}", (0, 1, 2), True) for i in range(8)))
        self.candidates = np.array(sorted([int(c) for c in key] for key in rows))
        ordered = [rows["".join(map(str, row))] for row in self.candidates]
        self.accuracies = np.array([row["mean_acc"] for row in ordered])
        place = {row.tobytes(): i for i, row in enumerate(self.candidates)}

        def column(values):
            return lambda candidates: values[[place[row.tobytes()] for row in candidates]]

        known = {name: np.array([row[name] for row in ordered], float) for name in ("flops", "params")}
        self.pool, self.space = self.candidates, space
        self.constraints = Constraints(space, columns={name: column(v) for name, v in known.items()})
        self.labels = {"MACs and parameters": free_labels(self.constraints, self.pool)}
        rich = free_labels(self.constraints, self.pool, "rich") | of_stages(self.candidates, known)
        self.labels["rich"] = rich
        if naswot:
            scores = naswot_scores()
            found = {"naswot": np.array([scores["".join(map(str, row))] for row in self.candidates])}
            self.labels["rich and NASWOT"] = rich | found

    def draw(self, rng):
        """Candidates in random order, and what is measured of each."""
        order = rng.permutation(len(self.candidates))
        return self.candidates[order], self.accuracies[order]


def of_stages(candidates, known):
    """Costs and layers of each stage; the table's costs are sums over layers, so that a fit gives each layer's."""
    chosen = candidates[:, :, None] == np.arange(1, 3)
    design = np.c_[np.ones(len(candidates)), chosen.reshape(len(candidates), -1)]
    found = {}
    for name, values in known.items():
        weights = np.linalg.lstsq(design, values, rcond=None)[0]
        assert np.abs(design @ weights - values).max() < 1, f"{name} is no sum over layers"
        costs = (chosen * weights[1:].reshape(8, 2)).sum(2)
        found |= {f"stage {i + 1} {name}": costs[:, stage].sum(1) for i, stage in enumerate(STAGES)}
    blocks = {f"stage {i + 1} blocks": (candidates[:, stage] > 0).sum(1) for i, stage in enumerate(STAGES)}
    found |= blocks | {"blocks": (candidates > 0).sum(1)}
    return found | {
        f"log {name}": np.log(values - values.min() + 0.1 * np.ptp(values)) for name, values in found.items()
    }


@torch.no_grad()
def naswot_scores(seed=0):
    """NASWOT of all 6561 networks, which share random weights, so that a layer runs once for all that begin alike.

    The logarithm of the determinant of how many units of the activations agree between random images; as in the
    published score, a unit is on where the input of the activation is above 0.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = {}

    def weight(out, into, kernel):
        scale = (2 / (into * kernel**2)) ** 0.5
        return torch.randn(out, into, kernel, kernel, generator=generator) * scale

    def norm(x):
        return F.batch_norm(x, None, None, training=True)

    def agreement(x):
        on = (x > 0).flatten(1).float()
        return (on @ on.T + (1 - on) @ (1 - on).T).double()

    def layer(number, kind):
        into, out, stride = *CHANNELS[number : number + 2], STRIDES[number]
        if kind == 0:
            shortcut = weight(out, into, 1) if into != out else None
            return lambda x: (x if shortcut is None else norm(F.conv2d(x, shortcut, stride=stride)), 0)
        expansion, kernel = ((3, 3), (6, 5))[kind - 1]
        mid = into * expansion
        first, depthwise, last = weight(mid, into, 1), weight(mid, 1, kernel), weight(out, mid, 1)

        def run(x):
            y = norm(F.conv2d(x, first))
            z = norm(F.conv2d(F.relu6(y), depthwise, stride=stride, padding=kernel // 2, groups=mid))
            found = norm(F.conv2d(F.relu6(z), last))
            return (found + x if into == out else found), agreement(y) + agreement(z)

        return run

    layers = [[layer(number, kind) for kind in range(3)] for number in range(8)]

    def visit(x, kernel, key):
        if len(key) == 8:
            scores[key] = float(torch.linalg.slogdet(kernel)[1])
            return
        for kind in range(3):
            y, more = layers[len(key)][kind](x)
            visit(y, kernel + more, key + str(kind))

    stem = weight(32, 3, 3)
    x = norm(F.conv2d(torch.randn(IMAGES, 3, PIXELS, PIXELS, generator=generator), stem, padding=1))
    visit(F.relu6(x), agreement(x), "")
    return scores


class Synthetic:
    """Table 2's joint space between 400 and 800 M MACs, with a smooth accuracy that is made up, and noise of 0.15.

    It grows with the logarithms of MACs and parameters and with depth at the right places; each variable of the
    architecture has an effect of its own, with diminishing returns, and some pairs work together, none of which the
    free labels tell. The best learning rate falls with depth, and the best regularisation rises with parameters.

    Args:
        seed: of effects and noise; another seed is another accuracy.
    """

    name = "Table 2, made up"

    def __init__(self, seed=0, pool=20_000):
        self.space = load_space(configs_folder() / "nars" / "spaces" / "fbnetv3.yaml")
        self.constraints = Constraints(self.space, [Constraint("macs", 4e8, 8e8)])
        rng = np.random.default_rng(seed)
        self.arch = self.space.columns_of("architecture")
        self.names = [variable.name for variable in self.space.variables]
        self.weights, self.shapes = rng.gamma(2.0, 0.25, len(self.space)), rng.uniform(0.6, 4.0, len(self.space))
        self.weights[self.names.index("s6_kernel")] = 0
        pairs = [rng.choice(self.arch, 2, replace=False) for _ in range(12)]
        self.pairs = [(*pair, rng.normal(0, 0.4)) for pair in pairs]
        self.pool = sample_pool(self.constraints, pool) if pool else None
        if pool:
            kinds = {"MACs and parameters": "paper", "rich": "rich"}
            self.labels = {name: free_labels(self.constraints, self.pool, which) for name, which in kinds.items()}

    def truth(self, candidates):
        """The accuracy without noise, (N,)."""
        x = candidates / np.maximum(self.space.sizes - 1, 1)
        value = dict(zip(self.names, x.T, strict=True))
        costs = self.constraints.values(candidates, "macs", "params")
        size = np.log(costs["params"] / 8e6)
        total = 1.5 * np.log(costs["macs"] / 6e8) + size
        total += (self.weights * (1 - np.exp(-self.shapes * x)))[:, self.arch].sum(1)
        total += sum(weight * (x[:, i] - 0.5) * (x[:, j] - 0.5) for i, j, weight in self.pairs)
        depth = np.mean([value[name] for name in self.names if name.endswith("repeat")], 0)
        total -= 3 * (value["lr"] - (0.9 - 0.7 * depth)) ** 2
        strength = (value["drop_rate"] + value["drop_path_rate"] + value["mixup"]) / 3
        total -= 4 * (strength - 0.5 - 0.5 * size) ** 2 + (value["weight_decay"] - 0.5) ** 2
        return 70 + total + 0.4 * value["optimizer"] * (value["lr"] > 0.4) - 0.3 * value["ema"]

    def draw(self, rng, count=3000):
        """Some candidates of the pool in random order, and what is measured of each."""
        chosen = self.pool[rng.permutation(len(self.pool))[:count]]
        return chosen, self.truth(chosen) + rng.normal(0, 0.15, count)


# What is compared: the weights of the predictor's parts, None for those that it chooses.
KINDS = {"": None, "networks alone, ": np.array([1.0, 0.0, 0.0])}


def errors(predictor, candidates, accuracies, n):
    """Mean squared errors on what is not among the first n, after training on these; of each kind."""
    predictor.fit(candidates[:n], accuracies[:n])
    chosen, found = predictor._weights, []
    for weights in KINDS.values():
        predictor._weights = chosen if weights is None else weights
        found.append(float(np.mean((predictor(candidates[n:]) - accuracies[n:]) ** 2)))
    return found


def compare(target, sizes, seeds, settings):
    """Errors of each side by kind, seed and size; prints the curves and the ratios."""
    shape = (seeds, len(sizes), len(KINDS))
    found = {name: np.zeros(shape) for name in target.labels}
    plain = np.zeros((len(PLAIN_RATES), *shape))
    pretrained, start = {}, time.time()
    for name, labels in target.labels.items():
        pretrained[name] = Predictor(target.space, settings)
        report = pretrained[name].pretrain(target.pool, labels)
        print(f"{name}: {len(labels)} labels, R2 on held-out candidates at least {min(report.r2):.3f}", flush=True)
    for seed in range(seeds):
        candidates, accuracies = target.draw(np.random.default_rng(seed))
        for k, n in enumerate(sizes):
            for j, lr in enumerate(PLAIN_RATES):
                predictor = Predictor(target.space, replace(settings, lr=lr), seed)
                plain[j, seed, k] = errors(predictor, candidates, accuracies, n)
            for name, predictor in pretrained.items():
                predictor.seed = seed
                found[name][seed, k] = errors(predictor, candidates, accuracies, n)
        print(f"{target.name}: seed {seed}, {time.time() - start:.0f} s", file=sys.stderr, flush=True)
    rows, alone = [], None
    for kind in reversed(range(len(KINDS))):  # the networks first
        best = plain[..., kind].mean(1).argmin(0)
        unaided = np.stack([plain[j, :, k, kind] for k, j in enumerate(best)], 1)
        alone = unaided.mean(0) if alone is None else alone
        for name, values in {"not pretrained": unaided, **{key: v[..., kind] for key, v in found.items()}}.items():
            cells = []
            for mean, spread, n in zip(values.mean(0), values.std(0, ddof=1) / seeds**0.5, sizes, strict=True):
                against = [] if values is unaided else [needed(mean, sizes, unaided.mean(0), n)]
                against += [needed(mean, sizes, alone, n)] if kind == 0 else []
                cells.append(f"{mean:.3f} ± {spread:.3f}" + (f" ({', '.join(against)})" if against else ""))
            rows.append([list(KINDS)[kind] + name, *cells])
    print(
        f"\n{target.name}: mean squared error, {seeds} seeds. In brackets: labels needed without pretraining, over n;"
    )
    print("of the whole predictor also those that the networks alone need\n")
    print(
        tabulate(rows, ["", *(f"n = {n}" for n in sizes)], tablefmt="github", disable_numparse=True), "\n", flush=True
    )


def needed(value, sizes, curve, n):
    """How many times as many labels the plain side needs for an error, as text."""
    falling = np.minimum.accumulate(curve)
    if value < falling[-1]:
        return f"> {sizes[-1] / n:.1f} x"
    if value > falling[0]:
        return f"< {sizes[0] / n:.1f} x"
    return f"{np.exp(np.interp(-value, -falling, np.log(sizes))) / n:.1f} x"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", metavar="FILE", help="NAS-Bench-Macro's JSON file")
    parser.add_argument("--naswot", action="store_true", help="also with NASWOT of the table's networks")
    parser.add_argument("--synthetic", action="store_true", help="the joint space of Table 2")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20, 40, 80, 160, 320])
    args = parser.parse_args()
    if not args.table and not args.synthetic:
        parser.error("nothing to do: --table FILE or --synthetic")
    targets = [Table(args.table, args.naswot)] if args.table else []
    targets += [Synthetic()] if args.synthetic else []
    for target in targets:
        compare(target, sorted(args.sizes), args.seeds, PredictorSettings())


if __name__ == "__main__":
    main()
