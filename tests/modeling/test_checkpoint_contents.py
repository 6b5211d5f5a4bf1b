"""Checkpoints of other training scripts: the right weights are found, and the rest is left out aloud."""

import argparse
import itertools
import logging
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fbnetv3
from fbnetv3.errors import WeightsError
from fbnetv3.modeling.checkpoint_contents import extract_state_dict
from fbnetv3.modeling.network import Trunk
from fbnetv3.modeling.torchvision_models import load_torchvision_weights
from fbnetv3.modeling.weights import load_trunk
from tests.modeling.weight_files import mobile_vision, randomized, timm_names_of

SMALL = "fbnetv3_digits"
PREFIXES = ("", "module.", "model.", "_orig_mod.", "net.", "network.")
RAW_CONTAINERS = ("state_dict", "model", "module", "model_state_dict")
AVERAGED_CONTAINERS = ("state_dict_ema", "model_ema", "ema", "ema_state_dict")
NAMINGS = {"fbnetv3": nn.Module.state_dict, "mobile_vision": mobile_vision, "timm": timm_names_of}


def new_model(seed=0):
    torch.manual_seed(seed)
    return randomized(fbnetv3.create_model(SMALL, num_classes=10), seed)


@pytest.fixture(scope="module")
def model():
    return new_model(1)


@pytest.fixture(scope="module")
def other():
    return new_model(2)


@pytest.fixture
def copy():
    return new_model(3)


def assert_loaded(copy, expected):
    state = expected.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in copy.state_dict().items())


def prefixed(state_dict, prefix):
    return {prefix + key: value for key, value in state_dict.items()}


def average_of(model, raw, steps=1):
    """Wrap a network in torch's AveragedModel, whose average equals another network after one step."""
    averaged = AveragedModel(raw, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    if steps:
        averaged.update_parameters(model)  # the first step copies
    return averaged


def assert_loads(copy, contents, expected, naming):
    for parameter in copy.parameters():
        parameter.data.zero_()
    report = fbnetv3.load_weights(copy, contents)
    assert (report.naming, report.head_loaded) == (naming, True)
    assert_loaded(copy, expected)


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_pair_of_prefixes_loads_the_same_weights(naming, model, copy):
    for outer, inner in itertools.product(PREFIXES, repeat=2):
        assert_loads(copy, prefixed(NAMINGS[naming](model), outer + inner), model, naming)


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_pair_of_container_and_prefix_loads_the_same_weights(naming, model, copy):
    for container, prefix in itertools.product(RAW_CONTAINERS + AVERAGED_CONTAINERS, PREFIXES):
        assert_loads(copy, {container: prefixed(NAMINGS[naming](model), prefix)}, model, naming)


@pytest.mark.parametrize("outer", RAW_CONTAINERS + AVERAGED_CONTAINERS)
def test_every_pair_of_containers_loads_the_same_weights(outer, model, copy):
    for inner in RAW_CONTAINERS + AVERAGED_CONTAINERS:
        assert_loads(copy, {outer: {inner: model.state_dict()}, "epoch": 3}, model, "fbnetv3")


@pytest.mark.parametrize("averaged", AVERAGED_CONTAINERS)
@pytest.mark.parametrize("naming", NAMINGS)
def test_averaged_weights_win_in_every_combination(averaged, naming, model, other, copy, caplog):
    caplog.set_level(logging.INFO)
    rename = NAMINGS[naming]
    pairs = [
        *itertools.product(RAW_CONTAINERS, PREFIXES[:2]),
        *itertools.product(("state_dict",), PREFIXES),
    ]
    for raw, prefix in pairs:
        contents = {raw: prefixed(rename(other), prefix), averaged: prefixed(rename(model), prefix)}
        for nested in (contents, {"model": contents}):
            caplog.clear()
            assert_loads(copy, nested, model, naming)
            assert caplog.messages == [f"averaged weights ({averaged}) of the state dict"]


@pytest.mark.parametrize("averaged", AVERAGED_CONTAINERS)
@pytest.mark.parametrize("empty", [None, {}, {"state_dict": {}}])
def test_without_an_average_the_raw_weights_are_loaded_silently(averaged, empty, model, copy, caplog):
    with caplog.at_level(logging.INFO):
        fbnetv3.load_weights(copy, {"state_dict": model.state_dict(), averaged: empty})
    assert_loaded(copy, model)
    assert not caplog.messages


def test_an_averaged_model_of_torch(model, other, copy, caplog):
    with caplog.at_level(logging.INFO):
        fbnetv3.load_weights(copy, average_of(model, other).state_dict())
    assert_loaded(copy, model)
    assert caplog.messages == ["averaged weights (n_averaged) of the state dict"]


def test_an_average_before_its_first_step_is_a_copy_of_the_initial_weights(model, other, copy):
    """As torch.optim.swa_utils stores it before stochastic weight averaging starts."""
    checkpoint = {"model": model.state_dict(), "model_ema": average_of(model, other, steps=0).state_dict()}
    fbnetv3.load_weights(copy, checkpoint)
    assert_loaded(copy, model)


def test_a_checkpoint_of_torchvisions_training_script(model, other, copy, tmp_path):
    optimizer = torch.optim.SGD(other.parameters(), 0.1)
    checkpoint = {
        "model": other.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(
            data_path="/data", output_dir=Path("/runs"), device=torch.device("cuda")
        ),
        "model_ema": average_of(model, other).state_dict(),
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    fbnetv3.load_weights(copy, tmp_path / "checkpoint.pth")
    assert_loaded(copy, model)


def test_a_checkpoint_of_timms_training_script(model, other, copy, tmp_path):
    timm = pytest.importorskip("timm")
    from timm.utils import CheckpointSaver, ModelEmaV3

    ema = ModelEmaV3(other)
    ema.set(model)
    saver = CheckpointSaver(
        other,
        torch.optim.SGD(other.parameters(), 0.1),
        args=argparse.Namespace(model="fbnetv3_b", lr=0.1, mean=(0.5,) * 3),
        model_ema=ema,
        checkpoint_dir=str(tmp_path),
    )
    saver.save_checkpoint(0, metric=50.0)
    assert timm and {"state_dict", "state_dict_ema", "arch", "args"} <= set(
        torch.load(tmp_path / "last.pth.tar", weights_only=False)
    )
    fbnetv3.load_weights(copy, tmp_path / "last.pth.tar")
    assert_loaded(copy, model)


def test_a_checkpoint_of_lightning(model, copy, tmp_path, caplog):
    """With the keys of Trainer.save_checkpoint; metrics and losses are submodules next to the network."""
    checkpoint = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {
            **prefixed(model.state_dict(), "model."),
            "criterion.weight": torch.ones(10),
            "val_acc.correct": torch.zeros(10),
            "val_acc.total": torch.zeros(10),
        },
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'acc'}": {"best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "root": Path("/data")},
    }
    torch.save(checkpoint, tmp_path / "last.ckpt")
    fbnetv3.load_weights(copy, tmp_path / "last.ckpt")
    assert_loaded(copy, model)
    assert caplog.messages == [f"{tmp_path}/last.ckpt: ignored criterion.weight, val_acc.*"]


def test_an_averaged_submodule_wins(model, other, copy, caplog):
    for name, averaged in (("ema_model", average_of(model, other)), ("ema_net", model)):
        caplog.clear()
        state_dict = prefixed(other.state_dict(), "net.") | prefixed(averaged.state_dict(), f"{name}.")
        with caplog.at_level(logging.INFO):
            fbnetv3.load_weights(copy, {"state_dict": state_dict})
        assert_loaded(copy, model)
        assert caplog.messages[0] == f"averaged weights ({name}) of the state dict"


def test_averages_under_any_key_that_says_so(model, other, copy, caplog):
    """As scripts store it that keep `shadow` copies of the parameters."""
    shadow = {"decay": 0.9, "shadow": model.state_dict()}
    for key, averaged in (("ema", shadow), ("ema_weights", model.state_dict()), ("params_ema", shadow)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            fbnetv3.load_weights(copy, {"state_dict": other.state_dict(), key: averaged})
        assert_loaded(copy, model)
        assert caplog.messages == [f"averaged weights ({key}) of the state dict"]


def test_an_average_without_names_is_left_out_aloud(model, other, copy, caplog):
    """As torch_ema stores it: a list of tensors."""
    shadow = [parameter.detach() for parameter in other.parameters()]
    fbnetv3.load_weights(
        copy, {"model": model.state_dict(), "ema": {"decay": 0.9, "shadow_params": shadow}}
    )
    assert_loaded(copy, model)
    ignored = "ignored ema.shadow_params (averaged weights without names)"
    assert caplog.messages == [f"the state dict: {ignored}"]


@pytest.mark.parametrize("key", ["weights", "params", "checkpoint", "student"])
def test_weights_under_a_key_of_any_name(key, model, copy):
    optimizer = {"state": {"head.weight": {"exp_avg": torch.zeros(2)}}}
    contents = {"epoch": torch.tensor(3), "optimizer": optimizer}
    for nested in (model.state_dict(), {"state_dict": prefixed(model.state_dict(), "module.")}):
        fbnetv3.load_weights(copy, {**contents, key: nested})
        assert_loaded(copy, model)
    with pytest.raises(WeightsError, match="several weights that fit fbnetv3_digits: "):
        fbnetv3.load_weights(copy, {key: model.state_dict(), "teacher": new_model(4).state_dict()})


def test_names_that_wrappers_insert_at_any_depth(model, copy):
    """As torch.compile and FSDP of a submodule do."""
    weights = {
        key.replace("stages.1.", "_orig_mod.stages._fsdp_wrapped_module.1."): value
        for key, value in model.state_dict().items()
    }
    assert weights.keys() != model.state_dict().keys()
    fbnetv3.load_weights(copy, weights)
    assert_loaded(copy, model)


def test_a_compiled_and_distributed_average(model, other, copy):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    averaged = average_of(Wrapper(torch.compile(model)), Wrapper(torch.compile(other)))
    fbnetv3.load_weights(copy, averaged.state_dict())
    assert_loaded(copy, model)


def test_two_networks_that_fit_are_an_error_that_names_both(model, other, copy):
    weights = prefixed(model.state_dict(), "student.") | prefixed(other.state_dict(), "teacher.")
    before = new_model(3)
    with pytest.raises(
        WeightsError, match=r"several weights that fit fbnetv3_digits: student.\*, teacher.\*;"
    ):
        fbnetv3.load_weights(copy, weights)
    with pytest.raises(WeightsError, match=r"fit fbnetv3_digits: state_dict, model;"):
        fbnetv3.load_weights(copy, {"model": model.state_dict(), "state_dict": other.state_dict()})
    assert_loaded(copy, before)


def test_the_network_that_fits_is_loaded(model, copy, caplog):
    teacher = fbnetv3.create_model("fbnetv3_a", num_classes=10)
    fbnetv3.load_weights(
        copy, prefixed(teacher.state_dict(), "teacher.") | prefixed(model.state_dict(), "student.")
    )
    assert_loaded(copy, model)
    assert caplog.messages == ["the state dict: ignored teacher.*"]


def test_the_network_with_the_same_classes_is_loaded(model, copy):
    teacher = fbnetv3.create_model(SMALL, num_classes=1000)
    fbnetv3.load_weights(
        copy, prefixed(teacher.state_dict(), "teacher.") | prefixed(model.state_dict(), "student.")
    )
    assert_loaded(copy, model)


def test_the_same_weights_twice_are_loaded(model, copy):
    fbnetv3.load_weights(copy, {"model": model.state_dict(), "state_dict": model.state_dict()})
    assert_loaded(copy, model)


def test_an_average_without_statistics_is_completed_with_the_raw_ones(model, other, copy):
    averaged = dict(model.named_parameters())
    fbnetv3.load_weights(copy, {"model": other.state_dict(), "ema": averaged})
    assert torch.equal(copy.head.weight, model.head.weight)
    statistics = [key for key in copy.state_dict() if key.endswith("running_var")]
    assert statistics
    assert all(torch.equal(copy.state_dict()[key], other.state_dict()[key]) for key in statistics)


def test_an_average_that_does_not_fit_is_an_error(model, copy):
    averaged = fbnetv3.create_model("fbnetv3_a", num_classes=10).state_dict()
    with pytest.raises(WeightsError, match="does not fit fbnetv3_digits: model_ema: missing"):
        fbnetv3.load_weights(copy, {"model": model.state_dict(), "model_ema": averaged})


def test_trunks_load_averaged_weights(model, other):
    trunk = Trunk(model.arch)
    averaged = prefixed(model.state_dict(), "module.")
    load_trunk(trunk, {"state_dict": other.state_dict(), "state_dict_ema": averaged})
    assert_loaded(trunk, model.backbone)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "densenet121"])
def test_torchvisions_networks_have_the_same_wrappers(name, caplog):
    networks = [torchvision.models.get_model(name, weights=None, num_classes=2) for _ in range(3)]
    raw, averaged, copy = networks
    checkpoint = {
        "model": prefixed(raw.state_dict(), "module."),
        "model_ema": average_of(averaged, raw).state_dict(),
    }
    load_torchvision_weights(copy, checkpoint)
    assert_loaded(copy, averaged)
    lightning = {
        "state_dict": prefixed(raw.state_dict(), "net.model.") | {"criterion.weight": torch.ones(2)}
    }
    load_torchvision_weights(copy, lightning)
    assert_loaded(copy, raw)
    assert "ignored criterion.weight" in caplog.text


@pytest.mark.parametrize(
    "checkpoint", [{}, [], 3, {"state_dict": {}}, {"state_dict": 3}, {"a": 1}, {"model": {"a": "b"}}]
)
def test_a_checkpoint_without_tensors(checkpoint):
    with pytest.raises(WeightsError, match=r"^x.pth: has no state dict \(a mapping of names to tensors\)"):
        extract_state_dict(checkpoint, "x.pth")


@pytest.mark.parametrize("key", ["n_averaged", "module.n_averaged"])
def test_a_counter_alone_is_no_network(key, copy):
    with pytest.raises(WeightsError, match="the keys match no known naming"):
        fbnetv3.load_weights(copy, {key: torch.tensor(3)})
