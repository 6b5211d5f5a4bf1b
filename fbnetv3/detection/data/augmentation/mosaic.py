"""Mosaic: four training images joined at a random point, so that objects appear smaller and out of their context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fbnetv3.detection.data.augmentation.training_sample import Size, TrainingSample, place_on_canvas

NUM_IMAGES = 4
_CENTER_RANGE = (0.25, 0.75)  # of the joint, as a fraction of the canvas


def join_mosaic(
    samples: Sequence[TrainingSample],
    scales: tuple[float, float],
    fill: Sequence[float],
    size: Size | None = None,
) -> TrainingSample:
    """Join four images at a random point of a canvas (YOLOv4, Bochkovskiy et al. 2020).

    Each image is scaled by a random factor and has a corner at the joint; what exceeds its quadrant is cut off. Random
    numbers are NumPy's.

    Args:
        samples: upper left, upper right, lower left and lower right image; masks are bitmaps. They may be modified.
        scales: range of the factors.
        fill: color of the parts that no image covers, a value per channel.
        size: height and width of the canvas; default: those of the first image.
    """
    height, width = size or samples[0].size
    first = samples[0].image
    canvas = np.empty((height, width, *first.shape[2:]), first.dtype)
    canvas[:] = np.round(fill).astype(canvas.dtype)
    joint_x, joint_y = (round(side * np.random.uniform(*_CENTER_RANGE)) for side in (width, height))
    annotations = []
    for i, sample in enumerate(samples):
        scale = np.random.uniform(*scales)
        is_right, is_lower = i % 2, i // 2
        window = (
            joint_x if is_right else 0,
            joint_y if is_lower else 0,
            width if is_right else joint_x,
            height if is_lower else joint_y,
        )
        scaled_height, scaled_width = (max(1, round(side * scale)) for side in sample.size)
        corner = (
            joint_x if is_right else joint_x - scaled_width,
            joint_y if is_lower else joint_y - scaled_height,
        )
        annotations += place_on_canvas(sample, canvas, scale, corner, window)
    return TrainingSample(canvas, annotations)
