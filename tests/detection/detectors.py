"""Small detectors and their inputs for tests."""

import torch
import yaml
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from fbnetv3.detection import config_file, get_config


def small_config(name="faster_rcnn_fbnetv3_a_C4"):
    """Return the config of a detector with few layers, for 5 classes, on the CPU."""
    cfg = get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FBNETV3.ARCH = "fbnetv3_a0"
    cfg.MODEL.FBNETV3.NORM = "BN"
    cfg.MODEL.FPN.NORM = "BN"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = 5
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
    return cfg


def image(height=64, width=96, boxes=((8.0, 8.0, 40.0, 48.0),), masks=False, seed=0):
    """Return an input as from detectron2's mapper; boxes are (x0, y0, x1, y1) in pixels."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % 5
    if masks:
        bits = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for bit, (x0, y0, x1, y1) in zip(bits, boxes, strict=True):
            bit[int(y0) : int(y1), int(x0) : int(x1)] = True
        instances.gt_masks = BitMasks(bits)
    pixels = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed))
    return {"image": pixels.float(), "instances": instances, "height": height, "width": width}


def sample_inputs(masks=False):
    """Return three inputs of different sizes."""
    return [
        image(96, 128, boxes=((8.0, 8.0, 72.0, 56.0), (70.0, 30.0, 120.0, 90.0)), masks=masks),
        image(128, 90, masks=masks, seed=3),
        image(150, 1, boxes=((0.0, 10.0, 1.0, 100.0),), masks=masks, seed=4),
    ]


def calibrated_detector(cfg, inputs=None, min_variance=0.0):
    """Build a detector with BatchNorm statistics of images, so that scores differ as after training, some of them high.

    Args:
        cfg: its config.
        inputs: the images, as from detectron2's mapper; default: two of `sample_inputs`.
        min_variance: lower bound for the variance of a channel; channels with less would amplify rounding errors.
    """
    torch.manual_seed(0)
    model = build_model(cfg)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 1.0
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.uniform_(m.bias, -0.3, 0.3)
    for name, value in model.named_parameters():
        if name.endswith(("cls_score.weight", "objectness_logits.weight", "bbox_pred.weight")):
            value.data *= 30
        if name == "head.cls_score.bias":
            value.data.zero_()
    with torch.no_grad(), EventStorage():
        model.train()(inputs or sample_inputs(cfg.MODEL.MASK_ON)[:2])
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_var.clamp_(min=min_variance)
    return model.eval()


def train_step(model, inputs):
    """Return the losses of one step, after the backward pass."""
    model.train()
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}


def detect(model, inputs):
    """Return the detections in each image."""
    with torch.no_grad():
        return [output["instances"] for output in model.eval()(inputs)]


def assert_same_detections(actual, expected):
    """Compare boxes, scores and classes, in any order because scores may be equal up to rounding."""
    assert len(actual) == len(expected)
    for i in range(len(expected)):
        same_class = (actual.pred_classes == expected.pred_classes[i]).nonzero().squeeze(1)
        distance = (actual.pred_boxes.tensor[same_class] - expected.pred_boxes.tensor[i]).abs().amax(dim=1)
        nearest = same_class[distance.argmin()]
        assert distance.min() < 0.01
        assert abs(actual.scores[nearest] - expected.scores[i]) < 1e-3
        if expected.has("pred_masks"):
            assert (actual.pred_masks[nearest] != expected.pred_masks[i]).float().mean() < 0.01


def write_digits_config(file, scenes):
    """Write a training config for scenes of digits: four steps of two small images, in two sizes, flipped or not."""
    values = {
        "_BASE_": config_file("faster_rcnn_fbnetv3_digits_C4"),
        "DATASETS": {
            "CUSTOM": {
                "TRAIN_ANNOTATIONS": str(scenes / "train.json"),
                "TRAIN_IMAGES": str(scenes / "train"),
                "TEST_ANNOTATIONS": str(scenes / "test.json"),
                "TEST_IMAGES": str(scenes / "test"),
            }
        },
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {"MIN_SIZE_TRAIN": [64, 80], "MAX_SIZE_TRAIN": 112, "RANDOM_FLIP": "horizontal"},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 4, "WARMUP_ITERS": 1, "CHECKPOINT_PERIOD": 2},
        "TEST": {"EVAL_PERIOD": 0},
    }
    file.write_text(yaml.safe_dump(values))
    return file
