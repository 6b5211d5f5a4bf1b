"""Inputs of a detector on another device; torch's meta device, which every machine has, stands in for a GPU."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks

from fbnetv3.detection.data.detection_loaders import build_test_loader, build_train_loader
from fbnetv3.detection.data.input_transfer import send_inputs
from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.training.processes.distributed import SINGLE_PROCESS


def sample_input():
    instances = Instances((4, 6))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 1.0, 2.0, 3.0]]))
    instances.gt_classes = torch.tensor([5])
    instances.gt_keypoints = Keypoints(torch.zeros(1, 17, 3))
    instances.gt_masks = BitMasks(torch.ones(1, 4, 6, dtype=torch.bool))
    return {"image": torch.zeros(3, 4, 6, dtype=torch.uint8), "instances": instances, "file_name": "a.jpg"}


def test_tensors_are_sent_and_everything_else_stays():
    entry = sample_input()
    (sent,) = send_inputs([entry], torch.device("meta"))
    assert (sent["image"].device.type, sent["image"].dtype) == ("meta", torch.uint8)
    assert sent["file_name"] == "a.jpg"
    fields = sent["instances"].get_fields()
    assert fields.keys() == entry["instances"].get_fields().keys()
    assert sent["instances"].image_size == (4, 6)
    assert {name: type(field) for name, field in fields.items()} == {
        "gt_boxes": Boxes,
        "gt_classes": torch.Tensor,
        "gt_keypoints": Keypoints,
        "gt_masks": BitMasks,
    }
    assert {field.device.type for field in fields.values()} == {"meta"}
    # The loader's own batch, which error reports show, is as before
    assert entry["image"].device.type == entry["instances"].gt_boxes.device.type == "cpu"


def test_polygons_stay_on_the_cpu():
    """As with detectron2, which rasterizes them there."""
    entry = sample_input()
    entry["instances"].gt_masks = PolygonMasks([[np.array([0.0, 0, 2, 0, 2, 2])]])
    (sent,) = send_inputs([entry], torch.device("meta"))
    assert sent["instances"].gt_masks is entry["instances"].gt_masks


def test_inputs_for_the_cpu_are_not_copied():
    entry = sample_input()
    (sent,) = send_inputs([entry], torch.device("cpu"))
    assert sent is entry


def test_images_for_a_gpu_are_in_pinned_memory(digits_config):
    for device, is_pinned in (("cpu", False), ("cuda", True)):
        cfg = load_detection_config(digits_config).clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = device
        assert build_train_loader(cfg, 5, SINGLE_PROCESS).pin_memory is is_pinned
        assert build_test_loader(cfg, "custom_test").pin_memory is is_pinned


@pytest.mark.parametrize(
    ("cpus", "processes", "device", "workers"),
    [(16, 1, "cuda", 4), (16, 8, "cuda", 1), (1, 1, "cuda", 1), (3, 1, "cpu", 2), (1, 1, "cpu", 0)],
)
def test_there_are_no_more_workers_than_cpus_for_them(
    digits_config, monkeypatch, cpus, processes, device, workers
):
    """One CPU is left to the process that trains; a GPU always has a worker."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    cfg = load_detection_config(digits_config, ["DATALOADER.NUM_WORKERS", "4"]).clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    assert build_train_loader(cfg, 5, SINGLE_PROCESS).num_workers == workers
