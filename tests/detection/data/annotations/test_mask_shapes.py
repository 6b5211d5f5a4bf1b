"""Masks are clipped to their image and checked before pycocotools' C code reads them."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from fbnetv3.detection.data.annotations.mask_shapes import (
    SegmentationError,
    clean_segmentation,
    clip_polygon,
    decode_counts,
    mask_area,
    mask_box,
)

WIDTH, HEIGHT = 60, 40


def pixels(polygon, margin=0):
    """Return the pixels of a polygon in the image, cropped from a larger image if there is a margin."""
    moved = (np.asarray(polygon) + margin).tolist()
    mask = mask_util.decode(mask_util.frPyObjects([moved], HEIGHT + 2 * margin, WIDTH + 2 * margin))
    return mask[margin : margin + HEIGHT, margin : margin + WIDTH, 0]


def test_a_square_across_a_corner_is_clipped_to_its_part_inside():
    points = np.array([[-10, -10], [10, -10], [10, 10], [-10, 10]])
    assert mask_box([clip_polygon(points, WIDTH, HEIGHT)]) == [0, 0, 10, 10]
    assert clean_segmentation([[70, 5, 90, 5, 90, 20]], WIDTH, HEIGHT) == []


@pytest.mark.parametrize("seed", range(20))
def test_a_clipped_polygon_covers_the_same_pixels(seed):
    """A star around the center of the image, up to pycocotools' rounding along the edges."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 8))
    radii = rng.uniform(10, 50, (8, 1))
    points = [30, 20] + radii * np.stack([np.cos(angles), np.sin(angles)], 1)
    clipped = clip_polygon(points, WIDTH, HEIGHT)
    assert all(0 <= x <= WIDTH for x in clipped[::2]) and all(0 <= y <= HEIGHT for y in clipped[1::2])
    assert (pixels(points.ravel(), margin=60) != pixels(clipped)).sum() <= 6  # of 1,000 to 2,000


def test_a_polygon_far_outside_takes_no_memory():
    """pycocotools would walk along its edges, pixel by pixel."""
    (polygon,) = clean_segmentation([[0, 0, 1e9, 0, 1e9, 1e9, 0, 1e9]], WIDTH, HEIGHT)
    assert mask_area([polygon], WIDTH, HEIGHT) == WIDTH * HEIGHT


@pytest.mark.parametrize("density", [0, 0.01, 0.5, 0.99, 1])
def test_compressed_counts_are_decoded(density):
    mask = np.asfortranarray(np.random.default_rng(3).random((HEIGHT, WIDTH)) < density, dtype=np.uint8)
    flat = mask.ravel(order="F")
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    expected = [0, *runs] if flat[0] else runs
    compressed = mask_util.encode(mask)["counts"].decode()
    assert decode_counts(compressed).tolist() == expected
    # Both forms are read, and the same
    size = [HEIGHT, WIDTH]
    clean = clean_segmentation({"size": size, "counts": expected}, WIDTH, HEIGHT)
    assert clean == {"size": size, "counts": compressed}
    assert clean == clean_segmentation({"size": size, "counts": compressed}, WIDTH, HEIGHT)
    assert mask_area(clean, WIDTH, HEIGHT) == flat.sum()


def test_one_polygon_may_lack_its_enclosing_list_and_short_ones_are_removed():
    triangle = [1, 2, 30, 2, 30, 20]
    assert clean_segmentation(triangle, WIDTH, HEIGHT) == [triangle]
    assert clean_segmentation([triangle, [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]], WIDTH, HEIGHT) == [triangle]
    assert clean_segmentation([[1, 2, 3, 4]], WIDTH, HEIGHT) == []
    assert [clean_segmentation(value, WIDTH, HEIGHT) for value in (None, [], {})] == [None] * 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "neither a list nor a mapping"),
        ([["1", 2, 3, 4, 5, 6]], "not a list of numbers"),
        ([[1, [2], 3, 4, 5, 6]], "not a list of numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ([[1, 2, 3, 4, 5, 1e300]], "too large"),
        ({"size": [WIDTH, HEIGHT], "counts": [2400]}, r"size \[60, 40\] is not the image's, \[40, 60\]"),
        ({"size": [HEIGHT, WIDTH]}, "no counts"),
        ({"size": [HEIGHT, WIDTH], "counts": [2399]}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": [2500, -100]}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": [2**63 - 1, 2**63 - 1, 2402]}, "do not add up"),
        ({"size": [HEIGHT, WIDTH], "counts": [2400.0]}, "not integers"),
        ({"size": [HEIGHT, WIDTH], "counts": ""}, "not a compressed mask"),
        ({"size": [HEIGHT, WIDTH], "counts": "PPPP"}, "not a compressed mask"),
        ({"size": [HEIGHT, WIDTH], "counts": "1P"}, "not a compressed mask"),
        ({"size": [HEIGHT, WIDTH], "counts": "é1"}, "not a compressed mask"),
        ({"size": [HEIGHT, WIDTH], "counts": "P" * 99 + "1"}, "not a compressed mask"),
    ],
)
def test_what_pycocotools_could_not_read_is_refused(value, message):
    with pytest.raises(SegmentationError, match=message):
        clean_segmentation(value, WIDTH, HEIGHT)
