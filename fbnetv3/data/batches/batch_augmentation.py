"""Random crops and flips of a whole batch at once, on the device of the images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fbnetv3.data.batches.counter_random import random_bits, random_integers
from fbnetv3.utils.random_state import derive_seed


@dataclass(frozen=True)
class BatchAugmentation:
    """A crop at a random place of images that were padded on each side, and a flip of half of them.

    The probabilities are those of `train_transform` with the crop "padded"; the random numbers are others. They depend
    only on the seed, the epoch and the image.
    """

    padding: int = 0  # pixels on each side
    flip: bool = False
    seed: int = 0

    def draw(self, epoch: int, indices: Tensor, repeats: Tensor) -> Tensor:
        """Draw the parameters of images.

        Args:
            epoch: number of the epoch.
            indices: int64 indices of the images in the dataset, (N,).
            repeats: how often each was drawn before in this epoch, (N,).

        Returns:
            int64 (3, N): top and left of the crop in the padded image in pixels, and 1 to flip it.
        """
        keys = random_bits(derive_seed(self.seed, epoch), indices)
        bits = [random_bits(keys, 3 * repeats + parameter) for parameter in range(3)]
        places = [random_integers(number, 2 * self.padding + 1) for number in bits[:2]]
        flips = random_integers(bits[2], 2) if self.flip else torch.zeros_like(indices)
        return torch.stack([*places, flips])


def find_unsupported(
    *, crop: str, color_jitter: float, auto_augment: str, random_erasing: float
) -> str | None:
    """Return the first config key, with its value, that a `BatchAugmentation` cannot implement; None if there is none.

    The arguments are those of `train_transform`.
    """
    values = {
        "INPUT.CROP": (crop, crop in ("padded", "none")),
        "INPUT.COLOR_JITTER": (color_jitter, not color_jitter),
        "INPUT.AUTO_AUGMENT": (auto_augment, auto_augment == "none"),
        "INPUT.RANDOM_ERASING": (random_erasing, not random_erasing),
    }
    return next(
        (f"{key} {value}" for key, (value, is_supported) in values.items() if not is_supported), None
    )


def crop_and_flip(padded: Tensor, indices: Tensor, parameters: Tensor, side: int) -> Tensor:
    """Take images out of a dataset, each cropped and flipped as its parameters say.

    Args:
        padded: all images of the dataset, channels last: (images, height, width, channels).
        indices: indices of the images to take, (N,).
        parameters: int64 (3, N), see `BatchAugmentation.draw`.
        side: side of the crops in pixels.

    Returns:
        (N, channels, side, side), in memory as channels last.
    """
    top, left, flip = parameters[:, :, None]
    offsets = torch.arange(side, device=padded.device)
    rows = top + offsets
    columns = left + torch.where(flip > 0, side - 1 - offsets, offsets)
    # A single gather reads only the pixels of the crops
    crops = padded[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2)
