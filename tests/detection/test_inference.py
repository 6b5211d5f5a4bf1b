"""Detectors optimised for inference find what the detectors find."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn
from torchvision.ops import roi_align

from fbnetv3.detection import optimize_for_inference
from fbnetv3.detection.inference.optimize_detector import FrugalOutputLayers, FrugalRPN, FusedBoxHead
from fbnetv3.modeling.cpu.expanding_pooler import ExpandingPooler, align_rows
from tests.detection.detectors import detect, inputs_of, settled, small_config
from tests.modeling.test_fused import assert_close

ALL = [
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


def assert_same_detections(found, expected):
    """The same boxes, scores and classes, in whichever order where scores are equal up to rounding."""
    assert len(found) == len(expected)
    for i in range(len(expected)):
        same = (found.pred_classes == expected.pred_classes[i]).nonzero().squeeze(1)
        distance = (found.pred_boxes.tensor[same] - expected.pred_boxes.tensor[i]).abs().amax(dim=1)
        best = same[distance.argmin()]
        assert distance.min() < 0.01
        assert abs(found.scores[best] - expected.scores[i]) < 1e-3
        if expected.has("pred_masks"):
            assert (found.pred_masks[best] != expected.pred_masks[i]).float().mean() < 0.01


@pytest.mark.parametrize("name", ALL)
def test_detections_are_the_detectors(name):
    model = settled(config(name))
    state = copy.deepcopy(model.state_dict())
    optimized = optimize_for_inference(model)
    inputs = inputs_of()
    pairs = [*zip(detect(optimized, inputs), detect(model, inputs), strict=True)]
    assert sum(len(expected) for _, expected in pairs) > 50
    for found, expected in pairs:
        assert_same_detections(found, expected)
    for x in inputs[:2]:  # alone, where maps are smaller than the regions cut from them
        assert_same_detections(*detect(optimized, [x]), *detect(model, [x]))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not optimized.training and not any(p.requires_grad for p in optimized.parameters())


def test_what_is_optimised():
    optimized = optimize_for_inference(settled(config("faster_rcnn_fbnetv3_a_C4")))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in optimized.modules())
    assert isinstance(optimized.proposal_generator, FrugalRPN)
    assert isinstance(optimized.roi_heads.box_head, FusedBoxHead)
    assert isinstance(optimized.roi_heads.box_pooler, ExpandingPooler)
    assert isinstance(optimized.roi_heads.box_predictor, FrugalOutputLayers)
    pyramid = optimize_for_inference(settled(config("retinanet_fbnetv3_a_FPN")))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in pyramid.modules())


def test_norms_that_cannot_be_folded_stay():
    cfg = config("faster_rcnn_fbnetv3_g_FPN")
    cfg.MODEL.FBNETV3.NORM = cfg.MODEL.FPN.NORM = "GN"
    model = settled(cfg)
    optimized = optimize_for_inference(model)
    assert any(isinstance(m, nn.GroupNorm) for m in optimized.backbone.modules())
    for pair in zip(detect(optimized, inputs_of()), detect(model, inputs_of()), strict=True):
        assert_same_detections(*pair)


@pytest.mark.parametrize("levels", [1, 3])
def test_proposals_are_detectron2s_to_the_bit(levels):
    name = "faster_rcnn_fbnetv3_a_C4" if levels == 1 else "faster_rcnn_fbnetv3_g_FPN"
    rpn = build_model(config(name)).proposal_generator.eval()
    frugal = copy.copy(rpn)
    frugal.__class__ = FrugalRPN
    generator = torch.Generator().manual_seed(levels)
    per_place = rpn.rpn_head.objectness_logits.out_channels
    sizes = [(20 - 3 * i, 30 - 5 * i) for i in range(len(rpn.in_features))]
    anchors = rpn.anchor_generator([torch.zeros(2, 1, *size) for size in sizes])
    logits = [torch.randn(2, h * w * per_place, generator=generator) for h, w in sizes]
    deltas = [torch.randn(2, h * w * per_place, 4, generator=generator) for h, w in sizes]
    logits[0][0, 7] = deltas[0][1, 9, 2] = float("nan")
    for wanted in (20, 75, 5000):  # the last: more than there are
        rpn.post_nms_topk = {False: wanted, True: wanted}
        frugal.post_nms_topk = rpn.post_nms_topk
        arguments = (anchors, logits, deltas, [(320, 400), (300, 333)])
        for found, expected in zip(
            frugal.predict_proposals(*arguments), rpn.predict_proposals(*arguments), strict=True
        ):
            assert len(expected) == wanted or wanted == 5000
            assert torch.equal(found.proposal_boxes.tensor, expected.proposal_boxes.tensor)
            assert torch.equal(found.objectness_logits, expected.objectness_logits)


@pytest.mark.parametrize("agnostic", [False, True])
def test_decoded_detections_are_detectron2s_to_the_bit(agnostic):
    cfg = config("faster_rcnn_fbnetv3_a_C4")
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = agnostic
    layers = build_model(cfg).roi_heads.box_predictor
    frugal = copy.copy(layers)
    frugal.__class__ = FrugalOutputLayers
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
    expected, found = (x.inference((scores, deltas), proposals) for x in (layers, frugal))
    assert [len(x) for x in expected[0]][1] == 0 and len(expected[0][0]) > 20
    for a, b in zip(expected[0], found[0], strict=True):
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)
    assert all(torch.equal(a, b) for a, b in zip(expected[1][:2], found[1][:2], strict=True))
    boxes = frugal.predict_boxes((scores, deltas), proposals)[2].reshape(25, -1, 4)
    boxes = boxes[found[1][2], 0 if agnostic else found[0][2].pred_classes]
    inside = torch.stack((boxes[:, 0::2].clamp(0, 200), boxes[:, 1::2].clamp(0, 300)), dim=2).flatten(1)
    assert torch.equal(
        inside, found[0][2].pred_boxes.tensor
    )  # where detectron2 counts without the rows it has left out


def regions(count, size, images=2, most=150.0):
    generator = torch.Generator().manual_seed(0)
    low = torch.rand(count, 2, generator=generator) * size
    high = low + most * torch.rand(count, 2, generator=generator)
    return torch.cat((torch.randint(images, (count, 1), generator=generator).float(), low, high), dim=1)


@pytest.mark.parametrize("height, width", [(13, 20), (1, 40), (1, 1)])
def test_aligned_regions_are_torchvisions(height, width):
    """Regions within the map, beyond it, and without an area."""
    x = torch.randn(2, 5, height, width).contiguous(memory_format=torch.channels_last)
    rois = regions(50, 16 * max(height, width))
    rois[7, 3:] = rois[7, 1:3]
    rois[8, 1:] = torch.tensor([-50.0, -40.0, 30.0, 20.0])
    rois[9, 3] = rois[9, 1]
    samples = ((rois[:, 3:] - rois[:, 1:3]) / 16 / 6).ceil().amax(dim=1)
    found = align_rows(x, rois, samples, 6, 1 / 16)
    assert_close(found, roi_align(x, rois, (6, 6), 1 / 16, 0, True), 1e-5)
    assert align_rows(x, rois[:0], samples[:0], 6, 1 / 16).shape == (0, 5, 6, 6)


@pytest.mark.parametrize("side", [64, 640])
@torch.inference_mode()
def test_the_convolution_before_the_pooler_gives_what_it_gives_after_it(side):
    """On a small map it goes first, on a large one after; boxes that reach out of the image do no harm."""
    model = settled(config("faster_rcnn_fbnetv3_a_C4"))
    optimized = optimize_for_inference(model)
    maps = [torch.randn(2, 104, side // 16, side // 16)]
    boxes = [Boxes(regions(n, side, most=1.5 * side)[:, 1:] - side / 4) for n in (9, 0)]
    calls = []
    optimized.roi_heads.box_pooler.pooler.register_forward_hook(lambda *_: calls.append(1))
    found = optimized.roi_heads.box_pooler(maps, boxes)
    expand = model.roi_heads.box_head.blocks.stages[0][0].expand
    assert_close(found, expand(model.roi_heads.box_pooler(maps, boxes)), 1e-5)
    assert bool(calls) == (side == 640)
    features = model.roi_heads.box_head(model.roi_heads.box_pooler(maps, boxes))
    assert_close(optimized.roi_heads.box_head(found), features, 1e-5)
