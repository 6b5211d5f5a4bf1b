"""A trainer for a tiny network on a tiny dataset."""

import numpy as np
import torch
from torch import nn

from fbnetv3.data import Preprocessing, build_loader
from fbnetv3.data.datasets import ArrayDataset
from fbnetv3.training import Trainer
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.losses import supervised_objective
from fbnetv3.training.optimizers import build_sgd
from fbnetv3.training.run_state.checkpoints import CLASSIFIER_KEYS
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.training.schedules import build_schedule
from fbnetv3.training.training_hooks import CheckpointHook

CPU = torch.device("cpu")
EMPTY_STATE = dict.fromkeys(CLASSIFIER_KEYS)


def make_trainer(
    hooks=(), epochs=4, lr=0.5, seed=0, dropout=0.3, ema=None, fused=False, device=CPU, **arguments
):
    """Build the trainer of a linear network that learns whether an image is dark or bright."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 64)
    images = (rng.integers(0, 100, (64, 4, 4)) + 120 * targets[:, None, None]).astype(np.uint8)
    dataset = ArrayDataset("bright", images, targets, ["dark", "bright"])
    transform = Preprocessing(4, 4, (0.5,), (0.5,)).transform()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(16, 2)).to(device)
    loader = build_loader(dataset, transform, batch_size=16, training=True, seed=seed)
    return Trainer(
        model,
        supervised_objective,
        build_sgd(model.parameters(), lr, momentum=0.9, nesterov=True, fused=fused),
        build_schedule("cosine", epochs),
        loader,
        lr=lr,
        epochs=epochs,
        device=device,
        channels_last=False,
        ema=ModelEMA(model, ema) if ema is not None else None,
        hooks=hooks,
        **arguments,
    )


def make_checkpointing(folder, keep=3, epochs=1, steps=0):
    """Create the run folder `folder` and build the hook that writes checkpoints to it."""
    run_folder = RunFolder(folder)
    run_folder.checkpoints.mkdir(parents=True, exist_ok=True)
    return CheckpointHook(run_folder, {}, keep, epochs, steps)


def flat_weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
