"""Equal and similar images: by their decoded pixels, and by a small perceptual hash that is then verified."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement

import numpy as np

from fbnetv3.data.check.examination import ImageFacts

MAX_HASH_DISTANCE = 3
"""Bits of 64 in which the hashes of similar images may differ."""
MIN_CORRELATION = 0.97
"""Least correlation of the thumbnails of similar images."""
MIN_SIDE = 32
"""Least side in pixels of images that are compared for similarity: smaller ones have too few details."""
_MIN_CONTRAST = 8.0  # levels: plain images are all similar
_BAND_BITS = 16
_BLOCK = 1024  # images compared with as many others at once
_BITS_OF_BYTES = np.array([byte.bit_count() for byte in range(256)], dtype=np.uint8)


def equal_groups(images: Sequence[ImageFacts]) -> list[list[ImageFacts]]:
    """Return the groups of two and more images with equal pixels, whatever their files."""
    groups: dict[bytes, list[ImageFacts]] = defaultdict(list)
    for image in images:
        groups[image.pixel_digest].append(image)
    return [group for group in groups.values() if len(group) > 1]


def similar_pairs(images: Sequence[ImageFacts]) -> list[tuple[ImageFacts, ImageFacts]]:
    """Return the pairs of images that look alike but are not equal, such as the same photo at another size.

    Images that were mirrored, turned or cropped are not found.
    """
    # One of each group of equal images, large and detailed enough
    unique = {image.pixel_digest: image for image in reversed(images)}
    candidates = [
        image
        for image in reversed(unique.values())
        if min(image.size) >= MIN_SIDE and image.contrast >= _MIN_CONTRAST
    ]
    if len(candidates) < 2:
        return []
    hashes = np.array([image.hash for image in candidates], dtype=np.uint64)
    return [
        (candidates[first], candidates[second])
        for first, second in sorted(_close_hashes(hashes))
        if _correlation(candidates[first], candidates[second]) >= MIN_CORRELATION
    ]


def _close_hashes(hashes: np.ndarray) -> set[tuple[int, int]]:
    """Return the pairs of positions whose hashes differ in at most `MAX_HASH_DISTANCE` bits.

    Of four bands of 16 bits, two such hashes have at least one in common, so only images that share one are compared.
    """
    pairs: set[tuple[int, int]] = set()
    for shift in range(0, 64, _BAND_BITS):
        band = (hashes >> np.uint64(shift)) & np.uint64(2**_BAND_BITS - 1)
        order = np.argsort(band, kind="stable")
        ends = np.flatnonzero(np.diff(band[order])) + 1
        for members in np.split(order, ends):
            pairs.update(_close_members(hashes, members))
    return pairs


def _close_members(hashes: np.ndarray, members: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield the pairs of close hashes among some positions, which are in ascending order."""
    blocks = [members[start : start + _BLOCK] for start in range(0, len(members), _BLOCK)]
    for rows, columns in combinations_with_replacement(blocks, 2):
        differing = hashes[rows, None] ^ hashes[None, columns]
        distances = _BITS_OF_BYTES[differing[..., None].view(np.uint8)].sum(-1)
        for row, column in np.argwhere(distances <= MAX_HASH_DISTANCE):
            if rows[row] < columns[column]:
                yield int(rows[row]), int(columns[column])


def _correlation(first: ImageFacts, second: ImageFacts) -> float:
    assert first.thumbnail is not None and second.thumbnail is not None
    return float(np.corrcoef(first.thumbnail.ravel(), second.thumbnail.ravel())[0, 1])
