"""Networks can be traced and scripted, as tools for features, quantization and export do."""

import pytest
import torch

import fbnetv3


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("trace", [torch.fx.symbolic_trace, torch.jit.script])
def test_a_traced_network_gives_the_same_logits(trace, training):
    model = fbnetv3.create_model("fbnetv3_digits", num_classes=10, in_chans=1).train(training)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(trace(model)(x), model(x))
