"""The problems of annotation files that only their owner can correct, collected for one error."""

from __future__ import annotations

from fbnetv3.errors import DataError
from fbnetv3.utils.text import first_few

# Problems by kind; {} is replaced by the number and the first few of the entries at fault
_MESSAGES = {
    "repeated_id": "repeated ids {}; renumber them, and what refers to them",
    "equal_names": "categories with equal names {}; rename them, or merge them",
    "no_size": "images whose width or height is not a positive integer {}; correct it, or remove it from the file",
    "missing": "missing images {}; name the folder that each file_name is relative to, or remove them from the file",
    "corrupt": "corrupt images {}; replace them, or remove them with their annotations",
    "wrong_size": "images whose size (width x height) differs from the file {}; correct the file, boxes included",
    "no_image_id": 'annotations whose "image_id" is neither a number nor a string {}; correct it',
    "no_category_id": 'annotations whose "category_id" is neither a number nor a string {}; correct it',
    "category": 'annotations of categories that are not in "categories" {}; add them, or remove the annotations',
    "rotated": "rotated boxes, of five numbers, {}; they are not supported: convert them to [x, y, width, height]",
    "bbox": 'annotations whose "bbox" is not a list of four finite numbers {}; it is [x, y, width, height] in pixels',
    "no_bbox": 'annotations without "bbox" and "segmentation" {}; add one of them',
    "negative": "boxes of negative width or height {}; a box is [x, y, width, height], not two corners",
    "area": 'annotations whose "area" is not a number {}; correct it, or remove it to have it computed',
    "iscrowd": 'annotations whose "iscrowd" or "ignore" is not 0 or 1 {}; correct it',
    "segmentation": 'annotations whose "segmentation" is neither polygons nor a run-length mask of their image {}',
    "keypoints": 'annotations whose "keypoints" are not (x, y, visibility) for each keypoint {}; correct them',
    "run_length": "annotations with run-length masks instead of polygons {}; set INPUT.MASK_FORMAT bitmask",
    "no_mask": 'annotations without "segmentation" {}; add it, or set MODEL.MASK_ON False to train on boxes only',
}


class AnnotationProblems:
    """Entries at fault, by kind of problem."""

    def __init__(self) -> None:
        self._entries: dict[str, list[str]] = {kind: [] for kind in _MESSAGES}
        self._messages: dict[str, None] = {}  # an ordered set

    def add(self, kind: str, entry: str) -> None:
        """Add an entry, named by its id and file."""
        self._entries[kind].append(entry)

    def add_message(self, message: str) -> None:
        """Add a problem of the file as a whole."""
        self._messages[message] = None

    def raise_if_any(self, source: str, note: str = "") -> None:
        """Raise one `DataError` with all problems of the file or folder `source`; `note` ends the message."""
        messages = list(self._messages)
        for kind, entries in self._entries.items():
            if entries:
                messages.append(_MESSAGES[kind].format(f"({len(entries)}): {first_few(entries)}"))
        if messages:
            text = "; ".join([*messages, note] if note else messages)
            raise DataError(f"{source}: {text}".replace("\n", " "))
