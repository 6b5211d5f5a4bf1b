"""Quantization-aware training: what it evaluates is what its int8 exports compute."""

import logging

import numpy as np
import pytest
import torch

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.errors import UsageError
from fbnetv3.model_zoo.pretrained import load_classifier_from_checkpoint
from fbnetv3.modeling.qat.quantized_layers import read_ranges, restore_fake_quantization
from fbnetv3.training import train_classifier
from fbnetv3.training.evaluation.weights_evaluation import evaluate_classifier
from fbnetv3.training.recorded_networks import load_recorded_config
from fbnetv3.training.run_state.checkpoints import Checkpoints
from fbnetv3.training.run_state.network_record import read_network_record

CONFIG = configs_folder() / "digits" / "fbnetv3_digits_qat.yaml"
SHORT = ["SOLVER.EPOCHS", "1", "LOG.TRACKERS", "[]", "EVAL.REPORT", "off"]


def short_config(folder, *overrides):
    return load_config(CONFIG, [*SHORT, "OUTPUT_DIR", str(folder), *overrides])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One epoch of quantization-aware training, with averaged weights."""
    cfg = short_config(tmp_path_factory.mktemp("qat") / "run", "EMA.ENABLED", "True", "EMA.DECAY", "0.9")
    return train_classifier(cfg, progress=False)


def test_weights_record_the_ranges_of_int8_layers(run):
    record = read_network_record(str(run.run_folder.weights))
    values = torch.tensor(list(record.learned_int8.ranges.values()))
    assert len(values) > 30 and values.isfinite().all() and (values[:, ::2] < values[:, 1::2]).all()
    assert record.learned_int8.weight_bits == 8
    # Checkpoints to resume from have them, too, and the weights have the names of an ordinary network
    newest = Checkpoints(run.run_folder.checkpoints).load_newest()[1]
    assert newest["metadata"]["ranges"] == record.ranges
    assert set(newest["model"]) == set(
        load_classifier_from_checkpoint(run.run_folder.path).model.state_dict()
    )


def test_an_evaluation_of_the_weights_rounds_as_the_run_did(run, caplog):
    caplog.set_level(logging.INFO)
    cfg = load_recorded_config(["MODEL.WEIGHTS", str(run.run_folder.weights), "EVAL.REPORT", "off"])
    results = evaluate_classifier(cfg)
    # Averaged weights are preferred
    assert results["top1"] == run.metrics["ema_top1"]
    assert results["loss"] == pytest.approx(run.metrics["ema_loss"], rel=1e-4)
    assert "on 360 images, rounding as int8" in caplog.text


def test_a_resumed_run_goes_on_with_its_ranges(run, tmp_path):
    whole = train_classifier(short_config(tmp_path / "whole", "SOLVER.EPOCHS", "2"), progress=False)
    cfg = short_config(tmp_path / "parts", "SOLVER.EPOCHS", "2")
    train_classifier(cfg, progress=False, callbacks=[lambda result: False])
    resumed = train_classifier(cfg, progress=False, resume=True)
    assert resumed.metrics["loss"] == whole.metrics["loss"]


def test_it_starts_from_trained_weights(tmp_path):
    with pytest.raises(UsageError, match="QAT.ENABLED fine-tunes a trained network: set MODEL.WEIGHTS"):
        train_classifier(short_config(tmp_path / "run", "MODEL.WEIGHTS", ""), progress=False)


@pytest.mark.parametrize("format, package", [("onnx", "onnxruntime"), ("executorch", "executorch")])
def test_exports_compute_what_the_training_evaluates(format, package, run, tmp_path):
    pytest.importorskip(package)
    from fbnetv3.deploy import ClassifierPredictor, PrecisionSettings, TorchRuntime, export_classifier, load

    net = load_classifier_from_checkpoint(run.run_folder.path)
    images, targets = net.labeled_images("val", 100)
    exported = export_classifier(
        net.model,
        net.preprocessing,
        net.classes,
        tmp_path / "out",
        format=format,
        precision=PrecisionSettings("int8", images, targets, learned=net.learned_int8),
    )
    result = exported.manifest.verification["int8"]
    assert result["trained_ranges"] and result["calibration_images"] == 0
    restore_fake_quantization(net.model, net.learned_int8)
    fake_quantized = ClassifierPredictor(TorchRuntime(net.model), net.preprocessing, net.classes)
    expected, logits = fake_quantized.logits(images), load(exported.folder).logits(images)
    # int8 rounds ties and biases differently
    assert np.mean((logits - expected) ** 2) < 0.002 * expected.var()
    assert np.mean(logits.argmax(1) == expected.argmax(1)) >= 0.99
    # All layers but the first are int8
    layers = {name for name, module in net.model.named_modules() if hasattr(module, "stride")}
    assert layers - read_ranges(net.model).keys() == set(result["float_layers"])
