"""Code that exists only for speed on CPUs: without it, everything else would work the same, but more slowly.

| module | what it does | measured gain | torch |
| --- | --- | --- | --- |
| `depthwise` | weight gradient of wide depthwise convolutions by narrow ones (training) | 2.2x for the gradient of a 5 x 5 layer at 7 x 7 pixels, none at 14 x 14 (a) | needed with 2.14 |
| `malloc` | keeps freed memory for the next step (training, detection) | 1.14x for a detection, 69.4 to 60.9 ms (b) | any; depends on glibc, not on torch |
| `inference_blocks` | folds BatchNorm, computes squeezes as matrix products, works in place | 1.7x for a detector's trunk, 26.1 to 15.2 ms (c); 1.3 to 1.5x for FBNetV3-B without packed weights (a) | any |
| `mkldnn_ops` | convolutions with weights in oneDNN's memory layout, through private operators | part of (c), with AVX-512; not used with AVX2, where it took 3.6x the time of a detector's box head, 135 against 38 ms (a) | 2.14; `F.conv2d` without the operators |
| `expanding_pooler` | box head's first 1x1 convolution before ROIAlign | 1.4x for both together (a) | any |

Recorded on an AMD EPYC with torch 2.14.1: (a) minimum CPU time of several runs, one thread, AVX2, on a loaded machine;
(b) docs/benchmarks.md, section Detection, wall time; (c) docs/detection.md, section Speed, CPU time. A complete training
step of FBNetV3-B with `depthwise` and `malloc` is 2.3 to 2.5 times as fast as timm's in a plain loop
(docs/benchmarks.md, section Training step).

`expanding_pooler` imports detectron2; the others need only torch and torchvision.
"""  # noqa: E501 - a table
