"""A trainer whose whole training takes a moment."""

import numpy as np
import torch
from torch import nn

from fbnetv3.data import Preprocessing, build_loader
from fbnetv3.data.datasets import ArrayDataset
from fbnetv3.training import Trainer
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.losses import CrossEntropy
from fbnetv3.training.optimizers import build_optimizer, build_schedule
from fbnetv3.training.run_state.checkpoints import _STATE
from fbnetv3.training.training_hooks import Checkpointing

CPU = torch.device("cpu")
STATE = dict.fromkeys(_STATE)


def make_trainer(hooks=(), epochs=4, lr=0.5, seed=0, dropout=0.3, ema=None, **arguments):
    """A linear network that learns whether an image is dark or bright."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 64)
    images = (rng.integers(0, 100, (64, 4, 4)) + 120 * targets[:, None, None]).astype(np.uint8)
    data = ArrayDataset("bright", images, targets, ["dark", "bright"])
    transform = Preprocessing(4, 4, (0.5,), (0.5,)).transform()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(16, 2))
    loader = build_loader(data, transform, batch_size=16, training=True, seed=seed)
    return Trainer(
        model,
        CrossEntropy(),
        build_optimizer("sgd", model, lr),
        build_schedule("cosine", epochs),
        loader,
        lr=lr,
        epochs=epochs,
        device=CPU,
        channels_last=False,
        ema=ModelEMA(model, ema) if ema is not None else None,
        hooks=hooks,
        **arguments,
    )


def checkpointing(checkpoints, folder, epochs=1, steps=0):
    return Checkpointing(checkpoints, epochs, steps, folder / "final.pth", folder / "best.pth", {})


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
