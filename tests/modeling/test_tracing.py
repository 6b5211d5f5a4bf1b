"""Networks can be traced and scripted, as tools for features, quantization and export do."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import fbnetv3
from fbnetv3.modeling import build_network
from fbnetv3.modeling.cpu.inference_blocks import fuse_blocks
from tests.modeling.weight_files import randomized


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("trace", [torch.fx.symbolic_trace, torch.jit.script])
def test_a_traced_network_gives_the_same_logits(trace, training):
    model = fbnetv3.create_model("fbnetv3_digits", num_classes=10, in_chans=1).train(training)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(trace(model)(x), model(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("training", [False, True])
def test_jit_trace_with_gradients(training, memory_format):
    """It compares the trace with one that it makes without gradients, which must have the same operations."""
    model = randomized(fbnetv3.create_model("fbnetv3_digits", num_classes=10)).train(training)
    model = model.to(memory_format=memory_format)
    x = torch.randn(2, 3, 48, 48).to(memory_format=memory_format)
    traced = torch.jit.trace(copy.deepcopy(model), x)
    larger = torch.randn(3, 3, 64, 64).to(memory_format=memory_format)
    torch.testing.assert_close(traced(larger), model(larger))
    traced(x).sum().backward()


@pytest.mark.parametrize("act", ["hswish", "relu"])
@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("kind", ["blocks", "fused blocks", "fused blocks with other norms"])
def test_nothing_overwrites_what_hooks_keep(kind, enabled, act):
    """The outputs of all modules stay as they were when the hooks saw them."""
    definition = fbnetv3.get_arch("fbnetv3_digits")
    stages = tuple(
        replace(stage, rows=tuple(replace(row, act=act) for row in stage.rows))
        for stage in definition.stages
    )
    options = {"norm_layer": lambda channels: nn.GroupNorm(4, channels)} if "other norms" in kind else {}
    model = randomized(build_network(replace(definition, stages=stages), num_classes=10, **options))
    for parameter in model.parameters():  # residual blocks start as the identity
        nn.init.uniform_(parameter, -0.5, 0.5)
    if kind != "blocks":
        fuse_blocks(model)
    x = torch.randn(2, 3, 48, 48).contiguous(memory_format=torch.channels_last)
    expected = model(x)
    kept = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(
            lambda module, inputs, name=name: kept.append(
                (f"input of {name}", inputs[0], inputs[0].clone())
            )
        )
        module.register_forward_hook(
            lambda module, inputs, y, name=name: kept.append((f"output of {name}", y, y.clone()))
        )
    with torch.set_grad_enabled(enabled):
        torch.testing.assert_close(model(x), expected)
    assert len(kept) > 100 or kind != "blocks"
    assert [name for name, tensor, before in kept if not torch.equal(tensor, before)] == []
