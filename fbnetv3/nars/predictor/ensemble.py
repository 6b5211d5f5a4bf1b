"""Ensembles of predictor networks (Fig. 3), trained side by side: all members share each tensor.

Tensors are (members, N, features).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


class EnsembleLinear(nn.Module):
    """A linear layer of every member: (members, N, inputs) to (members, N, outputs)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(max(1, inputs))
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleNetwork(nn.Module):
    """Architecture encoder, proxy head and accuracy head of every member (Fig. 3).

    The second half of the members scales recipes up: otherwise the few numbers of a recipe would hardly matter next to
    the encoder's many units. The number of members is even.
    """

    recipe_gains: Tensor

    def __init__(
        self, members: int, width: int, arch_features: int, recipe_features: int, num_labels: int
    ) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            EnsembleLinear(members, arch_features, width),
            nn.SiLU(),
            EnsembleLinear(members, width, width),
            nn.SiLU(),
        )
        self.proxy = EnsembleLinear(members, width, num_labels)
        self.accuracy = nn.Sequential(
            EnsembleLinear(members, width + recipe_features, width),
            nn.SiLU(),
            EnsembleLinear(members, width, 1),
        )
        # With this gain, a recipe contributes as much to the accuracy head's input as an architecture
        high_gain = math.sqrt(width / max(1, recipe_features))
        gains = torch.tensor([1.0, high_gain]).repeat_interleave(members // 2)
        self.register_buffer("recipe_gains", gains[:, None, None], persistent=False)

    def forward(self, arch: Tensor, recipe: Tensor) -> Tensor:
        """Score candidates, (members, N), from features of shape (N, features) or (members, N, features)."""
        members = len(self.recipe_gains)
        return self.score(self.encoder(arch.expand(members, -1, -1)), recipe.expand(members, -1, -1))

    def score(self, embedded: Tensor, recipe: Tensor) -> Tensor:
        """Score candidates, (members, N), from embedded architectures, (members, N, width), and recipes."""
        return self.accuracy(torch.cat([embedded, self.recipe_gains * recipe], -1))[..., 0]


def train_members(
    parameters: list[nn.Parameter],
    loss_function: Callable[[Tensor], Tensor],
    num_examples: int,
    members: int,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
) -> None:
    """Train all members, each of which sees the examples in its own order.

    `loss_function` maps indices of examples, (members, batch), to the mean loss over both dimensions. The learning rate
    rises to `lr` and falls again in one cycle.
    """
    batch_size = min(batch_size, num_examples)
    steps = num_examples // batch_size
    # Fused: with small batches, starting many small operations would take most of the time
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(1, epochs * steps))
    for _ in range(epochs):
        orders = torch.rand(members, num_examples).argsort(1)
        for rows in orders[:, : steps * batch_size].split(batch_size, 1):
            optimizer.zero_grad(set_to_none=True)
            # The sum over members, so that each has the gradient of its own mean loss
            (loss_function(rows) * members).backward()
            optimizer.step()
            schedule.step()
