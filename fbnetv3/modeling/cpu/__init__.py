"""Code that exists only for speed on CPUs: without it, everything else would work the same, but more slowly.

| module | what it does | gain with AVX-512 | gain with AVX2 | torch |
| --- | --- | --- | --- | --- |
| `depthwise` | weight gradient of wide depthwise convolutions by narrow ones (training) | 2.7x at 7 x 7 pixels, 1.8x at 14 x 14, 0.8x at 28 x 28 | 2.1x, 0.8x, 0.8x | needed with 2.14 |
| `malloc` | keeps freed memory for the next step (training, detection) | 1.14x for a detection (docs/benchmarks.md) | not measured | any; depends on glibc, not on torch |
| `inference_blocks` | folds BatchNorm, computes squeezes as matrix products, works in place | 1.2x for FBNetV3-B | 1.4x | any |
| `mkldnn_ops` | convolutions with weights in oneDNN's memory layout, through private operators | 1.25x for FBNetV3-B | 0.6x: not used | 2.14; `F.conv2d` without the operators |
| `expanding_pooler` | box head's first 1x1 convolution before ROIAlign | 1.7x for both together | 2.2x | any |

`OMP_NUM_THREADS=1 python benchmarks/cpu_pieces.py` prints these ratios of median wall times; recorded on two AMD EPYCs with
torch 2.14.1, the one with AVX2 under load. A complete training step of FBNetV3-B with `depthwise` and `malloc` is 2.3 to 2.5
times as fast as timm's in a plain loop (docs/benchmarks.md, section Training step).

`expanding_pooler` imports detectron2; the others need only torch and torchvision.
"""  # noqa: E501 - a table
