"""Networks are evaluated in the precision of their training on GPUs, and in float32 on CPUs."""

import pytest
import torch
from torch import nn

import fbnetv3
from fbnetv3.training.evaluation.inference_precision import (
    cast_weights,
    inference_autocast,
    reduces_precision,
)

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_only_gpus_reduce_the_precision(precision):
    assert reduces_precision(GPU, precision) and not reduces_precision(CPU, precision)
    assert not reduces_precision(GPU, torch.float32)


def test_autocast_on_a_cpu_changes_nothing():
    layer, x = nn.Linear(4, 3), torch.rand(2, 4)
    with torch.no_grad(), inference_autocast(CPU, torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.float32 and torch.equal(y, layer(x))


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_autocast_on_a_gpu_has_the_precision_of_training():
    autocast = inference_autocast(GPU, torch.bfloat16)
    assert (autocast.device, autocast.fast_dtype) == ("cuda", torch.bfloat16)


@torch.no_grad()
def test_cast_weights_give_the_same_outputs_under_autocast():
    """Autocast on a CPU stands for that on a GPU: it casts the weights of the same layers."""
    torch.manual_seed(0)
    classifier = fbnetv3.create_model("fbnetv3_digits", num_classes=10, in_chans=1)
    network = nn.Sequential(classifier, nn.Linear(10, 3)).eval()
    images = torch.rand(2, 1, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        expected = network(images)
        cast_weights(network, torch.bfloat16)
        assert torch.equal(network(images), expected)
    for kind, dtype in (
        (nn.Conv2d, torch.bfloat16),
        (nn.Linear, torch.bfloat16),
        (nn.BatchNorm2d, torch.float32),
    ):
        assert {m.weight.dtype for m in network.modules() if isinstance(m, kind)} == {dtype}


@pytest.mark.gpu
@torch.no_grad()
def test_a_gpu_computes_in_bfloat16():
    layer = nn.Linear(4, 3).to(GPU)
    with inference_autocast(GPU, torch.bfloat16):
        assert layer(torch.rand(2, 4, device=GPU)).dtype == torch.bfloat16
