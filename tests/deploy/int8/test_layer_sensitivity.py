"""Which layers int8 harms most: the measurement equals that of each layer alone."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.fx import Interpreter

from fbnetv3.deploy.formats.export_format import export_program
from fbnetv3.deploy.formats.graph_preparation import prepare_for_export
from fbnetv3.deploy.int8.layer_sensitivity import (
    LayerSensitivity,
    choose_float_layers,
    layer_names,
    measure_sensitivity,
    most_sensitive,
)
from fbnetv3.modeling.qat.fake_quantizers import fake_quantize_weight


class OneWeightRounded(Interpreter):
    """Runs a network with the weight of one layer rounded, far more coarsely than its feature maps would be."""

    def __init__(self, model, layer):
        super().__init__(model)
        self.layer = layer

    def run_node(self, node):
        if node is not self.layer:
            return super().run_node(node)
        (x, weight, *others), kwargs = self.fetch_args_kwargs_from_env(node)
        return node.target(x, fake_quantize_weight(weight), *others, **kwargs)


@pytest.fixture(scope="module")
def program(digits):
    return export_program(prepare_for_export(digits.model), torch.zeros(2, 1, 32, 32), [0])


@pytest.fixture(scope="module")
def images(digits, held_out):
    transform = digits.preprocessing.transform()
    return torch.stack([transform(image) for image in held_out[0][:16]])


def test_sensitivity_ranks_layers_as_rounding_each_alone_does(program, images, monkeypatch):
    # Leave out the rounding of feature maps, so that the oracle is the network with one changed weight
    monkeypatch.setattr("fbnetv3.deploy.int8.layer_sensitivity.fake_quantize_map", lambda x, ends: x)
    measured = measure_sensitivity(program, [images.numpy()])
    model = program.module()
    with torch.no_grad():
        logits = model(images)
        errors = [
            float((OneWeightRounded(model, node).run(images) - logits).square().mean() / logits.var())
            for node in layer_names(model)
        ]
    estimates = [layer.error for layer in measured.values()]
    assert spearmanr(estimates, errors).statistic > 0.97
    assert np.median(np.divide(estimates, errors)) == pytest.approx(1, abs=0.15)


def test_layers_have_the_names_and_weights_of_the_network(program, images, digits):
    measured = measure_sensitivity(program, [images.numpy()])
    modules = dict(digits.model.named_modules())
    assert len(measured) == sum(isinstance(module, torch.nn.Conv2d) for module in modules.values())
    assert all(layer.num_weights == modules[name].weight.numel() for name, layer in measured.items())
    assert all(layer.error > 0 for layer in measured.values())


def test_float_layers_do_the_most_harm_within_the_budget():
    layers = {
        "a": LayerSensitivity(error=1.0, num_weights=10),
        "b": LayerSensitivity(error=9.0, num_weights=60),
        "c": LayerSensitivity(error=3.0, num_weights=10),
        "d": LayerSensitivity(error=4.0, num_weights=20),
    }
    assert choose_float_layers(layers, 0.3) == ["c", "d"]
    assert choose_float_layers(layers, 0.4) == ["a", "c", "d"]  # b is too large
    assert choose_float_layers(layers, 0) == []
    assert choose_float_layers(layers, 1) == ["a", "b", "c", "d"]
    assert most_sensitive(layers) == ["b", "d", "c", "a"]


def test_first_layers_stay_float_unless_others_help_by_a_third():
    def layers(last_error):
        errors = {"first": 2.0, "middle": 8.0, "last": last_error}
        weights = {"first": 10, "middle": 80, "last": 10}
        return {name: LayerSensitivity(error, weights[name]) for name, error in errors.items()}

    # With the first layer in float, the last one's error and 8 remain; with the last one, 10
    assert choose_float_layers(layers(6.9), 0.1) == ["first"]
    assert choose_float_layers(layers(7.1), 0.1) == ["last"]
