"""Find what a command line names to detect objects in: images, videos, cameras and streams."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fbnetv3.deploy.input_sources import STANDARD_INPUT, InputImage, find_images
from fbnetv3.detection.data.annotations.coco_files import read_annotations
from fbnetv3.detection.data.detection_datasets import Categories
from fbnetv3.detection.inference.video.object_tracker import ObjectTracker
from fbnetv3.detection.inference.video.video_reader import import_cv2
from fbnetv3.detection.inference.video.video_source import (
    VIDEO_SUFFIXES,
    VideoSource,
    parse_video_source,
    public_parts,
)
from fbnetv3.errors import DataError, UsageError
from fbnetv3.utils.downloads import is_url
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectionInput:
    """An image or a video to detect objects in."""

    source: InputImage | VideoSource
    name: str  # path relative to the folder that was named, or more of it if several inputs would have the same name
    image_id: int | str | None = None  # of an image in an annotation file

    @property
    def address(self) -> str | int:
        """The path or URL, or the number of a camera."""
        return self.source.address if isinstance(self.source, VideoSource) else self.source.name

    @property
    def file(self) -> Path | None:
        """The full path of a file, without links; None for anything else."""
        is_live = isinstance(self.source, VideoSource) and self.source.is_live
        if is_live or self.address == STANDARD_INPUT or is_url(str(self.address)):
            return None
        return expand_path(str(self.address)).resolve()

    @property
    def path_parts(self) -> tuple[str, ...]:
        """The parts of the full path, or of the URL without passwords."""
        if self.file:
            return Path(os.path.abspath(expand_path(str(self.address)))).parts
        return public_parts(str(self.address)) or (self.name,)


def find_inputs(sources: Sequence[str], exclude: Iterable[Path] = ()) -> list[DetectionInput]:
    """Return the inputs that the sources name, each once, in their order.

    Args:
        sources: those of `find_images`; names of videos, see `parse_video_source`. Folders are searched for both.
        exclude: folders to leave out, such as that of pictures from an earlier run.

    Raises:
        DataError: a folder has no images, or a pattern matches nothing.
        UsageError: none of the files exists.
    """
    excluded = {folder.resolve() for folder in exclude}
    inputs: dict[Path | str | int, DetectionInput] = {}  # without duplicates
    for source in sources:
        video = parse_video_source(source)
        entries = [DetectionInput(video, video.name)] if video else _find_files(source)
        for entry in entries:
            key = entry.file or entry.address
            if not (isinstance(key, Path) and excluded.intersection(key.parents)):
                inputs.setdefault(key, entry)
    if not inputs:
        raise DataError(f"{', '.join(sources)}: contains no images")
    _require_one_file(list(inputs.values()))
    return _with_distinct_names(list(inputs.values()))


def _find_files(source: str) -> list[DetectionInput]:
    """Return the images and videos that a file, folder, pattern, URL or the standard input stands for."""
    entries = []
    for image in find_images([source], VIDEO_SUFFIXES):
        video = None if image.data is not None else parse_video_source(image.name)
        entries.append(DetectionInput(video or image, image.relative_name))
    return entries


def _require_one_file(inputs: Sequence[DetectionInput]) -> None:
    """Refuse inputs of which not even one exists: a run would only load the weights to say so."""
    missing = [str(entry.address) for entry in inputs if entry.file and not entry.file.exists()]
    if len(missing) == len(inputs):
        raise UsageError(f"{first_few(missing)}: no such file or folder")


def _with_distinct_names(inputs: list[DetectionInput]) -> list[DetectionInput]:
    """Lengthen the names of different inputs that have the same one by the folders that they are in."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, entry in enumerate(inputs):
        groups[entry.name].append(i)
    for indices in groups.values():
        if len(indices) == 1:
            continue
        parts = {i: inputs[i].path_parts for i in indices}
        length = len(Path(inputs[indices[0]].name).parts)
        while len({parts[i][-length:] for i in indices}) < len(indices) and length < max(
            map(len, parts.values())
        ):
            length += 1
        for i in indices:
            tail = [part for part in parts[i][-length:] if part != "/"]
            inputs[i] = replace(inputs[i], name="/".join(tail))
    return inputs


def require_video_packages(inputs: Sequence[DetectionInput], track: bool) -> None:
    """Check that the packages are installed that videos and tracking need.

    Raises:
        MissingPackageError: one is not.
        UsageError: there is no video to track objects through.
    """
    if any(isinstance(entry.source, VideoSource) for entry in inputs):
        import_cv2()
        if track:
            ObjectTracker(fps=30)
    elif track:
        raise UsageError("--track needs a video: images are not tracked")


def match_annotations(
    inputs: Sequence[DetectionInput], annotations: str | Path
) -> tuple[list[DetectionInput], Categories]:
    """Give images the ids that a COCO-format file has for them, and return them with the file's categories.

    An image is matched by its path in the folder that was named, or else by the end of its full path. Images that the
    file does not list are skipped with a warning.

    Raises:
        DataError: the file lists none of the images, or it is not clear which of them it means.
        UsageError: an input is a video.
    """
    videos = [entry.name for entry in inputs if isinstance(entry.source, VideoSource)]
    if videos:
        raise UsageError(f"--annotations lists images, but {first_few(videos)} is a video")
    data = read_annotations(annotations, ("images", "categories"))
    ids: dict[str, list[int | str]] = defaultdict(list)
    for image in data["images"]:
        ids[image["file_name"]].append(image["id"])
    names = _match_names(inputs, ids, annotations)

    matched = []
    for entry, name in zip(inputs, names, strict=True):
        if name is not None:
            if len(ids[name]) > 1:
                raise DataError(
                    f"{annotations}: lists {name} {len(ids[name])} times (ids {first_few(ids[name])}); correct the file"
                )
            matched.append(replace(entry, image_id=ids[name][0]))
    if not matched:
        raise DataError(
            f"{annotations}: lists none of the {len(inputs)} images, such as {inputs[0].name}; it lists "
            f"{data['images'][0]['file_name']}: name the folder that each file_name is relative to"
        )
    if num_unlisted := len(inputs) - len(matched):
        logger.warning("%d images are skipped: %s does not list them", num_unlisted, annotations)
    if num_missing := len(data["images"]) - len(matched):
        logger.warning(
            "%s: %d of its %d images are not among the inputs",
            annotations,
            num_missing,
            len(data["images"]),
        )
    return matched, data["categories"]


def _match_names(
    inputs: Sequence[DetectionInput], listed: Iterable[str], annotations: str | Path
) -> list[str | None]:
    """Return the listed name of each input, or None."""
    names_by_parts = {Path(name).parts: name for name in listed}
    owners: dict[str, int] = {}  # listed name -> index of the input
    # Exact matches first, so that "0.png" means the file at the top, not the one in a subfolder
    for i, entry in enumerate(inputs):
        if name := names_by_parts.get(Path(entry.name).parts):
            owners.setdefault(name, i)
    exact = set(owners)
    matched = set(owners.values())
    for i, entry in enumerate(inputs):
        if i in matched:
            continue
        parts = entry.path_parts
        suffixes = (names_by_parts.get(parts[start:]) for start in range(len(parts)))
        name = next((name for name in suffixes if name), None)  # the longest
        if name is None or name in exact:
            continue
        if name in owners:
            both = " and ".join(inputs[j].source.name for j in (owners[name], i))
            raise DataError(
                f"{annotations}: {name} may be {both}; name the folder that each file_name is relative to"
            )
        owners[name] = i
    names: list[str | None] = [None] * len(inputs)
    for name, i in owners.items():
        names[i] = name
    return names
