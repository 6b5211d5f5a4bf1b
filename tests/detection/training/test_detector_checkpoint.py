"""Detectors' checkpoints: averaged weights are preferred, training resumes, unsuitable files are refused."""

import logging

import pytest
import torch
from detectron2.modeling import build_model

import fbnetv3
from fbnetv3.detection import FBNetV3Checkpointer, load_detector
from fbnetv3.detection.training.detector_checkpoint import newest_checkpoint
from fbnetv3.errors import OutputError, WeightsError
from tests.detection.detectors import small_config
from tests.modeling.weight_files import RunsCode, mobile_vision

CLASSIFIER = r"is a classifier's checkpoint, not a detector's; to initialize .*set MODEL.FBNETV3.WEIGHTS"


@pytest.fixture
def model(small_cfg):
    return build_model(small_cfg)


def shifted(model, offset):
    """Return the model's state with a constant added to all floating-point tensors."""
    return {
        key: value + offset if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }


def equal(model, state):
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_the_folder_of_a_run_stands_for_its_weights(model, tmp_path):
    with pytest.raises(WeightsError, match="is a folder without the weights of a run"):
        load_detector(model, tmp_path)
    final = shifted(model, 1)
    torch.save({"model": final}, tmp_path / "model_final.pth")
    load_detector(model, tmp_path)
    assert equal(model, final)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_averaged_weights_are_preferred(model, tmp_path, prefix):
    raw, ema = shifted(model, 1), {f"{prefix}{key}": value for key, value in shifted(model, 2).items()}
    torch.save({"model": raw, "ema_state": ema, "iteration": 7}, tmp_path / "x.pth")
    load_detector(model, tmp_path / "x.pth")
    assert equal(model, {key.removeprefix("module."): value for key, value in ema.items()})


@pytest.mark.parametrize(
    ("raw_key", "averaged_key"), [("model", "model_ema"), ("state_dict", "state_dict_ema")]
)
def test_averaged_weights_of_other_training_scripts(model, tmp_path, raw_key, averaged_key, caplog):
    caplog.set_level(logging.INFO)
    raw, ema = ({f"net.{key}": v for key, v in shifted(model, offset).items()} for offset in (1, 2))
    torch.save({raw_key: raw, averaged_key: ema}, tmp_path / "x.pth")
    load_detector(model, tmp_path / "x.pth")
    assert equal(model, {key.removeprefix("net."): value for key, value in ema.items()})
    assert f"averaged weights ({averaged_key}) of {tmp_path}/x.pth" in caplog.messages


def test_a_detector_next_to_other_modules(model, tmp_path, caplog):
    """As PyTorch Lightning stores them."""
    raw = {f"model.{key}": value for key, value in shifted(model, 1).items()}
    torch.save({"state_dict": {**raw, "criterion.weight": torch.ones(2)}}, tmp_path / "x.ckpt")
    load_detector(model, tmp_path / "x.ckpt")
    assert equal(model, {key.removeprefix("model."): value for key, value in raw.items()})
    assert f"{tmp_path}/x.ckpt: ignored criterion.weight" in caplog.messages


def test_weights_that_are_not_finite(model, tmp_path):
    raw = shifted(model, 0)
    key = next(key for key in raw if key.endswith("running_var"))
    raw[key] = torch.full_like(raw[key], float("nan"))
    torch.save({"model": raw}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=f"x.pth: NaN or infinity in {key}: "):
        load_detector(model, tmp_path / "x.pth")


def test_averages_of_parameters_only_are_completed_by_raw_statistics(model, tmp_path):
    raw, parameters = shifted(model, 1), dict(model.named_parameters())
    ema = {key: value for key, value in shifted(model, 2).items() if key in parameters}
    torch.save({"model": raw, "ema_state": ema}, tmp_path / "x.pth")
    assert equal(load_detector(model, tmp_path / "x.pth"), {**raw, **ema})


@pytest.mark.parametrize("empty", [None, {}])
def test_raw_weights_are_loaded_without_averages(model, tmp_path, empty):
    raw = shifted(model, 1)
    torch.save({"model": raw, "ema_state": empty}, tmp_path / "x.pth")
    assert equal(load_detector(model, tmp_path / "x.pth"), raw)


def test_training_resumes_from_the_raw_weights(small_cfg, tmp_path):
    """Resuming also restores the optimizer."""
    model = build_model(small_cfg)
    raw, ema = shifted(model, 1), shifted(model, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = 0.3
    torch.save({"model": raw, "ema_state": ema, "optimizer": state, "iteration": 7}, tmp_path / "x.pth")
    (tmp_path / "last_checkpoint").write_text("x.pth")
    checkpointer = FBNetV3Checkpointer(model, str(tmp_path), optimizer=optimizer)
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 7
    assert equal(model, raw)
    assert optimizer.param_groups[0]["lr"] == 0.3
    checkpointer.resume_or_load(str(tmp_path / "x.pth"), resume=False)
    assert equal(model, ema)


def test_saved_checkpoints_are_read_back(model, tmp_path, small_cfg):
    FBNetV3Checkpointer(model, str(tmp_path)).save("x", iteration=3)
    again = build_model(small_cfg)
    assert FBNetV3Checkpointer(again).load(str(tmp_path / "x.pth"))["iteration"] == 3
    assert equal(again, model.state_dict())


@pytest.mark.parametrize("name", ["faster_rcnn_fbnetv3_g_FPN", "retinanet_fbnetv3_a_FPN"])
def test_detectors_with_fpn_are_read_back(name, tmp_path):
    first, again = (build_model(small_config(name)) for _ in range(2))
    torch.save({"model": first.state_dict()}, tmp_path / "x.pth")
    assert equal(load_detector(again, tmp_path / "x.pth"), first.state_dict())


def test_released_names_of_the_trunk_of_an_fpn(tmp_path):
    """Its trunk is named `bottom_up`, without `body`."""
    cfg = small_config("faster_rcnn_fbnetv3_g_FPN")
    cfg.MODEL.FBNETV3.ARCH = "fbnetv3_a_det"
    model = build_model(cfg)
    state = shifted(model, 1)
    our_name = "backbone.bottom_up.stages.3.0.expand.0.weight"
    released_name = "backbone.bottom_up.trunk3.fbnetv2_3_0.pw.conv.weight"
    state[released_name] = state.pop(our_name)
    torch.save({"model": state}, tmp_path / "x.pth")
    load_detector(model, tmp_path / "x.pth")
    assert torch.equal(model.state_dict()[our_name], state[released_name])


def save_with_7_classes(cfg, tmp_path):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = 7
    state = build_model(cfg).state_dict()
    torch.save({"model": state}, tmp_path / "x.pth")
    return state


def test_another_number_of_classes_is_refused_with_advice(model, small_cfg, tmp_path):
    save_with_7_classes(small_cfg, tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(
        WeightsError,
        match=r"has 7 classes, the network 5: set MODEL.ROI_HEADS.NUM_CLASSES 7, .*new_classes=True",
    ):
        load_detector(model, tmp_path / "x.pth")
    assert equal(model, before)


def test_another_number_of_classes_of_a_retinanet(tmp_path):
    model = build_model(small_config("retinanet_fbnetv3_a_FPN"))
    save_with_7_classes(small_config("retinanet_fbnetv3_a_FPN"), tmp_path)
    with pytest.raises(WeightsError, match="classes than MODEL.RETINANET.NUM_CLASSES: set it"):
        load_detector(model, tmp_path / "x.pth")


def test_new_classes_keep_the_models_last_layers_and_load_the_rest(model, small_cfg, tmp_path):
    state = save_with_7_classes(small_cfg, tmp_path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    load_detector(model, tmp_path / "x.pth", new_classes=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith("roi_heads.box_predictor.") else state[key])


@pytest.mark.parametrize("kind", ["ours", "ours, state dict only", "released", "timm", "torchvision"])
def test_classifier_checkpoints_are_recognized(kind, model, tmp_path):
    classifier = fbnetv3.create_model("fbnetv3_a0", num_classes=10)
    if kind == "timm":
        state = pytest.importorskip("timm").create_model("fbnetv3_b").state_dict()
    elif kind == "torchvision":
        from torchvision.models import efficientnet_b0

        state = efficientnet_b0().state_dict()
    else:
        state = {
            "ours": {"model": classifier.state_dict(), "model_ema": None},
            "ours, state dict only": classifier.state_dict(),
            "released": {"state_dict": mobile_vision(classifier), "model_ema": None},
        }[kind]
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=CLASSIFIER):
        load_detector(model, tmp_path / "x.pth")


def test_a_detector_of_another_architecture(model, tmp_path, small_cfg):
    small_cfg.MODEL.FBNETV3.ARCH = "fbnetv3_b"
    torch.save({"model": build_model(small_cfg).state_dict()}, tmp_path / "x.pth")
    with pytest.raises(
        WeightsError,
        match=r"was trained with a different architecture: .* instead of .*set MODEL.FBNETV3.ARCH",
    ):
        load_detector(model, tmp_path / "x.pth")


def test_a_detector_on_another_backbone(model, tmp_path):
    state = {
        f"x{key}" if key.startswith("backbone") else key: value for key, value in model.state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"lacks \d+ tensors such as backbone.*set MODEL.BACKBONE.NAME"):
        load_detector(model, tmp_path / "x.pth")


@pytest.mark.parametrize(("saved_blocks", "model_blocks", "message"), [(1, 3, "lacks"), (3, 1, "has")])
def test_an_rpn_head_of_another_length(saved_blocks, model_blocks, message, small_cfg, tmp_path):
    """Heads that would be partly random or truncated are refused."""
    small_cfg.MODEL.FBNETV3.RPN_BLOCKS = saved_blocks
    torch.save({"model": build_model(small_cfg).state_dict()}, tmp_path / "x.pth")
    small_cfg.MODEL.FBNETV3.RPN_BLOCKS = model_blocks
    with pytest.raises(
        WeightsError, match=rf"{message} \d+ .* such as proposal_generator.rpn_head.*MODEL.FBNETV3 keys"
    ):
        load_detector(build_model(small_cfg), tmp_path / "x.pth")


def test_frozen_norms_read_a_checkpoint_without(model, small_cfg, tmp_path):
    torch.save({"model": model.state_dict()}, tmp_path / "x.pth")
    small_cfg.MODEL.FBNETV3.NORM = "FrozenBN"
    frozen = load_detector(build_model(small_cfg), tmp_path / "x.pth")
    assert equal(frozen, model.state_dict())


def test_a_mask_head_is_added(model, tmp_path):
    """A mask head that the checkpoint lacks is randomly initialized, as in detectron2."""
    torch.save({"model": model.state_dict()}, tmp_path / "x.pth")
    masks = load_detector(build_model(small_config("mask_rcnn_fbnetv3_a_C4")), tmp_path / "x.pth")
    assert all(torch.equal(masks.state_dict()[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("content", [{"model": 3}, {"model": {"a": 1}}, [1], {}])
def test_a_checkpoint_without_weights(content, model, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="has no state dict"):
        load_detector(model, tmp_path / "x.pth")


def test_weights_of_something_else(model, tmp_path):
    from torchvision.models import resnet18

    torch.save({"model": resnet18().state_dict()}, tmp_path / "x.pth")
    with pytest.raises(
        WeightsError, match=r"has no tensors of this detector; its first tensors are conv1.weight"
    ):
        load_detector(model, tmp_path / "x.pth")


def test_a_missing_file(model, tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        load_detector(model, tmp_path / "x.pth")


def test_a_corrupt_file(model, tmp_path):
    (tmp_path / "x.pth").write_bytes(bytes(100))
    with pytest.raises(WeightsError, match="is corrupt or not a checkpoint"):
        load_detector(model, tmp_path / "x.pth")


def test_a_file_that_runs_code_is_refused(model, tmp_path):
    torch.save({"model": RunsCode(tmp_path / "trace")}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="could run code; save only"):
        load_detector(model, tmp_path / "x.pth")
    assert not (tmp_path / "trace").exists()


def test_the_newest_are_kept_and_a_corrupt_one_is_skipped(model, tmp_path, caplog):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    checkpointer = FBNetV3Checkpointer(model, str(tmp_path), keep=2, optimizer=optimizer)
    states = {}
    for iteration in (1, 2, 3):
        states[iteration] = shifted(model, 1)
        model.load_state_dict(states[iteration])
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    names = ["last_checkpoint", "model_0000002.pth", "model_0000003.pth"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    newest = tmp_path / "model_0000003.pth"
    newest.write_bytes(newest.read_bytes()[:5000])
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 2
    assert equal(model, states[2])
    assert "model_0000003.pth: " in caplog.text and "trying the previous checkpoint" in caplog.text
    checkpointer.save("model_0000002", iteration=2)
    assert not newest.exists(), "training resumed from before it"


def test_runs_do_not_resume_from_weights_that_are_not_finite(model, tmp_path, caplog):
    checkpointer = FBNetV3Checkpointer(model, str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    state = shifted(model, float("inf"))
    torch.save({"model": state, "iteration": 2}, tmp_path / "model_0000002.pth")
    path, checkpoint = newest_checkpoint(tmp_path)
    assert (path.name, checkpoint["iteration"]) == ("model_0000001.pth", 1)
    assert "model_0000002.pth: NaN or infinity in" in caplog.text


def test_a_full_disk_leaves_the_previous_checkpoint(model, tmp_path, monkeypatch):
    checkpointer = FBNetV3Checkpointer(model, str(tmp_path))
    checkpointer.save("model_final")
    before = (tmp_path / "model_final.pth").read_bytes()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OutputError, match="model_final.pth: cannot be written: No space left on device"):
        checkpointer.save("model_final")
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]


def test_without_a_complete_checkpoint(model, tmp_path):
    (tmp_path / "model_0000001.pth").write_bytes(b"\x80")
    with pytest.raises(WeightsError, match="all checkpoints are corrupt; the oldest: .*model_0000001.pth"):
        FBNetV3Checkpointer(model, str(tmp_path)).resume_or_load("", resume=True)
