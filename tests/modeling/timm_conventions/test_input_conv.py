"""Pretrained stems for other numbers of input channels, as timm adapts them."""

import logging

import pytest
import torch

import fbnetv3
from fbnetv3.errors import WeightsError
from fbnetv3.modeling.timm_conventions.input_conv import adapt_input_conv

SMALL = "fbnetv3_digits"


@pytest.mark.parametrize("in_chans", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_numbers_are_timms(in_chans, dtype):
    manipulate = pytest.importorskip("timm.models._manipulate")
    weight = torch.randn(8, 3, 3, 3).to(dtype)
    adapted = adapt_input_conv(weight.clone(), in_chans)
    assert adapted.dtype == dtype
    torch.testing.assert_close(
        adapted, manipulate.adapt_input_conv(in_chans, weight.clone()), rtol=1e-6, atol=0
    )


def test_gray_images_give_the_same_logits_on_one_channel_as_on_three():
    rgb = fbnetv3.create_model(SMALL, num_classes=5).eval()
    gray = fbnetv3.create_model(SMALL, num_classes=5, in_chans=1).eval()
    fbnetv3.load_weights(gray, rgb.state_dict(), adapt_input=True)
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(gray(images), rgb(images.expand(-1, 3, -1, -1)))


def test_one_channel_back_to_three(caplog):
    gray = fbnetv3.create_model(SMALL, num_classes=5, in_chans=1).eval()
    rgb = fbnetv3.create_model(SMALL, num_classes=5).eval()
    with caplog.at_level(logging.INFO):
        fbnetv3.load_weights(rgb, gray.state_dict(), adapt_input=True)
    assert "backbone.stages.0.0.0.weight: adapted from 1 to 3 input channels" in caplog.text
    images = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(rgb(images.expand(-1, 3, -1, -1)), gray(images))


def test_the_stem_of_another_network_is_not_adapted():
    weights = fbnetv3.create_model("fbnetv3_a", num_classes=5, in_chans=1).state_dict()
    with pytest.raises(WeightsError, match="does not fit fbnetv3_digits"):
        fbnetv3.load_weights(fbnetv3.create_model(SMALL, num_classes=5), weights, adapt_input=True)
