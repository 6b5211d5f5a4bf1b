"""The CPU-only code of `fbnetv3.modeling.cpu` against the same computation without it, piece by piece."""

import argparse
import copy

import torch
from measure import compare, report_comparison
from torch import nn
from torchvision.ops import Conv2dNormActivation

import fbnetv3
from fbnetv3.modeling.cpu import mkldnn_ops
from fbnetv3.modeling.cpu.depthwise import DepthwiseConv2d
from fbnetv3.modeling.cpu.inference_blocks import FusedConv, fuse_blocks


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    print(f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}, {args.threads} thread(s)")
    compare_depthwise(args.rounds)
    compare_inference(args.rounds)
    compare_pooling(args.rounds)


def compare_depthwise(rounds):
    """Compare the backward pass of 5 x 5 depthwise convolutions with torch's."""
    for channels, side in ((120, 28), (720, 14), (1104, 7)):
        x = channels_last(torch.randn(16, channels, side, side))
        layers = [
            kind(channels, channels, 5, padding=2, groups=channels, bias=False)
            for kind in (DepthwiseConv2d, nn.Conv2d)
        ]
        outputs = [layer(x) for layer in layers]
        backward = [lambda y=y: y.backward(torch.ones_like(y), retain_graph=True) for y in outputs]
        result = compare(*backward, rounds)
        report_comparison(
            f"depthwise: gradient, {channels} channels, {side} x {side}", result, peer_name="nn.Conv2d"
        )


def compare_inference(rounds):
    """Compare FBNetV3-B with fused blocks, and with packed weights, to the same network without them."""
    network = channels_last(fbnetv3.create_model("fbnetv3_b").eval())
    fused = {}
    for packs in (False, True):
        mkldnn_ops.PACKS_WEIGHTS = packs
        fused[packs] = channels_last(fuse_blocks(copy.deepcopy(network)))
    x = channels_last(torch.randn(1, 3, 224, 224))
    with torch.inference_mode():
        result = compare(lambda: fused[False](x), lambda: network(x), rounds)
        report_comparison("inference_blocks: fbnetv3_b at 224, batch 1", result, peer_name="not fused")
        result = compare(lambda: fused[True](x), lambda: fused[False](x), rounds)
        report_comparison("mkldnn_ops: fbnetv3_b at 224, batch 1", result, peer_name="not packed")


def compare_pooling(rounds):
    """Compare a 1x1 convolution before ROIAlign, 75 regions of a 14 x 19 map, with one after it."""
    from detectron2.modeling.poolers import ROIPooler
    from detectron2.structures import Boxes

    from fbnetv3.modeling.cpu.expanding_pooler import ExpandingPooler

    pooler = ROIPooler(7, (1 / 16,), 0, "ROIAlignV2")
    expansion = FusedConv(*Conv2dNormActivation(112, 672, 1, activation_layer=nn.ReLU).eval())
    expanding_pooler = ExpandingPooler(pooler, expansion)
    x = channels_last(torch.randn(1, 112, 14, 19))
    corners = torch.rand(75, 2) * torch.tensor([152.0, 112.0])
    boxes = [Boxes(torch.cat([corners, corners + 8 + torch.rand(75, 2) * 100], 1))]
    with torch.inference_mode():
        result = compare(
            lambda: expanding_pooler([x], boxes), lambda: expansion(pooler([x], boxes)), rounds
        )
    report_comparison("expanding_pooler: 75 regions", result, peer_name="pooled first")


def channels_last(value):
    return value.to(memory_format=torch.channels_last)


if __name__ == "__main__":
    main()
