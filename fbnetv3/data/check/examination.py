"""Read every image of a dataset, in parallel, and keep a few facts about each."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset
from tqdm import tqdm

from fbnetv3.data.datasets import ImageDataset
from fbnetv3.data.image_io import EncodedImage, exif_orientation, pillow_to_tensor
from fbnetv3.data.loader import SignalSafeLoader, init_worker
from fbnetv3.errors import DataError
from fbnetv3.utils.text import describe_error, one_line

THUMBNAIL_SIDE = 16
_CHUNK = 4  # images that a worker reads before it returns them
_BLACK_LEVEL = 16  # of 255: an image with no brighter pixel looks black


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """Facts about one image; all but the first five are defaults if it cannot be read."""

    split: str
    index: int  # in the split's dataset
    name: str
    class_names: tuple[str, ...]  # one, or the labels of the image; none if it cannot be read
    error: str = ""  # why the image cannot be read
    size: tuple[int, int] = (0, 0)  # width and height in pixels, as the network sees them
    mode: str = ""  # Pillow's, of the file
    format: str = ""  # Pillow's; "" for images in memory
    orientation: int = 1  # EXIF's
    frames: int = 1
    file_digest: bytes = b""
    pixel_digest: bytes = b""
    brightness: float = 0.0  # mean of all pixels, in [0, 255]
    contrast: float = 0.0  # standard deviation of the pixels, the largest of the channels
    turns_black: bool = False  # the file has content, the decoded pixels have none
    thumbnail: np.ndarray | None = None  # gray, uint8 (16, 16)
    hash: int = 0  # 64 bits: whether the thumbnail gets brighter from left to right

    @property
    def class_name(self) -> str:
        """The class, or all labels of the image, as text."""
        return " + ".join(self.class_names)


def examine_dataset(
    dataset: ImageDataset, split: str, workers: int = 0, progress: bool = True
) -> list[ImageFacts]:
    """Read all images of a split with worker processes (0: in this one), and return their facts in order."""
    loader = SignalSafeLoader(
        _Examination(dataset, split),
        batch_size=_CHUNK,
        num_workers=workers,
        collate_fn=list,
        worker_init_fn=init_worker,
    )
    facts: list[ImageFacts] = []
    with tqdm(
        total=len(dataset), desc=split, unit="image", leave=False, disable=None if progress else True
    ) as bar:
        try:
            for chunk in loader:
                facts += chunk
                bar.update(len(chunk))
        except RuntimeError as error:  # a decoder has crashed, or memory is used up
            problem = f"a process that reads images has died ({one_line(error, 160)})"
            raise DataError(f"{split}: {problem}; find the image with --workers 0") from None
    return facts


@dataclass(eq=False)
class _Examination(Dataset):
    dataset: ImageDataset
    split: str

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> ImageFacts:
        return examine_image(self.dataset, self.split, index)


def examine_image(dataset: ImageDataset, split: str, index: int) -> ImageFacts:
    """Read one image as training does, and return its facts; errors are among them."""
    name = dataset.image_name(index)
    try:
        image, target = dataset[index]
        facts = _facts_of_encoded(image) if isinstance(image, EncodedImage) else _facts_of_pillow(image)
        return ImageFacts(split, index, name, _class_names(dataset, target), **facts)
    except Exception as error:  # a user's dataset may raise anything
        # Errors about data are for users already, and begin with the name
        message = (
            str(error).removeprefix(f"{name}: ")
            if isinstance(error, DataError)
            else describe_error(error, 120)
        )
        return ImageFacts(split, index, name, (), message)


def _class_names(dataset: ImageDataset, target: Any) -> tuple[str, ...]:
    """Return the names of a class index, or of the labels that a vector (classes,) marks."""
    indices = np.asarray(target)
    return tuple(dataset.classes[i] for i in (np.flatnonzero(indices) if indices.ndim else [int(indices)]))


def _facts_of_encoded(image: EncodedImage) -> dict[str, Any]:
    content = image._data
    if image.array_channels:
        return _facts_of_array(image)
    pixels = image.decode(3).numpy()
    with Image.open(io.BytesIO(content)) as file:
        facts = {
            "mode": file.mode,
            "format": file.format or "",
            "orientation": exif_orientation(file),
            "frames": getattr(file, "n_frames", 1),
            "turns_black": _is_black(pixels) and _has_content(file),
        }
    return {**facts, "file_digest": hashlib.sha256(content).digest(), **_facts_of_pixels(pixels)}


def _facts_of_array(image: EncodedImage) -> dict[str, Any]:
    count = image.array_channels
    # Arrays are equal if all channels are; the other facts are about those of the preview
    digest = hashlib.sha256(image.decode(count).numpy().tobytes()).digest()
    return {
        **_facts_of_pixels(image.preview().numpy()),
        "mode": "1 channel" if count == 1 else f"{count} channels",
        "format": "NumPy" if image._data else "",  # or in memory
        "file_digest": digest,
        "pixel_digest": digest,
    }


def _facts_of_pillow(image: Image.Image) -> dict[str, Any]:
    pixels = pillow_to_tensor(image, 3).numpy()
    facts = _facts_of_pixels(pixels)
    black = _is_black(pixels) and _has_content(image)
    return {"mode": image.mode, "turns_black": black, "file_digest": facts["pixel_digest"], **facts}


def _is_black(pixels: np.ndarray) -> bool:
    return int(pixels.max()) < _BLACK_LEVEL


def _has_content(image: Image.Image) -> bool:
    """Return whether an image of more than 8 bits per channel has different values."""
    if not image.mode.startswith(("I", "F")):
        return False
    values = np.asarray(image)
    return bool(values.min() < values.max())


def _facts_of_pixels(pixels: np.ndarray) -> dict[str, Any]:
    """Return the facts about decoded pixels, uint8 (3, height, width)."""
    _, height, width = pixels.shape
    gray = Image.fromarray(pixels.transpose(1, 2, 0)).convert("L")
    digest = hashlib.sha256(f"{height}x{width}".encode())
    digest.update(pixels.tobytes())
    return {
        "size": (width, height),
        "pixel_digest": digest.digest(),
        "brightness": float(pixels.mean()),
        "contrast": float(pixels.std(axis=(1, 2)).max()),
        "thumbnail": np.asarray(gray.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX)),
        "hash": _difference_hash(gray),
    }


def _difference_hash(gray: Image.Image) -> int:
    """Return 64 bits: whether each of 8 x 9 areas is darker than the one to its right."""
    small = np.asarray(gray.resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    bits = np.packbits(small[:, 1:] > small[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")


def readable(facts: Sequence[ImageFacts]) -> list[ImageFacts]:
    """Return the facts of images that can be read."""
    return [image for image in facts if not image.error]
