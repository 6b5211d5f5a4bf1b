"""Parts of detectors that are registered with detectron2: backbones, RPN heads, box heads."""
