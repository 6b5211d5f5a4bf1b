"""The average of weights and statistics."""

import pytest
import torch
from torch import nn

from fbnetv3.training.ema import ModelEMA


def test_the_average_follows_the_weights():
    model = nn.BatchNorm1d(2)
    ema = ModelEMA(model, decay=0.5)
    expected = None
    for step in range(6):
        with torch.no_grad():
            model.weight.fill_(step)
            model.running_mean.fill_(10 * step)
            model.num_batches_tracked.fill_(step)
        ema.update_parameters(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = step if expected is None else decay * expected + (1 - decay) * step
        assert ema.module.weight[0].item() == pytest.approx(expected)
        assert ema.module.running_mean[0].item() == pytest.approx(10 * expected)
    assert ema.module.num_batches_tracked.item() == 5
