"""Copy-paste: objects of another training image, cut out along their masks and put on top."""

from __future__ import annotations

import numpy as np

from fbnetv3.detection.data.augmentation.training_sample import (
    VISIBLE,
    Annotation,
    TrainingSample,
    place_on_canvas,
)

_PASTED_FRACTION = 0.5  # of the source's objects, on average
_LABELED = 1  # COCO's visibility of keypoints that are annotated but not visible


def paste_objects(target: TrainingSample, source: TrainingSample, min_visible: float) -> TrainingSample:
    """Paste a random half of an image's objects into another (Ghiasi et al. 2021), at their place in the source.

    Objects that this covers lose the covered part of their masks, and their boxes shrink accordingly; their covered
    keypoints become invisible. Objects without a mask are not pasted. Random numbers are NumPy's.

    Args:
        target: the image to paste into; masks are bitmaps.
        source: the image that objects are taken from; masks are bitmaps. It may be modified.
        min_visible: objects of the source of which a smaller fraction fits into the target are not pasted.
    """
    canvas = target.image.copy()
    height, width = target.size
    chosen = [a for a in source.annotations if np.random.rand() < _PASTED_FRACTION]
    source = TrainingSample(source.image, [a for a in chosen if "segmentation" in a])
    pasted = place_on_canvas(source, canvas, 1.0, (0, 0), (0, 0, width, height))
    pasted = [a for a in pasted if a[VISIBLE] >= min_visible and a["segmentation"].any()]
    if not pasted:
        return target
    covered = np.any([a["segmentation"] for a in pasted], axis=0)
    image = np.where(covered[..., None], canvas, target.image)
    return TrainingSample(image, [_cover(a, covered) for a in target.annotations] + pasted)


def _cover(annotation: Annotation, covered: np.ndarray) -> Annotation:
    """Return an annotation without its covered pixels, (height, width) of bool."""
    annotation = dict(annotation)
    if "keypoints" in annotation:
        annotation["keypoints"] = _cover_keypoints(annotation["keypoints"], covered)
    x0, y0, x1, y1 = annotation["bbox"]
    if "segmentation" not in annotation:
        # Without a mask, what matters is the box
        inside = covered[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))]
        annotation[VISIBLE] = annotation.get(VISIBLE, 1.0) * (1 - inside.mean() if inside.size else 0.0)
        return annotation
    mask = annotation["segmentation"]
    remaining = mask * ~covered
    before, after = np.count_nonzero(mask), np.count_nonzero(remaining)
    if after == before:
        return annotation
    annotation["segmentation"] = remaining
    annotation[VISIBLE] = annotation.get(VISIBLE, 1.0) * after / before
    rows, columns = np.nonzero(remaining)
    if after:
        # A side that the mask still reaches stays where it was, fractions of pixels included
        tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        annotation["bbox"] = np.array(
            [max(x0, tight[0]), max(y0, tight[1]), min(x1, tight[2]), min(y1, tight[3])]
        )
    return annotation


def _cover_keypoints(keypoints: np.ndarray, covered: np.ndarray) -> np.ndarray:
    keypoints = keypoints.copy()
    height, width = covered.shape
    x = keypoints[:, 0].astype(int).clip(0, width - 1)
    y = keypoints[:, 1].astype(int).clip(0, height - 1)
    visibility = keypoints[:, 2]
    visibility[covered[y, x] & (visibility > _LABELED)] = _LABELED
    return keypoints
