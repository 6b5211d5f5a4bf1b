"""The 1,000 classes of ImageNet: WordNet IDs, which name its folders, and readable names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_SYNSET = re.compile(r"n\d{8}")


@cache
def imagenet_synsets() -> tuple[str, ...]:
    """Return the WordNet IDs in the order of the outputs of networks trained on ImageNet, such as "n01440764"."""
    return tuple(Path(__file__).with_name("imagenet_synsets.txt").read_text().split())


def imagenet_classes() -> tuple[str, ...]:
    """Return torchvision's names of the classes, such as "tench", in the same order."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def are_synsets(names: Sequence[str]) -> bool:
    """Return whether all names are WordNet IDs."""
    return bool(names) and all(map(_SYNSET.fullmatch, names))
