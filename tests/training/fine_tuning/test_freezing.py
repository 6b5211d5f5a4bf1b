"""Frozen parts of a network: no gradients, and statistics that do not change."""

import pytest
import torch
from torch import nn

import fbnetv3
from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.errors import UsageError
from fbnetv3.modeling.torchvision_models import TorchvisionArch, build_torchvision_model
from fbnetv3.training import train
from fbnetv3.training.fine_tuning.freezing import freeze

DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"
SHORT = [
    "SOLVER.EPOCHS",
    "2",
    "SOLVER.WARMUP_EPOCHS",
    "0",
    "SOLVER.BATCH_SIZE",
    "256",
    "EVAL.BATCH_SIZE",
    "360",
]


def digits_network():
    return fbnetv3.create_model("fbnetv3_digits", num_classes=10, in_chans=1)


def trainable(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def trained_weights(folder, *overrides, resume=False):
    cfg = load_config(DIGITS, [*SHORT, "OUTPUT_DIR", str(folder), "EMA.ENABLED", "True", *overrides])
    train(cfg, resume=resume)
    return torch.load(folder / "model_final.pth")


@pytest.mark.parametrize(
    ("part", "first_trainable"),
    [
        ("none", "backbone.stages.0.0."),
        ("stem", "backbone.stages.1.0."),
        ("3", "backbone.stages.3.0."),
        ("trunk", "head."),
    ],
)
def test_parts_by_name_and_by_number_of_stages(part, first_trainable):
    model = digits_network()
    freeze(model, part)
    names = [name for name, _ in model.named_parameters()]
    first = next(i for i, name in enumerate(names) if name.startswith(first_trainable))
    assert trainable(model) == names[first:]


@pytest.mark.parametrize(
    ("name", "stages", "frozen"),
    [
        ("resnet18", "2", ("conv1.", "bn1.", "layer1.")),
        ("mobilenet_v3_small", "stem", ("features.0.",)),
        ("vit_b_16", "trunk", ("class_token", "conv_proj.", "encoder.")),
    ],
)
def test_torchvisions_networks(name, stages, frozen):
    with torch.device("meta"):
        model = build_torchvision_model(TorchvisionArch(f"torchvision/{name}"), num_classes=3)
    freeze(model, stages)
    assert trainable(model) == [n for n, _ in model.named_parameters() if not n.startswith(frozen)]


@pytest.mark.parametrize(
    ("part", "message"),
    [("stm", "did you mean stem"), ("8", "the network has 7 stages"), ("-1", "MODEL.FREEZE '-1' must be")],
)
def test_parts_that_do_not_exist(part, message):
    with pytest.raises(UsageError, match=message):
        freeze(digits_network(), part)


def test_frozen_weights_and_statistics_keep_their_bits_in_training_and_averaging(tmp_path):
    """Only the head and the last stages change, in the raw and in the averaged weights."""
    frozen = ["MODEL.FREEZE", "4"]
    untrained = trained_weights(tmp_path / "initial", *frozen, "SOLVER.LR", "0.0")["model"]
    trained = trained_weights(tmp_path / "run", *frozen)
    for weights in (trained["model"], trained["model_ema"]):
        unchanged = {key for key in weights if torch.equal(weights[key], untrained[key])}
        expected = {
            key for key in weights if key.startswith(tuple(f"backbone.stages.{s}." for s in range(4)))
        }
        assert expected <= unchanged and not any(key.startswith("head.") for key in unchanged)


def test_the_number_of_trained_parameters_is_logged(tmp_path):
    trained_weights(tmp_path, "MODEL.FREEZE", "trunk", "SOLVER.EPOCHS", "1")
    total = sum(parameter.numel() for parameter in digits_network().parameters())
    head = 10 * digits_network().head.in_channels + 10
    line = f"MODEL.FREEZE trunk: {head} of {total} parameters are trained"
    assert line in (tmp_path / "log.txt").read_text()


def test_a_resumed_run_with_frozen_stages_ends_with_the_same_bits(tmp_path):
    overrides = ["MODEL.FREEZE", "3", "SOLVER.SCHEDULE", "exponential"]
    uninterrupted = trained_weights(tmp_path / "full", *overrides)["model"]
    trained_weights(tmp_path / "resumed", *overrides, "SOLVER.EPOCHS", "1")
    resumed = trained_weights(tmp_path / "resumed", *overrides, resume=True)["model"]
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)


def test_frozen_norms(tmp_path):
    untrained = trained_weights(tmp_path / "initial", "MODEL.FREEZE_NORM", "True", "SOLVER.LR", "0.0")[
        "model"
    ]
    trained = trained_weights(tmp_path / "run", "MODEL.FREEZE_NORM", "True")["model"]
    model = digits_network()
    norms = tuple(f"{name}." for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d))
    for key, value in trained.items():
        assert torch.equal(value, untrained[key]) or not key.startswith(norms), key
    assert not torch.equal(trained["head.weight"], untrained["head.weight"])


def test_dropout_before_the_head_stays_on():
    model = fbnetv3.create_model("fbnetv3_digits", num_classes=10, in_chans=1, drop_rate=0.5)
    assert model.dropout not in freeze(model, "trunk")
