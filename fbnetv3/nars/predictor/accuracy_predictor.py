"""The accuracy predictor (Sec. 3.1 to 3.3, Fig. 3): an encoder of architectures, pretrained on free labels, two heads.

Several such networks are trained side by side in one set of tensors. Each leaves out a part of the trials, so that it
shows what they can be trusted with: one half of them sees recipes as the paper does, the other sees them as strongly as
architectures. A Gaussian process on the same inputs and on what the pretrained encoders make of them stands beside
both. The score is their sum, with weights that fit the trials which each has not seen.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional as F

from fbnetv3.errors import UsageError
from fbnetv3.nars.predictor.accuracy_transform import Targets
from fbnetv3.nars.predictor.gaussian_process import GaussianProcess, Inputs
from fbnetv3.nars.space.search_space import ARCHITECTURE, RECIPE, Space

# Pseudo-trials by which the weights of the parts are held near equal shares where trials are few.
_EQUAL_SHARES = 4.0


@dataclass(frozen=True)
class PredictorSettings:
    """Size and training of a predictor. The paper gives the epochs and the loss; the rest is chosen here.

    Attributes:
        members: networks in the ensemble, an even number of at least 4; each leaves out a share of the trials.
        width: units of a hidden layer.
        pretrain_epochs: passes over the pool for the free labels.
        pretrain_batch: candidates a step of it.
        pretrain_lr: its highest learning rate.
        frozen_epochs: passes over the trials with the encoder frozen (50 in the paper).
        tuned_epochs: passes with all of it trained (50).
        batch: trials a step, at least.
        steps: most steps of a pass over the trials; many trials make larger batches.
        lr: learning rate while the encoder is frozen.
        tuned_lr: the reduced one after that.
        weight_decay: of both.
    """

    members: int = 8
    width: int = 128
    pretrain_epochs: int = 30
    pretrain_batch: int = 256
    pretrain_lr: float = 3e-3
    frozen_epochs: int = 50
    tuned_epochs: int = 50
    batch: int = 4
    steps: int = 8
    lr: float = 3e-3
    tuned_lr: float = 1e-3
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("members", "width", "pretrain_batch", "batch", "steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"predictor: {name} {getattr(self, name)} is less than 1")
        for name in ("pretrain_epochs", "frozen_epochs", "tuned_epochs"):
            if getattr(self, name) < 0:
                raise UsageError(f"predictor: {name} {getattr(self, name)} is less than 0")
        for name in ("pretrain_lr", "lr", "tuned_lr", "weight_decay"):
            if not 0 <= getattr(self, name) <= 10**6:
                raise UsageError(f"predictor: {name} {getattr(self, name)} is no number of at least 0 and at most 1e6")
        for name, most in (("members", 10**4), ("width", 10**5)):
            if getattr(self, name) > most:
                raise UsageError(f"predictor: {name} {getattr(self, name)} is more than {most:,}")
        if self.members < 4 or self.members % 2:
            raise UsageError(f"predictor: members {self.members} is not an even number of at least 4")


class _Layer(nn.Module):
    """A linear layer of every member: (members, N, inputs) to (members, N, outputs)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(max(1, inputs))
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class _Network(nn.Module):
    """Encoder and heads of every member (Fig. 3)."""

    gains: Tensor

    def __init__(self, members: int, width: int, arch_features: int, recipe_features: int, labels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            _Layer(members, arch_features, width), nn.SiLU(), _Layer(members, width, width), nn.SiLU()
        )
        self.proxy = _Layer(members, width, labels)
        self.accuracy = nn.Sequential(
            _Layer(members, width + recipe_features, width), nn.SiLU(), _Layer(members, width, 1)
        )
        # next to the encoder's units a few numbers of a recipe hardly count: half of the members see them as strongly
        strong = math.sqrt(width / max(1, recipe_features))
        gains = torch.tensor([1.0, strong]).repeat_interleave(members // 2)
        self.register_buffer("gains", gains[:, None, None], persistent=False)

    def forward(self, arch: Tensor, recipe: Tensor) -> Tensor:
        """Architectures (members, N, features) and recipes to scores (members, N)."""
        return self.score(self.encoder(arch), recipe)

    def score(self, embedded: Tensor, recipe: Tensor) -> Tensor:
        """Embedded architectures (members, N, width) and recipes to scores (members, N)."""
        return self.accuracy(torch.cat([embedded, self.gains * recipe], -1))[..., 0]


@dataclass(frozen=True)
class PretrainReport:
    """How well the proxy head predicts the free labels of candidates that it has not seen.

    Attributes:
        names: of the labels.
        r2: share of each label's variance that is explained, by the mean of the members.
        labels, predicted: of the held-out candidates, standardised, (N, labels).
    """

    names: tuple[str, ...]
    r2: tuple[float, ...]
    labels: np.ndarray
    predicted: np.ndarray


class Predictor:
    """Predicts the accuracy of candidates.

    Args:
        space: where they come from.
        settings: size and training.
        seed: of first weights and orders; the result depends on nothing else.
    """

    def __init__(self, space: Space, settings: PredictorSettings = PredictorSettings(), seed: int = 0) -> None:
        self.space, self.settings, self.seed = space, settings, seed
        self._encoder: nn.Module | None = None
        self._network: _Network | None = None

    def pretrain(self, pool: np.ndarray, labels: Mapping[str, np.ndarray], held_out: float = 0.2) -> PretrainReport:
        """Train encoder and proxy head on labels that cost nothing, such as MACs and parameters (Sec. 3.2).

        Args:
            pool: candidates, integers (N, variables).
            labels: by name, (N,) each.
            held_out: share of the pool to validate on.

        Raises:
            UsageError: the space has no architectures, there are no labels, or one is not a finite number each; fewer
                than two candidates to train or to validate on.
        """
        features, targets = self._features(pool)[0], _targets(labels, len(pool))
        if not features.shape[1]:
            raise UsageError(f"pretraining: {self.space.name} has no variables of the architecture")
        count = len(features) - round(held_out * len(features))
        if count < 2 or len(features) - count < 2:
            raise UsageError(f"pretraining: a pool of {len(features)}, {held_out:g} of it held out, is too small")
        s = self.settings
        with self._chance(0):
            order = torch.randperm(len(features))
            (seen, unseen), (wanted, truth) = (
                part[order].split([count, len(order) - count]) for part in (features, targets)
            )
            network = self._new(targets.shape[1])
            parts = [*network.encoder.parameters(), *network.proxy.parameters()]

            def loss(rows: Tensor) -> Tensor:
                return F.mse_loss(network.proxy(network.encoder(seen[rows])), wanted[rows])

            _fit(parts, loss, count, s.members, s.pretrain_epochs, s.pretrain_batch, s.pretrain_lr, 0.0)
        self._encoder = network.encoder.requires_grad_(False)
        with torch.no_grad():
            predicted = network.proxy(network.encoder(unseen.expand(s.members, -1, -1))).mean(0)
        error = (predicted - truth).square().mean(0) / truth.var(0).clamp_min(1e-12)
        return PretrainReport(tuple(labels), tuple((1 - error).tolist()), truth.numpy(), predicted.numpy())

    def fit(self, candidates: np.ndarray, accuracies: np.ndarray) -> None:
        """Train the accuracy head, then all of it, on what has been measured (Sec. 3.3).

        Args:
            candidates: integers (N, variables).
            accuracies: (N,), the higher the better.

        Raises:
            UsageError: fewer than two trials, or an accuracy that is not finite.
        """
        accuracies = np.asarray(accuracies, np.float64)
        if len(candidates) != len(accuracies) or len(accuracies) < 2 or not np.isfinite(accuracies).all():
            raise UsageError(f"{len(accuracies)} accuracies of {len(candidates)} candidates: at least 2 finite ones")
        self._targets = Targets.of(accuracies)
        targets = torch.from_numpy(self._targets.encode(accuracies))
        with self._chance(1):
            arch, recipe = self._features(candidates)
            self._network, unseen = self._fit_members(arch, recipe, targets.float())
            self._process = GaussianProcess()
            left_out = self._process.fit(self._inputs(arch, recipe), targets)
        parts = np.concatenate([unseen.double().numpy(), left_out.numpy()[None]])
        self._weights = _shares(parts, targets.numpy(), np.array([0.25, 0.25, 0.5]))

    def _fit_members(self, arch: Tensor, recipe: Tensor, targets: Tensor) -> tuple[_Network, Tensor]:
        """Train every member on all trials but its share.

        Returns:
            The network; and of each half, what is predicted of each trial by the member that has not seen it,
            (2, trials).
        """
        s, count, folds = self.settings, len(targets), self.settings.members // 2
        left_out = torch.zeros(s.members, count, dtype=torch.bool)
        for half in range(2):
            for fold, rows in enumerate(torch.randperm(count).tensor_split(folds)):
                left_out[half * folds + fold, rows] = True
        others = [(~row).nonzero()[:, 0] for row in left_out]
        count = min(map(len, others))
        kept = torch.stack([rows[:count] for rows in others])
        batch = max(s.batch, -(-count // s.steps))
        member = torch.arange(s.members)[:, None]
        network = self._new(1)
        if self._encoder is not None:
            network.encoder.load_state_dict(self._encoder.state_dict())

        def loss(rows: Tensor) -> Tensor:
            seen = kept[member, rows]
            return F.huber_loss(network(arch[seen], recipe[seen]), targets[seen])

        heads, epochs, lr = list(network.accuracy.parameters()), s.tuned_epochs, s.tuned_lr
        if self._encoder is not None:
            with torch.no_grad():
                embedded = network.encoder(arch.expand(s.members, -1, -1))

            def loss_of_head(rows: Tensor) -> Tensor:
                seen = kept[member, rows]
                return F.huber_loss(network.score(embedded[member, seen], recipe[seen]), targets[seen])

            _fit(heads, loss_of_head, count, s.members, s.frozen_epochs, batch, s.lr, s.weight_decay)
        else:
            epochs, lr = epochs + s.frozen_epochs, s.lr
        everything = [*network.encoder.parameters(), *heads]
        _fit(everything, loss, count, s.members, epochs, batch, lr, s.weight_decay)
        with torch.no_grad():
            scores = network(arch.expand(s.members, -1, -1), recipe.expand(s.members, -1, -1))
        return network.eval(), (scores * left_out).view(2, folds, -1).sum(1)

    @torch.no_grad()
    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        """The predicted accuracy of each candidate, (N,).

        Raises:
            UsageError: before `fit`.
        """
        if self._network is None:
            raise UsageError("the predictor has not been trained yet")
        arch, recipe = self._features(candidates)
        members = self.settings.members
        with _one_thread():
            scores = self._network(arch.expand(members, -1, -1), recipe.expand(members, -1, -1))
            halves = scores.view(2, members // 2, -1).mean(1).double()
            parts = torch.cat([halves, self._process(self._inputs(arch, recipe))[None]])
        return self._targets.decode(self._weights @ parts.numpy())

    def _inputs(self, arch: Tensor, recipe: Tensor) -> Inputs:
        """What the Gaussian process sees: features, and the pretrained encoders' outputs side by side if there are."""
        embedded = arch[:, :0]
        if self._encoder is not None:
            with torch.no_grad():
                encoded = self._encoder(arch.expand(self.settings.members, -1, -1))
            embedded = encoded.transpose(0, 1).flatten(1)
        return Inputs(arch, recipe, embedded)

    def _features(self, candidates: np.ndarray) -> tuple[Tensor, Tensor]:
        arch, recipe = (self.space.encode(candidates, part) for part in (ARCHITECTURE, RECIPE))
        return torch.from_numpy(2 * arch - 1), torch.from_numpy(2 * recipe - 1)

    def _new(self, labels: int) -> _Network:
        arch, recipe = (
            self.space.encode(np.zeros((0, len(self.space)), np.int64), p).shape[1] for p in (ARCHITECTURE, RECIPE)
        )
        return _Network(self.settings.members, self.settings.width, arch, recipe, labels)

    @contextlib.contextmanager
    def _chance(self, number: int) -> Iterator[None]:
        """Torch's randomness from our seed, on one thread; both as they were afterwards."""
        with torch.random.fork_rng(devices=[]), _one_thread():
            torch.manual_seed(self.seed * 2 + number)
            yield


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread: matrices as small as these gain nothing from more, and lose much where cores are busy.

    What comes out does not depend on the machine's cores then.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(
    parameters: list[nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    count: int,
    members: int,
    epochs: int,
    batch: int,
    lr: float,
    weight_decay: float,
) -> None:
    """Minimise a mean over members, each of which sees the examples in an order of its own.

    Args:
        parameters: what to train.
        loss: of examples by number, (members, N), the mean over both.
        count: how many examples there are.
        members: how many members.
        epochs: passes over them.
        batch: examples a step.
        lr: highest learning rate; one cycle up and down.
        weight_decay: decoupled from the gradient.
    """
    batch = min(batch, count)
    steps = count // batch
    # without the fused step, most of the time on small batches goes into starting small operations
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(1, epochs * steps))
    for _ in range(epochs):
        orders = torch.rand(members, count).argsort(1)
        for rows in orders[:, : steps * batch].split(batch, 1):
            optimizer.zero_grad(set_to_none=True)
            (loss(rows) * members).backward()
            optimizer.step()
            schedule.step()


def _shares(parts: np.ndarray, targets: np.ndarray, equal: np.ndarray) -> np.ndarray:
    """Weights of predictions, none negative and not more than 1 together, that fit targets best.

    Args:
        parts: what each predicts of trials that it has not seen, (parts, N).
        targets: (N,), with mean 0.
        equal: weights to which few trials are held.
    """
    pull = math.sqrt(_EQUAL_SHARES * parts.var(1).mean() + 1e-12)
    design = np.concatenate([parts.T, pull * np.eye(len(parts))])
    wanted = np.concatenate([targets, pull * equal])
    weights = nnls(design, wanted)[0]
    if weights.sum() > 1:  # a heavy row holds the sum to 1
        heavy = 1e3 * math.sqrt(len(targets))
        weights = nnls(np.concatenate([design, np.full((1, len(parts)), heavy)]), np.append(wanted, heavy))[0]
    return weights


def _targets(labels: Mapping[str, np.ndarray], count: int) -> Tensor:
    """Labels side by side, each with mean 0 and deviation 1, float32 (N, labels)."""
    if not labels:
        raise UsageError("pretraining: there are no labels")
    found = {name: np.asarray(values) for name, values in labels.items()}
    for name, values in found.items():
        is_number = values.dtype.kind in "biuf" and np.isfinite(values).all()
        if values.shape != (count,) or not is_number:
            raise UsageError(
                f"pretraining: label {name}: {count} finite numbers are wanted, not {values.dtype} {values.shape}"
            )
    targets = np.stack([values.astype(np.float64) for values in found.values()], 1)
    targets = (targets - targets.mean(0)) / np.maximum(targets.std(0), 1e-12)
    return torch.from_numpy(targets.astype(np.float32))
