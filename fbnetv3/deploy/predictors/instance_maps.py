"""Turn the maps that a detector predicts per object into masks and keypoints of the image, as detectron2 does.

Both maps are small and square, and cover the object's box.
"""

from __future__ import annotations

import numpy as np

_CUBIC = -0.75  # torch's coefficient of bicubic interpolation
_MASK_THRESHOLD = 0.5


def paste_masks(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the masks of objects in an image, bool (K, height, width).

    Args:
        masks: probabilities within each box, (K, M, M).
        boxes: (K, 4), as x0, y0, x1, y1, in pixels of the image.
        height: of the image.
        width: of the image.
    """
    pasted = np.zeros((len(masks), height, width), bool)
    for mask, (x0, y0, x1, y1), result in zip(masks, boxes, pasted, strict=True):
        # One pixel around the box may still see part of the mask
        left, top = (max(0, int(np.floor(start)) - 1) for start in (x0, y0))
        right, bottom = min(width, int(np.ceil(x1)) + 1), min(height, int(np.ceil(y1)) + 1)
        columns = _linear_weights(np.arange(left, right) + 0.5, x0, x1, mask.shape[1])
        rows = _linear_weights(np.arange(top, bottom) + 0.5, y0, y1, mask.shape[0])
        result[top:bottom, left:right] = rows @ mask @ columns.T >= _MASK_THRESHOLD
    return pasted


def encode_mask_runs(masks: np.ndarray) -> np.ndarray:
    """Return masks, bool (K, height, width), as an array of K arrays: where the pixels, row by row, change.

    A mask covers the pixels from its first change to before its second, from its third to before its fourth, and so on.
    """
    runs = np.empty(len(masks), object)
    for i, mask in enumerate(masks):
        runs[i] = np.flatnonzero(np.diff(mask.ravel(), prepend=False, append=False))
    return runs


def mask_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Return the intersection over union of two masks, given by where they change; 1 if both are empty."""
    # Where one mask changes, so does the symmetric difference; two changes at one place cancel
    difference = _covered(np.sort(np.concatenate((first, second))))
    area = _covered(first) + _covered(second)
    return (area - difference) / (area + difference) if area else 1.0


def _covered(changes: np.ndarray) -> int:
    """Return the number of pixels of a mask, given by where it changes."""
    return int((changes[1::2] - changes[::2]).sum())


def locate_keypoints(heatmaps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the keypoints of objects, float32 (K, P, 3): x, y in pixels of the boxes, and a score above 0.

    Each keypoint is the maximum of its heatmap, resized to the box. Scores are comparable between objects of different
    sizes; they are not probabilities.

    Args:
        heatmaps: logits within each box, (K, P, S, S).
        boxes: (K, 4), as x0, y0, x1, y1.
    """
    keypoints = np.zeros((*heatmaps.shape[:2], 3), np.float32)
    for maps, (x0, y0, x1, y1), result in zip(heatmaps, boxes, keypoints, strict=True):
        width, height = (max(end - start, 1) for start, end in ((x0, x1), (y0, y1)))
        rows = _cubic_weights(maps.shape[1], int(np.ceil(height)))
        columns = _cubic_weights(maps.shape[2], int(np.ceil(width)))
        resized = rows @ maps @ columns.T
        flat = resized.reshape(len(maps), -1)
        y, x = np.unravel_index(flat.argmax(1), resized.shape[1:])
        # The box has a fractional size, the resized map a whole one
        result[:, 0] = x0 + (x + 0.5) * width / resized.shape[2]
        result[:, 1] = y0 + (y + 0.5) * height / resized.shape[1]
        result[:, 2] = 1 / np.exp(maps - flat.max(1)[:, None, None]).sum((1, 2))
    return keypoints


def _linear_weights(positions: np.ndarray, start: float, end: float, size: int) -> np.ndarray:
    """Return the weights (positions, size) of linear interpolation in a map over [start, end]; 0 outside."""
    source = (positions - start) / (end - start) * size - 0.5
    return np.clip(1 - np.abs(source[:, None] - np.arange(size)), 0, None).astype(np.float32)


def _cubic_weights(size: int, new_size: int) -> np.ndarray:
    """Return the weights (new_size, size) of bicubic resizing along one axis, as in torch; borders are repeated."""
    source = (np.arange(new_size) + 0.5) * size / new_size - 0.5
    first = np.floor(source).astype(int) - 1
    weights = np.zeros((new_size, size), np.float32)
    for offset in range(4):
        distance = np.abs(source - (first + offset))
        near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * _CUBIC - 4 * _CUBIC
        columns = np.clip(first + offset, 0, size - 1)
        np.add.at(weights, (np.arange(new_size), columns), np.where(distance <= 1, near, far))
    return weights
