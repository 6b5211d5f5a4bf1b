"""Detectors optimized for inference have the same detections."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn
from torchvision.ops import roi_align

from fbnetv3.detection import optimize_for_inference
from fbnetv3.detection.inference.optimize_detector import (
    FusedBoxHead,
    LazyDecodeOutputLayers,
    LazyDecodeRPN,
)
from fbnetv3.modeling.cpu.expanding_pooler import ExpandingPooler, roi_align_channels_last
from tests.detection.detectors import (
    assert_same_detections,
    calibrated_detector,
    detect,
    sample_inputs,
    small_config,
)
from tests.modeling.cpu.test_inference_blocks import assert_close

CONFIGS = [
    "faster_rcnn_fbnetv3_a_C4",
    "faster_rcnn_fbnetv3_g_FPN",
    "mask_rcnn_fbnetv3_a_C4",
    "retinanet_fbnetv3_a_FPN",
    "faster_rcnn_torchvision_efficientnet_b0_C4",
]


def config(name):
    cfg = small_config(name)
    if "torchvision" in name:
        cfg.MODEL.FBNETV3.ARCH = "torchvision/efficientnet_b0"
    if cfg.MODEL.MASK_ON:
        cfg.MODEL.ROI_MASK_HEAD.NUM_CONV, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 1, 16
    return cfg


@pytest.mark.parametrize("name", CONFIGS)
def test_detections_are_the_same(name):
    model = calibrated_detector(config(name))
    state = copy.deepcopy(model.state_dict())
    optimized = optimize_for_inference(model)
    inputs = sample_inputs()
    pairs = [*zip(detect(optimized, inputs), detect(model, inputs), strict=True)]
    assert sum(len(expected) for _, expected in pairs) > 50
    for actual, expected in pairs:
        assert_same_detections(actual, expected)
    for x in inputs[:2]:  # separately, with feature maps smaller than the pooled regions
        assert_same_detections(*detect(optimized, [x]), *detect(model, [x]))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not optimized.training and not any(p.requires_grad for p in optimized.parameters())


def test_modules_are_replaced():
    optimized = optimize_for_inference(calibrated_detector(config("faster_rcnn_fbnetv3_a_C4")))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in optimized.modules())
    assert isinstance(optimized.proposal_generator, LazyDecodeRPN)
    assert isinstance(optimized.roi_heads.box_head, FusedBoxHead)
    assert isinstance(optimized.roi_heads.box_pooler, ExpandingPooler)
    assert isinstance(optimized.roi_heads.box_predictor, LazyDecodeOutputLayers)
    retinanet = optimize_for_inference(calibrated_detector(config("retinanet_fbnetv3_a_FPN")))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in retinanet.modules())


def test_norms_that_cannot_be_folded_are_kept():
    cfg = config("faster_rcnn_fbnetv3_g_FPN")
    cfg.MODEL.FBNETV3.NORM = cfg.MODEL.FPN.NORM = "GN"
    model = calibrated_detector(cfg)
    optimized = optimize_for_inference(model)
    assert any(isinstance(m, nn.GroupNorm) for m in optimized.backbone.modules())
    for pair in zip(detect(optimized, sample_inputs()), detect(model, sample_inputs()), strict=True):
        assert_same_detections(*pair)


@pytest.mark.parametrize("levels", [1, 3])
def test_proposals_are_bitwise_those_of_detectron2(levels):
    name = "faster_rcnn_fbnetv3_a_C4" if levels == 1 else "faster_rcnn_fbnetv3_g_FPN"
    rpn = build_model(config(name)).proposal_generator.eval()
    lazy = copy.copy(rpn)
    lazy.__class__ = LazyDecodeRPN
    generator = torch.Generator().manual_seed(levels)
    per_pixel = rpn.rpn_head.objectness_logits.out_channels
    sizes = [(20 - 3 * i, 30 - 5 * i) for i in range(len(rpn.in_features))]
    anchors = rpn.anchor_generator([torch.zeros(2, 1, *size) for size in sizes])
    logits = [torch.randn(2, h * w * per_pixel, generator=generator) for h, w in sizes]
    deltas = [torch.randn(2, h * w * per_pixel, 4, generator=generator) for h, w in sizes]
    logits[0][0, 7] = deltas[0][1, 9, 2] = float("nan")
    for count in (20, 75, 5000):  # the last exceeds the number of boxes
        rpn.post_nms_topk = {False: count, True: count}
        lazy.post_nms_topk = rpn.post_nms_topk
        arguments = (anchors, logits, deltas, [(320, 400), (300, 333)])
        for actual, expected in zip(
            lazy.predict_proposals(*arguments), rpn.predict_proposals(*arguments), strict=True
        ):
            assert len(expected) == count or count == 5000
            assert torch.equal(actual.proposal_boxes.tensor, expected.proposal_boxes.tensor)
            assert torch.equal(actual.objectness_logits, expected.objectness_logits)


@pytest.mark.parametrize("agnostic", [False, True])
def test_detections_are_bitwise_those_of_detectron2(agnostic):
    cfg = config("faster_rcnn_fbnetv3_a_C4")
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = agnostic
    layers = build_model(cfg).roi_heads.box_predictor
    lazy = copy.copy(layers)
    lazy.__class__ = LazyDecodeOutputLayers
    generator = torch.Generator().manual_seed(1)
    proposals = []
    for size, count in (((200, 300), 40), ((90, 80), 0), ((300, 200), 25)):
        low = torch.rand(count, 2, generator=generator) * 150
        proposals.append(Instances(size))
        sides = 10 + 90 * torch.rand(count, 2, generator=generator)
        proposals[-1].proposal_boxes = Boxes(torch.cat((low, low + sides), dim=1))
    scores = 2 * torch.randn(65, 6, generator=generator)
    deltas = torch.randn(65, 4 if agnostic else 20, generator=generator)
    scores[45, 2] = deltas[50, 1] = float("nan")
    expected, actual = (x.inference((scores, deltas), proposals) for x in (layers, lazy))
    assert [len(x) for x in expected[0]][1] == 0 and len(expected[0][0]) > 20
    for a, b in zip(expected[0], actual[0], strict=True):
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)
    assert all(torch.equal(a, b) for a, b in zip(expected[1][:2], actual[1][:2], strict=True))
    boxes = lazy.predict_boxes((scores, deltas), proposals)[2].reshape(25, -1, 4)
    boxes = boxes[actual[1][2], 0 if agnostic else actual[0][2].pred_classes]
    inside = torch.stack((boxes[:, 0::2].clamp(0, 200), boxes[:, 1::2].clamp(0, 300)), dim=2).flatten(1)
    # detectron2's indices of the third image do not count the dropped rows with NaN
    assert torch.equal(inside, actual[0][2].pred_boxes.tensor)


def random_rois(count, size, images=2, max_side=150.0):
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(count, 2, generator=generator) * size
    high = low + max_side * torch.rand(count, 2, generator=generator)
    return torch.cat((torch.randint(images, (count, 1), generator=generator).float(), low, high), dim=1)


@pytest.mark.parametrize("height, width", [(13, 20), (1, 40), (1, 1)])
def test_roi_align_is_torchvisions(height, width):
    """Regions inside and outside the feature map, and without area."""
    x = torch.randn(2, 5, height, width).contiguous(memory_format=torch.channels_last)
    rois = random_rois(50, 16 * max(height, width))
    rois[7, 3:] = rois[7, 1:3]
    rois[8, 1:] = torch.tensor([-50.0, -40.0, 30.0, 20.0])
    rois[9, 3] = rois[9, 1]
    samples = ((rois[:, 3:] - rois[:, 1:3]) / 16 / 6).ceil().amax(dim=1)
    pooled = roi_align_channels_last(x, rois, samples, 6, 1 / 16)
    assert_close(pooled, roi_align(x, rois, (6, 6), 1 / 16, 0, True), 1e-5)
    assert roi_align_channels_last(x, rois[:0], samples[:0], 6, 1 / 16).shape == (0, 5, 6, 6)


@pytest.mark.parametrize("side", [64, 640])
@torch.inference_mode()
def test_convolution_and_pooling_commute(side):
    """The convolution is first on small feature maps and last on large ones; boxes may exceed the image."""
    model = calibrated_detector(config("faster_rcnn_fbnetv3_a_C4"))
    optimized = optimize_for_inference(model)
    maps = [torch.randn(2, 104, side // 16, side // 16)]
    boxes = [Boxes(random_rois(n, side, max_side=1.5 * side)[:, 1:] - side / 4) for n in (9, 0)]
    calls = []
    optimized.roi_heads.box_pooler.pooler.register_forward_hook(lambda *_: calls.append(1))
    pooled = optimized.roi_heads.box_pooler(maps, boxes)
    expand = model.roi_heads.box_head.blocks.stages[0][0].expand
    assert_close(pooled, expand(model.roi_heads.box_pooler(maps, boxes)), 1e-5)
    assert bool(calls) == (side == 640)
    features = model.roi_heads.box_head(model.roi_heads.box_pooler(maps, boxes))
    assert_close(optimized.roi_heads.box_head(pooled), features, 1e-5)
