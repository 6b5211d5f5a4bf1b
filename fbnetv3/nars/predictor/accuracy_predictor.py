"""The accuracy predictor (Sec. 3.1 to 3.3): an ensemble of pretrained networks (Fig. 3) and a Gaussian process.

Each network leaves out some of the trials. The prediction is a weighted sum of three parts: the networks that see
recipes as the paper's does, those that see them scaled up, and the Gaussian process on the candidates' features and
their embeddings. The weights are fitted to predictions of trials that a part was not trained on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn
from torch.nn import functional as F

from fbnetv3.errors import FieldError, UsageError
from fbnetv3.nars.predictor.accuracy_transform import AccuracyTransform
from fbnetv3.nars.predictor.ensemble import EnsembleNetwork, train_members
from fbnetv3.nars.predictor.gaussian_process import FeatureGroups, GaussianProcess
from fbnetv3.nars.setting_fields import check_fields, integer_field, number_field
from fbnetv3.nars.space.search_space import ARCHITECTURE, RECIPE, Space
from fbnetv3.utils.random_state import torch_seed

# Default weights of the parts, and the number of trials that would pull as strongly as these
_DEFAULT_WEIGHTS = np.array([0.25, 0.25, 0.5])
_DEFAULT_WEIGHTS_TRIALS = 4.0


@dataclass(frozen=True)
class PredictorSettings:
    """Size and training of a predictor. Epochs of training on trials and the loss are the paper's.

    Attributes:
        members: networks of the ensemble, an even number of at least 4; each leaves out some of the trials.
        width: units of a hidden layer.
        pretrain_epochs: passes over the pool.
        pretrain_batch: candidates per step of pretraining.
        pretrain_lr: highest learning rate of pretraining.
        frozen_epochs: passes over the trials with the encoder frozen.
        finetune_epochs: passes over the trials that train the whole network.
        batch: trials per step, at least.
        max_steps: steps of a pass over the trials, at most; more trials make larger batches.
        lr: learning rate with the encoder frozen.
        finetune_lr: lower learning rate of the whole network.
        weight_decay: weight decay of training on trials.
    """

    members: int = integer_field(8, 4)
    width: int = integer_field(128, 1)
    pretrain_epochs: int = integer_field(30, 0)
    pretrain_batch: int = integer_field(256, 1)
    pretrain_lr: float = number_field(3e-3, 0)
    frozen_epochs: int = integer_field(50, 0)
    finetune_epochs: int = integer_field(50, 0)
    batch: int = integer_field(4, 1)
    max_steps: int = integer_field(8, 1)
    lr: float = number_field(3e-3, 0)
    finetune_lr: float = number_field(1e-3, 0)
    weight_decay: float = number_field(1e-4, 0)

    def __post_init__(self) -> None:
        check_fields(self, "predictor.")
        if self.members % 2:
            raise FieldError(f"{self.members} must be even", "predictor.members")


@dataclass(frozen=True)
class PretrainReport:
    """How well the proxy head predicts pretraining labels of held-out candidates.

    Attributes:
        names: names of the labels.
        r2: explained share of each label's variance.
        labels: standardized labels of the held-out candidates, (N, labels).
        predicted: their predictions, the mean of the members, (N, labels).
    """

    names: tuple[str, ...]
    r2: tuple[float, ...]
    labels: np.ndarray
    predicted: np.ndarray


class AccuracyPredictor:
    """Predicts the accuracy of candidates.

    Args:
        space: the candidates' space.
        settings: size and training.
        seed: random seed of initial weights and orders of examples.
    """

    def __init__(self, space: Space, settings: PredictorSettings = PredictorSettings(), seed: int = 0) -> None:
        self.space = space
        self.settings = settings
        self.seed = seed
        self._encoder: nn.Module | None = None
        self._network: EnsembleNetwork | None = None

    def pretrain(self, pool: np.ndarray, labels: Mapping[str, np.ndarray], held_out: float = 0.2) -> PretrainReport:
        """Train encoder and proxy head on labels that need no training, such as MACs and parameters (Sec. 3.2).

        Args:
            pool: candidates, integers (N, variables).
            labels: labels by name, (N,) each.
            held_out: share of the pool used for validation.

        Raises:
            UsageError: no architecture variables, too small a pool, or labels that are missing or not finite.
        """
        s = self.settings
        features, _ = self._features(pool)
        targets = _standardize(labels, len(pool))
        if not features.shape[1]:
            raise UsageError(f"pretraining: {self.space.name} has no architecture variables")
        # Hold out part of the pool
        num_held_out = round(held_out * len(pool))
        num_train = len(pool) - num_held_out
        if num_train < 2 or num_held_out < 2:
            raise UsageError(
                f"pretraining: a pool of {len(pool)} candidates with {held_out:.0%} held out is too small; "
                "at least 2 are needed in each part"
            )
        with self._seeded(0):
            train_rows, test_rows = torch.randperm(len(pool)).split([num_train, num_held_out])
            train_features = features[train_rows]
            train_targets = targets[train_rows]
            network = self._new_network(targets.shape[1])

            def loss(rows: Tensor) -> Tensor:
                return F.mse_loss(network.proxy(network.encoder(train_features[rows])), train_targets[rows])

            parameters = [*network.encoder.parameters(), *network.proxy.parameters()]
            train_members(
                parameters, loss, num_train, s.members, s.pretrain_epochs, s.pretrain_batch, s.pretrain_lr, 0.0
            )
        self._encoder = network.encoder.requires_grad_(False)

        # Validate the mean of the members on the held-out candidates
        test_targets = targets[test_rows]
        with torch.no_grad():
            predicted = network.proxy(self._encode(features[test_rows])).mean(0)
        unexplained = (predicted - test_targets).square().mean(0) / test_targets.var(0).clamp_min(1e-12)
        r2 = tuple((1 - unexplained).tolist())
        return PretrainReport(tuple(labels), r2, test_targets.numpy(), predicted.numpy())

    def fit(self, candidates: np.ndarray, accuracies: np.ndarray) -> None:
        """Train on trials, from the pretrained encoder (Sec. 3.3).

        Args:
            candidates: integers (N, variables).
            accuracies: (N,), higher is better.

        Raises:
            UsageError: fewer than two trials, or an accuracy that is not finite.
        """
        accuracies = np.asarray(accuracies, np.float64)
        if len(candidates) != len(accuracies) or len(accuracies) < 2 or not np.isfinite(accuracies).all():
            raise UsageError(
                f"got {len(accuracies)} accuracies for {len(candidates)} candidates; pass one finite accuracy per "
                "candidate, at least 2"
            )
        self._transform = AccuracyTransform.fit(accuracies)
        targets = torch.from_numpy(self._transform.transform(accuracies))
        with self._seeded(1):
            arch, recipe = self._features(candidates)
            network, network_predictions = self._fit_network(arch, recipe, targets.float())
            self._network = network
            self._process = GaussianProcess()
            process_predictions = self._process.fit(self._feature_groups(arch, recipe), targets)
        # Weight the parts by predictions of trials that they were not trained on
        parts = np.concatenate([network_predictions.double().numpy(), process_predictions.numpy()[None]])
        self._weights = _fit_weights(parts, targets.numpy())

    @torch.no_grad()
    def __call__(self, candidates: np.ndarray) -> np.ndarray:
        """Predict the accuracies of candidates, (N,).

        Raises:
            UsageError: the predictor has not been fitted.
        """
        if self._network is None:
            raise UsageError("the predictor has not been trained yet: call fit first")
        arch, recipe = self._features(candidates)
        members = self.settings.members
        with _single_thread():
            scores = self._network(arch.expand(members, -1, -1), recipe.expand(members, -1, -1))
            # The mean of each half of the members
            halves = scores.view(2, members // 2, -1).mean(1).double()
            process = self._process(self._feature_groups(arch, recipe))
        parts = torch.cat([halves, process[None]])
        return self._transform.inverse(self._weights @ parts.numpy())

    def _fit_network(self, arch: Tensor, recipe: Tensor, targets: Tensor) -> tuple[EnsembleNetwork, Tensor]:
        """Train every member on all trials but those that it leaves out.

        Returns:
            The network; and for each half of the members, the prediction of each trial by the member that has left
            it out, (2, trials).
        """
        s = self.settings
        num_trials = len(targets)

        # In each half of the members, every trial is left out by exactly one
        folds = s.members // 2
        left_out = torch.zeros(s.members, num_trials, dtype=torch.bool)
        for half in range(2):
            for fold, rows in enumerate(torch.randperm(num_trials).tensor_split(folds)):
                left_out[half * folds + fold, rows] = True

        # Members train on equally many trials, so that they fit into one tensor
        rows_by_member = [(~row).nonzero()[:, 0] for row in left_out]
        num_train = min(len(rows) for rows in rows_by_member)
        train_rows = torch.stack([rows[:num_train] for rows in rows_by_member])
        batch_size = max(s.batch, math.ceil(num_train / s.max_steps))
        member = torch.arange(s.members)[:, None]

        network = self._new_network(1)
        head = list(network.accuracy.parameters())
        epochs = s.finetune_epochs
        lr = s.finetune_lr
        if self._encoder is None:
            # Without pretraining, the whole network trains for as many epochs in all
            epochs += s.frozen_epochs
            lr = s.lr
        else:
            # First, the accuracy head on top of the frozen encoder
            network.encoder.load_state_dict(self._encoder.state_dict())
            embedded = self._encode(arch)

            def head_loss(rows: Tensor) -> Tensor:
                trials = train_rows[member, rows]
                return F.huber_loss(network.score(embedded[member, trials], recipe[trials]), targets[trials])

            train_members(head, head_loss, num_train, s.members, s.frozen_epochs, batch_size, s.lr, s.weight_decay)

        # Then the whole network
        def loss(rows: Tensor) -> Tensor:
            trials = train_rows[member, rows]
            return F.huber_loss(network(arch[trials], recipe[trials]), targets[trials])

        parameters = [*network.encoder.parameters(), *head]
        train_members(parameters, loss, num_train, s.members, epochs, batch_size, lr, s.weight_decay)

        with torch.no_grad():
            scores = network(arch.expand(s.members, -1, -1), recipe.expand(s.members, -1, -1))
        return network.eval(), (scores * left_out).view(2, folds, -1).sum(1)

    def _features(self, candidates: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return features of architectures and recipes in [-1, 1], float32 (N, features) each."""
        arch = self.space.features(candidates, ARCHITECTURE)
        recipe = self.space.features(candidates, RECIPE)
        return torch.from_numpy(2 * arch - 1), torch.from_numpy(2 * recipe - 1)

    def _feature_groups(self, arch: Tensor, recipe: Tensor) -> FeatureGroups:
        """Return the Gaussian process's input: features, and the embeddings of all members side by side, if any."""
        embedded = arch[:, :0]
        if self._encoder is not None:
            embedded = self._encode(arch).transpose(0, 1).flatten(1)
        return FeatureGroups(arch, recipe, embedded)

    @torch.no_grad()
    def _encode(self, arch: Tensor) -> Tensor:
        """Embed architectures with the pretrained encoders, (members, N, width)."""
        assert self._encoder is not None
        return self._encoder(arch.expand(self.settings.members, -1, -1))

    def _new_network(self, num_labels: int) -> EnsembleNetwork:
        """Return a randomly initialized network."""
        arch, recipe = self._features(np.zeros((0, len(self.space)), np.int64))
        return EnsembleNetwork(self.settings.members, self.settings.width, arch.shape[1], recipe.shape[1], num_labels)

    @contextlib.contextmanager
    def _seeded(self, stage: int) -> Iterator[None]:
        """Seed torch for pretraining, stage 0, or for training on trials, stage 1; and run on one thread."""
        with torch_seed(self.seed * 2 + stage), _single_thread():
            yield


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


def _fit_weights(parts: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Fit the weights of the parts: none negative, with a sum of at most 1, and close to the defaults for few trials.

    Args:
        parts: predictions that each part makes of trials that it was not trained on, (parts, N).
        targets: (N,), with mean 0.
    """
    # Least squares with pseudo-trials that pull the weights toward the defaults
    pull = math.sqrt(_DEFAULT_WEIGHTS_TRIALS * parts.var(1).mean() + 1e-12)
    design = np.concatenate([parts.T, pull * np.eye(len(parts))])
    outputs = np.concatenate([targets, pull * _DEFAULT_WEIGHTS])
    weights, _ = nnls(design, outputs)
    if weights.sum() > 1:
        # One more row with a high weight holds the sum at 1
        high = 1e3 * math.sqrt(len(targets))
        design = np.concatenate([design, np.full((1, len(parts)), high)])
        weights, _ = nnls(design, np.append(outputs, high))
    return weights


def _standardize(labels: Mapping[str, np.ndarray], count: int) -> Tensor:
    """Return labels side by side, each with mean 0 and deviation 1, float32 (count, labels)."""
    if not labels:
        raise UsageError("pretraining: labels is empty: pass at least one label")
    columns = []
    for name, values in labels.items():
        column = np.asarray(values)
        is_finite = column.dtype.kind in "biuf" and np.isfinite(column).all()
        if column.shape != (count,) or not is_finite:
            actual = f"{column.dtype} {column.shape}"
            raise UsageError(f"pretraining: label {name}: must be {count} finite numbers, not {actual}")
        columns.append(column.astype(np.float64))
    targets = np.stack(columns, 1)
    targets = (targets - targets.mean(0)) / np.maximum(targets.std(0), 1e-12)
    return torch.from_numpy(targets.astype(np.float32))
