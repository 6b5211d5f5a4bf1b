"""The accuracy predictor (Sec. 3.1 to 3.3, Fig. 3): an encoder of architectures, pretrained on free labels, two heads.

Several networks, which differ in their first weights and in the order of what they see, are trained side by side in one
set of tensors; the score is their mean.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fbnetv3.errors import UsageError
from fbnetv3.nars.space import ARCHITECTURE, RECIPE, Space


@dataclass(frozen=True)
class PredictorSettings:
    """Size and training of a predictor. The paper gives the epochs and the loss; the rest is chosen here.

    Attributes:
        members: networks in the ensemble.
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

    def __init__(self, members: int, width: int, arch_features: int, recipe_features: int, labels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            _Layer(members, arch_features, width), nn.SiLU(), _Layer(members, width, width), nn.SiLU()
        )
        self.proxy = _Layer(members, width, labels)
        self.accuracy = nn.Sequential(
            _Layer(members, width + recipe_features, width), nn.SiLU(), _Layer(members, width, 1)
        )

    def forward(self, arch: Tensor, recipe: Tensor) -> Tensor:
        """Architectures (members, N, features) and recipes to scores (members, N)."""
        return self.score(self.encoder(arch), recipe)

    def score(self, embedded: Tensor, recipe: Tensor) -> Tensor:
        """Embedded architectures (members, N, width) and recipes to scores (members, N)."""
        return self.accuracy(torch.cat([embedded, recipe], -1))[..., 0]


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
        self._pretrained: dict[str, Tensor] | None = None
        self._network: _Network | None = None
        self._mean = self._scale = 0.0

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
        self._pretrained = {key: value.detach().clone() for key, value in network.encoder.state_dict().items()}
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
        arch, recipe = self._features(candidates)
        self._mean, self._scale = float(accuracies.mean()), max(float(accuracies.std()), 1e-12)
        targets = torch.from_numpy(((accuracies - self._mean) / self._scale).astype(np.float32))
        s, count = self.settings, len(targets)
        batch = max(s.batch, -(-count // s.steps))
        member = torch.arange(s.members)[:, None]
        with self._chance(1):
            network = self._new(1)
            if self._pretrained is not None:
                network.encoder.load_state_dict(self._pretrained)

            def loss(rows: Tensor) -> Tensor:
                return F.huber_loss(network(arch[rows], recipe[rows]), targets[rows])

            heads, epochs, lr = list(network.accuracy.parameters()), s.tuned_epochs, s.tuned_lr
            if self._pretrained is not None:
                with torch.no_grad():
                    embedded = network.encoder(arch.expand(s.members, -1, -1))

                def loss_of_head(rows: Tensor) -> Tensor:
                    return F.huber_loss(network.score(embedded[member, rows], recipe[rows]), targets[rows])

                _fit(heads, loss_of_head, count, s.members, s.frozen_epochs, batch, s.lr, s.weight_decay)
            else:
                epochs, lr = epochs + s.frozen_epochs, s.lr
            everything = [*network.encoder.parameters(), *heads]
            _fit(everything, loss, count, s.members, epochs, batch, lr, s.weight_decay)
        self._network = network.eval()

    @torch.no_grad()
    def members(self, candidates: np.ndarray) -> np.ndarray:
        """The score that each member gives, (members, N).

        Raises:
            UsageError: before `fit`.
        """
        if self._network is None:
            raise UsageError("the predictor has not been trained yet")
        arch, recipe = (part.expand(self.settings.members, -1, -1) for part in self._features(candidates))
        with _one_thread():
            scores = self._network(arch, recipe)
        return scores.numpy().astype(np.float64) * self._scale + self._mean

    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        """The predicted accuracy of each candidate, (N,)."""
        return self.members(candidates).mean(0)

    def _features(self, candidates: np.ndarray) -> tuple[Tensor, Tensor]:
        return tuple(torch.from_numpy(2 * self.space.encode(candidates, part) - 1) for part in (ARCHITECTURE, RECIPE))

    def _new(self, labels: int) -> _Network:
        sizes = [
            self.space.encode(np.zeros((0, len(self.space)), np.int64), p).shape[1] for p in (ARCHITECTURE, RECIPE)
        ]
        return _Network(self.settings.members, self.settings.width, *sizes, labels)

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
