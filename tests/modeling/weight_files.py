"""Weights for tests: randomized networks, state dicts in other layouts, and a checkpoint that runs code."""

import math
import zlib

import numpy as np
import torch
from torch import nn

from fbnetv3.modeling.weight_conversion import mobile_vision_names, timm_names


def randomized(model, seed=0):
    """Randomize the BatchNorms, as after training, so that every tensor matters; return the model in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.1, generator=generator)
            m.running_var.uniform_(0.5, 1.5, generator=generator)
            nn.init.uniform_(m.weight, 0.5, 1.2, generator=generator)
    return model.eval()


def mobile_vision(model):
    """Return a network's state dict in the layout in which the authors publish theirs."""
    published_layers = {new: old for old, new in mobile_vision_names(model.arch).items()}
    published = {}
    for key, value in model.state_dict().items():
        layer, _, tensor = key.rpartition(".")
        published[f"{published_layers[layer]}.{tensor}"] = value.clone()
    return published


def timm_names_of(model):
    """Return a network's state dict with timm's names, each block in a stage of its own."""
    blocks = [f"blocks.{i}.0.bn1.weight" for i in range(len(model.arch.blocks()) - 1)]
    timm_layers = {new: old for old, new in timm_names(model.arch, dict.fromkeys(blocks)).items()}
    renamed = {}
    for key, value in model.state_dict().items():
        layer, _, tensor = key.rpartition(".")
        renamed[f"{timm_layers[layer]}.{tensor}"] = value.clone()
    renamed["classifier.weight"] = renamed["classifier.weight"].flatten(1)  # a linear layer
    return renamed


def weight_by_formula(key, shape):
    """Compute a tensor from its published name, as for the recorded outputs of the original networks."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    kind = key.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return torch.zeros(shape, dtype=torch.int64)
    if kind == "running_var":
        values = rng.uniform(0.5, 1.5, shape)
    # BatchNorm; small after projections, so that deep sums stay in range
    elif kind == "weight" and len(shape) == 1:
        values = rng.uniform(*((0.1, 0.4) if ".pwl." in key else (0.5, 1.2)), shape)
    elif len(shape) <= 1:
        values = rng.normal(0, 0.1, shape)
    else:
        values = rng.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)
    return torch.from_numpy(values.astype(np.float32))


class RunsCode:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")
