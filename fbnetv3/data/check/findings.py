"""What a check of a dataset finds: errors that stop or spoil training, warnings, and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from fbnetv3.data.check.duplicates import equal_groups, similar_pairs
from fbnetv3.data.check.examination import ImageFacts, readable
from fbnetv3.data.datasets import ImageDataset
from fbnetv3.utils.text import first_few

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)

TINY_SIDE = 32  # pixels
HUGE_PIXELS = 50_000_000
DARK_BRIGHTNESS = 10.0  # of 255
PLAIN_CONTRAST = 1.0
MAX_ASPECT_RATIO = 4.0
FEW_IMAGES = 10  # of a class, for training
MAX_IMBALANCE = 10.0
_COMMON_MODES = ("RGB", "L")
_CORRUPT_ADVICE = "repair or remove them, or allow as many with DATA.MAX_CORRUPT"


@dataclass(frozen=True)
class Finding:
    """One kind of problem, with the images that have it in groups: one image each, or duplicates together."""

    kind: str  # a short name, such as "corrupt"
    severity: str  # one of `SEVERITIES`
    message: str  # one line: what, how many, and what to do
    groups: Sequence[Sequence[ImageFacts]] = ()


@dataclass(frozen=True)
class SplitContents:
    """A split's dataset, the facts about all of its images, and what was skipped in looking for them."""

    dataset: ImageDataset
    images: Sequence[ImageFacts]
    skipped: str = ""  # one line of numbers by reason

    def class_counts(self) -> dict[str, int]:
        """Return the number of readable images of each class."""
        counts = Counter(name for image in readable(self.images) for name in image.class_names)
        return {name: counts[name] for name in self.dataset.classes}


@dataclass(frozen=True)
class CheckTable:
    """A table of a check's report; all cells are text, and the first column is a name."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""  # a line below it
    is_transposed: bool = False  # whether people see a column per row, as wide tables fit better

    def to_display(self) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
        """Return headers and rows as people see them."""
        if not self.is_transposed:
            return self.headers, self.rows
        headers, *rows = zip(self.headers, *self.rows, strict=True)
        return headers, rows


@dataclass(frozen=True)
class DataCheck:
    """The result of a check."""

    source: str  # the dataset's path or name
    splits: Mapping[str, SplitContents]
    findings: Sequence[Finding] = field(default_factory=tuple)
    tables: Sequence[CheckTable] = ()  # besides those of splits and classes
    figures: Sequence[tuple[str, Any]] = ()  # title and Matplotlib figure, besides those of every dataset

    @property
    def has_errors(self) -> bool:
        """Whether something would stop or spoil training."""
        return any(finding.severity == ERROR for finding in self.findings)


def find_problems(
    splits: Mapping[str, SplitContents], corrupt_advice: str = _CORRUPT_ADVICE
) -> list[Finding]:
    """Return all findings about the splits of a dataset, errors first.

    `corrupt_advice` says what to do about images that cannot be read.
    """
    images = [image for contents in splits.values() for image in contents.images]
    findings = [
        *_unreadable(images, corrupt_advice),
        *_duplicates(readable(images)),
        *_similar(readable(images)),
        *_classes(splits),
        *_balance(splits),
        *_unusual(readable(images)),
    ]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def _unreadable(images: Sequence[ImageFacts], advice: str) -> Iterator[Finding]:
    corrupt = [image for image in images if image.error]
    if corrupt:
        yield Finding(
            "corrupt", ERROR, f"{_count(corrupt)} cannot be read: {advice}", [[image] for image in corrupt]
        )


def _duplicates(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Yield equal images in two splits, under two classes, and within a split."""
    groups = equal_groups(images)
    across = [group for group in groups if len(_splits_of(group)) > 1]
    if across:
        copies = sum(map(_shares_file, across))
        kinds = f"{copies} as the same file, {len(across) - copies} with equal pixels in other files"
        yield Finding(
            "leak",
            ERROR,
            f"{_count(across)} in both {' and '.join(_splits_of(across[0]))} ({kinds}): the accuracy will be too high",
            across,
        )
    conflicts = [group for group in groups if not _has_one_label(group)]
    if conflicts:
        yield Finding(
            "two classes",
            ERROR,
            f"{_count(conflicts)} under two classes: at most one of the labels is right",
            conflicts,
        )
    within = [group for group in groups if len(group) > len(_splits_of(group)) and _has_one_label(group)]
    if within:
        yield Finding("duplicates", WARNING, f"{_count(within)} more than once in the same split", within)


def _has_one_label(group: Sequence[ImageFacts]) -> bool:
    return len({image.class_names for image in group}) == 1


def _shares_file(group: Sequence[ImageFacts]) -> bool:
    """Return whether two splits have the same file of a group of equal images."""
    return len({(image.split, image.file_digest) for image in group}) > len(
        {image.file_digest for image in group}
    )


def _similar(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    """Yield images that look alike without being equal."""
    pairs = similar_pairs(images)
    across = [pair for pair in pairs if pair[0].split != pair[1].split]
    if across:
        message = f"{_plural(len(across), 'pair', 'pairs')} of similar images in different splits: they may be the same"
        yield Finding("similar across splits", WARNING, message, across)
    within = [pair for pair in pairs if pair[0].split == pair[1].split]
    if within:
        message = f"{_plural(len(within), 'pair', 'pairs')} of similar images in the same split"
        yield Finding("similar", NOTE, message, within)


def _classes(splits: Mapping[str, SplitContents]) -> Iterator[Finding]:
    """Yield classes that only one of two splits has."""
    present = {
        split: [name for name, count in contents.class_counts().items() if count]
        for split, contents in splits.items()
    }
    is_multi_label = any(getattr(contents.dataset, "multi_label", False) for contents in splits.values())
    for split, other in combinations(present, 2):
        for one, two in ((split, other), (other, split)):
            missing = [name for name in present[one] if name not in set(present[two])]
            if not missing:
                continue
            only = f"{_plural(len(missing), 'class', 'classes')} only in {one}: {first_few(missing, 5)}"
            is_unknown = two == "train"
            consequence = "cannot be learned" if is_unknown else f"not tested in {two}"
            yield Finding(
                f"classes only in {one}", ERROR if is_unknown else WARNING, f"{only}; {consequence}"
            )
    if "train" in present and len(present["train"]) == 1 and not is_multi_label:
        message = f"only one class in train, {present['train'][0]}: is the folder that contains train/ the right one?"
        yield Finding("one class", ERROR, message)
    for split, contents in splits.items():
        empty = [name for name, count in contents.class_counts().items() if not count]
        if empty and (split == "train" or len(splits) == 1):
            message = f"{_plural(len(empty), 'class has', 'classes have')} no image in {split}: {first_few(empty, 5)}"
            yield Finding("empty classes", ERROR, message)


def _balance(splits: Mapping[str, SplitContents]) -> Iterator[Finding]:
    for split, contents in splits.items():
        counts = {name: count for name, count in contents.class_counts().items() if count}
        if len(counts) < 2:
            continue
        smallest, largest = (
            min(counts, key=counts.__getitem__),
            max(counts, key=counts.__getitem__),
        )
        if counts[largest] > MAX_IMBALANCE * counts[smallest]:
            numbers = f"{counts[largest]:,} of {largest}, {counts[smallest]:,} of {smallest}"
            yield Finding("imbalance", WARNING, f"{split} is unbalanced: {numbers}")
        few = [name for name, count in counts.items() if count < FEW_IMAGES]
        if few and split != "val":
            number = _plural(len(few), "class has", "classes have")
            message = f"{number} fewer than {FEW_IMAGES} images in {split}: {first_few(few, 5)}"
            yield Finding("few images", WARNING, message)


_Condition = Callable[[ImageFacts], bool]

# Kind, severity, what is said of the images, and which they are
_UNUSUAL: Sequence[tuple[str, str, str, _Condition]] = (
    (
        "turns black",
        ERROR,
        "of more than 8 bits would be black, because their values are too small: scale them",
        lambda image: image.turns_black,
    ),
    (
        "dark",
        WARNING,
        f"very dark (mean below {DARK_BRIGHTNESS:.0f} of 255)",
        lambda image: (
            image.brightness < DARK_BRIGHTNESS
            and image.contrast >= PLAIN_CONTRAST
            and not image.turns_black
        ),
    ),
    (
        "plain",
        WARNING,
        "of one color",
        lambda image: image.contrast < PLAIN_CONTRAST and not image.turns_black,
    ),
    ("tiny", WARNING, f"with a side below {TINY_SIDE} pixels", lambda image: min(image.size) < TINY_SIDE),
    (
        "huge",
        NOTE,
        f"of more than {HUGE_PIXELS // 1_000_000} megapixels: slow to read, shrink them once",
        lambda image: image.size[0] * image.size[1] > HUGE_PIXELS,
    ),
    (
        "elongated",
        NOTE,
        f"more than {MAX_ASPECT_RATIO:.0f} times as long as wide: crops show a small part",
        lambda image: max(image.size) > MAX_ASPECT_RATIO * min(image.size),
    ),
    ("turned", NOTE, "stored turned or mirrored (EXIF orientation)", lambda image: image.orientation != 1),
    ("animated", NOTE, "with several frames, of which the first is used", lambda image: image.frames > 1),
    (
        "modes",
        NOTE,
        "in modes other than RGB and gray of 8 bits",
        lambda image: image.mode not in _COMMON_MODES,
    ),
)


def _unusual(images: Sequence[ImageFacts]) -> Iterator[Finding]:
    for kind, severity, description, applies in _UNUSUAL:
        if matches := [image for image in images if applies(image)]:
            message = f"{len(matches):,} {'image' if len(matches) == 1 else 'images'} {description}"
            yield Finding(kind, severity, message, [[image] for image in matches])


def _splits_of(group: Sequence[ImageFacts]) -> list[str]:
    return list(dict.fromkeys(image.split for image in group))


def _count(items: Sequence[object]) -> str:
    """Return "1 image" or "2 images"; groups of duplicates count as one image each, and are in several places."""
    is_group = bool(items) and isinstance(items[0], list)
    noun = "image is" if is_group else "image"
    nouns = "images are" if is_group else "images"
    return _plural(len(items), noun, nouns)


def _plural(count: int, singular: str, plural: str) -> str:
    return f"{count:,} {singular if count == 1 else plural}"
