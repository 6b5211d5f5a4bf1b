"""The accuracy predictor (Sec. 3.1 to 3.3): an ensemble of pretrained networks (Fig. 3) and a Gaussian process.

Each network leaves out some of the trials. The prediction is a weighted sum of components: the networks that see
recipes as the paper's does, those that see them scaled up, and the Gaussian process. The weights are fitted to
predictions of trials on which a component was not trained.
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

from fbnetv3.errors import FieldError, UsageError
from fbnetv3.nars.predictor.accuracy_transform import AccuracyTransform
from fbnetv3.nars.predictor.ensemble import EnsembleNetwork, train_members
from fbnetv3.nars.predictor.gaussian_process import GaussianProcess, ValuePrediction
from fbnetv3.nars.setting_fields import check_fields, integer_field, number_field
from fbnetv3.nars.space.search_space import Space
from fbnetv3.nars.space.variables import ARCHITECTURE, RECIPE
from fbnetv3.utils.checks import check_type
from fbnetv3.utils.random_state import seeded_torch

# Default weights of the components, without and with the Gaussian process; they count as much as this many trials
_NETWORK_WEIGHTS = np.array([0.5, 0.5])
_DEFAULT_WEIGHTS = np.array([0.25, 0.25, 0.5])
_DEFAULT_WEIGHTS_TRIALS = 4.0
MIN_TRIALS = 2
"""Number of trials that a predictor needs."""

# Share of the pool that validates pretraining
_HELD_OUT = 0.2


@dataclass(frozen=True)
class PredictorSettings:
    """Size and training of a predictor. The loss and the number of epochs on trials follow the paper.

    Attributes:
        members: number of networks in the ensemble, even and at least 4; each leaves out some of the trials.
        width: number of units in a hidden layer.
        pretrain_epochs: number of passes over the pool.
        pretrain_batch_size: number of candidates per step of pretraining.
        pretrain_lr: highest learning rate of pretraining.
        frozen_epochs: number of passes over the trials with the encoder frozen.
        finetune_epochs: number of passes over the trials that then train the whole network.
        min_batch_size: minimum number of trials per step.
        max_steps_per_epoch: maximum number of steps per pass over the trials; with more trials, the batches grow.
        lr: learning rate with the encoder frozen.
        finetune_lr: learning rate of the whole network, lower.
        weight_decay: weight decay of training on trials.
        gaussian_process: whether a Gaussian process is a component beside the networks.
    """

    members: int = integer_field(8, 4)
    width: int = integer_field(128, 1)
    pretrain_epochs: int = integer_field(30, 0)
    pretrain_batch_size: int = integer_field(256, 1)
    pretrain_lr: float = number_field(3e-3, 0)
    frozen_epochs: int = integer_field(50, 0)
    finetune_epochs: int = integer_field(50, 0)
    min_batch_size: int = integer_field(4, 1)
    max_steps_per_epoch: int = integer_field(8, 1)
    lr: float = number_field(3e-3, 0)
    finetune_lr: float = number_field(1e-3, 0)
    weight_decay: float = number_field(1e-4, 0)
    gaussian_process: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "predictor.")
        check_type(self.gaussian_process, "predictor.gaussian_process", bool, "true or false")
        if self.members % 2:
            raise FieldError(f"{self.members} must be even", "predictor.members")


@dataclass(frozen=True)
class PretrainingReport:
    """How well the proxy head predicts pretraining labels of held-out candidates."""

    names: tuple[str, ...]
    r2: tuple[float, ...]  # explained share of each label's variance
    labels: np.ndarray  # standardized labels of the held-out candidates, (N, labels)
    predicted: np.ndarray  # their predictions, the mean of the members, (N, labels)


class AccuracyPredictor:
    """Predicts the accuracy of candidates, or any other value.

    Args:
        space: the space of the candidates.
        settings: size and training.
        seed: random seed of initial weights and the order of examples.
        sign: -1 if lower values are better; large errors matter less among bad values.
    """

    def __init__(
        self,
        space: Space,
        settings: PredictorSettings = PredictorSettings(),
        seed: int = 0,
        sign: float = 1.0,
    ) -> None:
        self.space = space
        self.settings = settings
        self.seed = seed
        self.sign = sign
        self._process: GaussianProcess | None = None
        self._encoder: nn.Module | None = None
        self._network: EnsembleNetwork | None = None

    def pretrain(self, pool: np.ndarray, labels: Mapping[str, np.ndarray]) -> PretrainingReport:
        """Train encoder and proxy head on labels that need no training, such as MACs and parameters (Sec. 3.2).

        Args:
            pool: candidates, integers (N, variables). A fifth of them is held out for validation.
            labels: an array (N,) of labels for each name.

        Raises:
            UsageError: the pool is too small, or a label is not finite.
        """
        settings = self.settings
        arch, recipe = self._features(pool)
        targets = _standardize(labels, len(pool))
        num_held_out = round(_HELD_OUT * len(pool))
        num_train = len(pool) - num_held_out
        if num_held_out < 2:
            raise UsageError(f"pretraining: {len(pool)} candidates are too few to hold out some of them")
        with seeded_torch(self.seed * 2), _single_thread():
            train_rows, test_rows = torch.randperm(len(pool)).split([num_train, num_held_out])
            train_arch = arch[train_rows]
            train_targets = targets[train_rows]
            network = self._new_network(arch, recipe, targets.shape[1])

            def loss(rows: Tensor) -> Tensor:
                return F.mse_loss(network.proxy(network.encoder(train_arch[rows])), train_targets[rows])

            parameters = [*network.encoder.parameters(), *network.proxy.parameters()]
            train_members(
                parameters,
                loss,
                num_train,
                settings.members,
                settings.pretrain_epochs,
                settings.pretrain_batch_size,
                settings.pretrain_lr,
                0.0,
            )
        self._encoder = network.encoder.requires_grad_(False)

        # Validate the mean of the members on the held-out candidates
        test_targets = targets[test_rows]
        with torch.no_grad():
            predicted = network.proxy(self._encode(arch[test_rows])).mean(0)
        errors = (predicted - test_targets).square().mean(0)
        r2 = 1 - errors / test_targets.var(0).clamp_min(1e-12)
        return PretrainingReport(tuple(labels), tuple(r2.tolist()), test_targets.numpy(), predicted.numpy())

    def fit(self, candidates: np.ndarray, accuracies: np.ndarray) -> None:
        """Train on trials, from the pretrained encoder (Sec. 3.3).

        Args:
            candidates: candidates, integers (N, variables); at least two.
            accuracies: their accuracies, (N,).

        Raises:
            UsageError: the numbers of candidates and accuracies differ or are too small, or an accuracy is not finite.
        """
        accuracies = np.asarray(accuracies, np.float64)
        num_trials = len(accuracies)
        if len(candidates) != num_trials or num_trials < MIN_TRIALS or not np.isfinite(accuracies).all():
            counts = f"{num_trials} accuracies for {len(candidates)} candidates"
            raise UsageError(f"got {counts}; pass one finite accuracy per candidate, at least {MIN_TRIALS}")
        self._transform = AccuracyTransform.fit(self.sign * accuracies)
        targets = self._transform.transform(self.sign * accuracies)
        with seeded_torch(self.seed * 2 + 1), _single_thread():
            arch, recipe = self._features(candidates)
            self._network, left_out = self._fit_network(arch, recipe, torch.from_numpy(targets).float())
        components = left_out.double().numpy()
        if self.settings.gaussian_process:
            self._process = GaussianProcess(self.space)
            self._process.fit(candidates, targets)
            components = np.concatenate([components, self._process.leave_one_out().mean[None]])
        # Weight the components by predictions of trials on which they were not trained
        default = _NETWORK_WEIGHTS if self._process is None else _DEFAULT_WEIGHTS
        self._weights = _fit_weights(components, targets, default)
        self._residual_std = float(np.std(targets - self._weights @ components))

    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        """Predict the accuracies of candidates, (N,)."""
        return self.predict(candidates).mean

    @torch.no_grad()
    def predict(self, candidates: np.ndarray) -> ValuePrediction:
        """Predict accuracies of candidates and their standard deviations, (N,) each.

        Without a Gaussian process, the deviation is that of trials on which a network was not trained.
        """
        if self._network is None:
            raise UsageError("the predictor has not been trained yet: call fit first")
        arch, recipe = self._features(candidates)
        with _single_thread():
            # The mean of each half of the members
            components = self._network(arch, recipe).unflatten(0, (2, -1)).mean(1).double().numpy()
        std = np.full(len(candidates), self._residual_std)
        if self._process is not None:
            prediction = self._process.predict(candidates)
            components = np.concatenate([components, prediction.mean[None]])
            std = prediction.std
        mean = self._weights @ components
        if self._process is not None:
            # Where the networks disagree with the process, neither is certain
            std = np.hypot(std, mean - components[-1])
        values = self._transform.inverse(mean)
        return ValuePrediction(self.sign * values, self._transform.inverse(mean + std) - values)

    def posterior_means(self, candidates: np.ndarray) -> np.ndarray:
        """Return the values of candidates among the trials, with the noise of their measurement averaged out, (N,).

        Unlike predictions, they differ from the measured values only by as much noise as the trials show.
        """
        if self._process is None:
            return self(candidates)
        return self.sign * self._transform.inverse(self._process.predict(candidates).mean)

    def _fit_network(self, arch: Tensor, recipe: Tensor, targets: Tensor) -> tuple[EnsembleNetwork, Tensor]:
        """Train every member on all trials but those that it leaves out.

        Return the network and, for each half of the members, the prediction of each trial by the member that has left
        it out, (2, trials).
        """
        settings = self.settings
        num_members = settings.members
        weight_decay = settings.weight_decay
        num_trials = len(targets)

        # In each half of the members, every trial is left out by exactly one
        left_out = torch.zeros(num_members, num_trials, dtype=torch.bool)
        for half in left_out.split(num_members // 2):
            for row, trials in zip(half, torch.randperm(num_trials).tensor_split(len(half)), strict=True):
                row[trials] = True

        # Members train on equally many trials, so that they fit into one tensor
        rows_by_member = [(~row).nonzero()[:, 0] for row in left_out]
        num_train = min(map(len, rows_by_member))
        train_rows = torch.stack([rows[:num_train] for rows in rows_by_member])
        batch_size = max(settings.min_batch_size, math.ceil(num_train / settings.max_steps_per_epoch))
        members = torch.arange(num_members)[:, None]

        def train(
            parameters: list[nn.Parameter], score: Callable[[Tensor], Tensor], epochs: int, lr: float
        ) -> None:
            def loss(rows: Tensor) -> Tensor:
                trials = train_rows[members, rows]
                return F.huber_loss(score(trials), targets[trials])

            train_members(parameters, loss, num_train, num_members, epochs, batch_size, lr, weight_decay)

        network = self._new_network(arch, recipe, 1)
        head = list(network.accuracy.parameters())
        epochs = settings.finetune_epochs
        lr = settings.finetune_lr
        if self._encoder is None:
            # Without pretraining, the whole network trains for the same total number of epochs
            epochs += settings.frozen_epochs
            lr = settings.lr
        else:
            # First, the accuracy head on top of the frozen encoder
            network.encoder.load_state_dict(self._encoder.state_dict())
            embedded = self._encode(arch)
            train(
                head,
                lambda rows: network.score(embedded[members, rows], recipe[rows]),
                settings.frozen_epochs,
                settings.lr,
            )
        # Then the whole network
        parameters = [*network.encoder.parameters(), *head]
        train(parameters, lambda rows: network(arch[rows], recipe[rows]), epochs, lr)
        with torch.no_grad():
            scores = network(arch, recipe)
        return network.eval(), (scores * left_out).unflatten(0, (2, -1)).sum(1)

    def _features(self, candidates: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return features of architectures and of recipes in [-1, 1], both float32 (N, features)."""
        arch = self.space.encode_features(candidates, ARCHITECTURE)
        recipe = self.space.encode_features(candidates, RECIPE)
        return torch.from_numpy(2 * arch - 1), torch.from_numpy(2 * recipe - 1)

    @torch.no_grad()
    def _encode(self, arch: Tensor) -> Tensor:
        """Embed architectures with the pretrained encoders, (members, N, width)."""
        assert self._encoder is not None
        return self._encoder(arch.expand(self.settings.members, -1, -1))

    def _new_network(self, arch: Tensor, recipe: Tensor, num_labels: int) -> EnsembleNetwork:
        """Return a randomly initialized network for these features."""
        sizes = (self.settings.members, self.settings.width, arch.shape[1], recipe.shape[1])
        return EnsembleNetwork(*sizes, num_labels)


@contextlib.contextmanager
def _single_thread() -> Iterator[None]:
    """Run torch on one thread within the block.

    Small matrices gain nothing from more threads and suffer where cores are busy, and results must not depend on the
    machine's number of cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit_weights(components: np.ndarray, targets: np.ndarray, default: np.ndarray) -> np.ndarray:
    """Fit weights of the components that are not negative, sum to at most 1, and are near the defaults for few trials.

    `components` are predictions, (components, N), of trials on which a component was not trained; `targets`, (N,), have
    mean 0.
    """
    # Least squares with pseudo-trials that pull the weights toward the defaults
    pull = math.sqrt(_DEFAULT_WEIGHTS_TRIALS * components.var(1).mean() + 1e-12)
    design = np.concatenate([components.T, pull * np.eye(len(components))])
    outputs = np.concatenate([targets, pull * default])
    weights, _ = nnls(design, outputs)
    if weights.sum() > 1:
        # One more row with a high weight holds the sum at 1
        high = 1e3 * math.sqrt(len(targets))
        design = np.concatenate([design, np.full((1, len(components)), high)])
        weights, _ = nnls(design, np.append(outputs, high))
    return weights


def _standardize(labels: Mapping[str, np.ndarray], count: int) -> Tensor:
    """Return labels side by side, each with mean 0 and deviation 1, float32 (count, labels)."""
    targets = np.stack([np.asarray(values, np.float64) for values in labels.values()], 1)
    if len(targets) != count or not np.isfinite(targets).all():
        raise UsageError(f"pretraining: each label must have {count} finite values")
    targets = (targets - targets.mean(0)) / np.maximum(targets.std(0), 1e-12)
    return torch.from_numpy(targets.astype(np.float32))
