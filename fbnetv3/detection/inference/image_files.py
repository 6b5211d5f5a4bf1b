"""Objects in image files: from a config and weights to boxes, pictures and a COCO results file."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.structures import Instances
from tqdm import tqdm

from fbnetv3.data.image_io import DamagedImageError
from fbnetv3.detection.data.class_names import Classes, classes_of
from fbnetv3.detection.data.coco_annotations import read_annotations
from fbnetv3.detection.data.detection_images import read_image, resize_at_test
from fbnetv3.detection.inference.exported_predictor import ExportedPredictor
from fbnetv3.detection.inference.optimize_detector import optimize_for_inference
from fbnetv3.detection.inference.visualize import DRAWN_AS, draw_detections, save_picture
from fbnetv3.detection.training.detector_checkpoint import load_detector
from fbnetv3.errors import DataError, UsageError
from fbnetv3.utils.files import atomic_write, make_folder
from fbnetv3.utils.quiet_to_merge import without_advice

logger = logging.getLogger(__name__)

RESULTS, IMAGES, PICTURES = "coco_instances_results.json", "images.json", "pictures"
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm")
DRAWN_FROM = 0.5


class Predictor:
    """A detector that takes images of any size as arrays.

    Args:
        cfg: detectron2's config: architecture, size of the images, thresholds, `MODEL.DEVICE`.
        weights: a checkpoint's file or URL, or a `zoo://` entry; averaged weights are preferred.
        optimize: use `optimize_for_inference`.

    Raises:
        WeightsError: the weights cannot be had or do not fit.
    """

    def __init__(self, cfg: CfgNode, weights: str | os.PathLike, *, optimize: bool = True) -> None:
        self.cfg = cfg.clone()
        self.cfg.defrost()
        self.cfg.MODEL.WEIGHTS = os.fspath(weights)  # so that no classifier's are loaded first
        with without_advice():
            model = load_detector(build_model(self.cfg), weights).eval()
            self.model = optimize_for_inference(model) if optimize else model
        self.format, self._resize = self.cfg.INPUT.FORMAT, resize_at_test(self.cfg)

    def classes(self, categories: Sequence[Mapping[str, Any]] | None = None) -> Classes:
        """The detector's classes; see `classes_of`."""
        return classes_of(self.cfg, categories)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Detect objects in a batch. Images go together where they have the same size when resized: beside larger ones
        they would be padded, and the squeezes average over the padding too.

        Args:
            images: uint8 (height, width, channels) of `INPUT.FORMAT`, see `read_image`; sizes may differ.

        Returns:
            For each image, in its own pixels, `pred_boxes`, `scores`, `pred_classes`, and `pred_masks` where the
            detector has them; on the CPU.
        """
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        inputs: list[dict[str, Any]] = []
        for i, image in enumerate(images):
            resized = self._resize.get_transform(image).apply_image(image)
            tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32))
            inputs.append({"image": tensor, "height": image.shape[0], "width": image.shape[1]})
            groups[tensor.shape].append(i)
        found: dict[int, Instances] = {}
        for group in groups.values():
            with without_advice():
                outputs = self.model([inputs[i] for i in group])
            found.update((i, output["instances"].to("cpu")) for i, output in zip(group, outputs, strict=True))
        return [found[i] for i in range(len(images))]


@dataclass(frozen=True)
class ImageFile:
    """An image to look at.

    Attributes:
        path: the file.
        name: its path below the folder that was given, or its file name.
        id: its id in the results.
    """

    path: Path
    name: str
    id: int | str


@dataclass
class Found:
    """What was found in how many images, and which could not be read.

    Attributes:
        results: detections as COCO's results files have them.
        images: the images that were looked at, as COCO's files of annotations list them.
        damaged: a message for each image that could not be read.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def set_score_threshold(cfg: CfgNode, score: float) -> None:
    """Make a config's detector keep detections from a score on, whatever kind it is."""
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = score


def find_images(
    inputs: Iterable[str | os.PathLike],
    annotations: str | os.PathLike | None = None,
    *,
    leave_out: Path | None = None,
) -> tuple[list[ImageFile], list[dict[str, Any]] | None]:
    """The image files of folders, with all below them, and those named one by one.

    Args:
        inputs: files and folders.
        annotations: a COCO-format file that has the images' ids; images that it does not list are left out.
        leave_out: a folder whose files are none of them, such as the output's.

    Returns:
        The files, and the categories of the annotations.

    Raises:
        DataError: no image, or none that the annotations list.
        UsageError: a file or folder that is not there.
        AnnotationError: the annotations are damaged.
    """
    paths = list(_paths(inputs, leave_out))
    if not paths:
        raise DataError(f"{', '.join(map(str, inputs))}: no images in it ({', '.join(SUFFIXES)})")
    if annotations is None:
        return [ImageFile(path, name, n) for n, (path, name) in enumerate(paths, 1)], None
    data = read_annotations(annotations, ("images", "categories"))
    ids = {image["file_name"]: image["id"] for image in data["images"]}
    files = []
    for path, name in paths:
        known = next((key for key in (name, path.name) if key in ids), None)
        if known is not None:
            files.append(ImageFile(path, name, ids[known]))
    if not files:
        raise DataError(
            f"{annotations}: lists none of the {len(paths)} images, such as {paths[0][1]}; it has "
            f"{data['images'][0]['file_name']}: give the folder that each file_name leads from"
        )
    if len(files) < len(paths):
        logger.warning("%d images are left out: %s does not list them", len(paths) - len(files), annotations)
    if missing := len(ids) - len({file.id for file in files}):
        logger.warning("%s: %d of its %d images are not given", annotations, missing, len(ids))
    return files, data["categories"]


def _paths(inputs: Iterable[str | os.PathLike], leave_out: Path | None) -> Iterator[tuple[Path, str]]:
    """Each file once, and its name."""
    outside, seen = leave_out.resolve() if leave_out else None, set()
    for given in map(Path, inputs):
        if given.is_dir():
            found = sorted(path for path in given.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            pairs = [(path, path.relative_to(given).as_posix()) for path in found]
        elif given.exists():
            pairs = [(given, given.name)]
        else:
            raise UsageError(f"{given}: no such file or folder")
        for path, name in pairs:
            resolved = path.resolve()
            if resolved not in seen and not (outside and outside in resolved.parents):
                seen.add(resolved)
                yield path, name


def detect_files(
    predictor: Predictor | ExportedPredictor,
    files: Sequence[ImageFile],
    output: Path,
    *,
    categories: Sequence[dict[str, Any]] | None = None,
    batch_size: int = 1,
    drawn_from: float | None = DRAWN_FROM,
) -> Found:
    """Detect objects in files; leave the results, and pictures with the boxes, in a folder.

    Images that cannot be read are named in a warning, and the others go on. However it ends, by Ctrl-C too, the folder
    holds what was found until then: `coco_instances_results.json`, which pycocotools' `loadRes` reads, and without
    categories of annotations `images.json`, which says which image has which id.

    Args:
        predictor: the detector.
        files: see `find_images`.
        output: the folder; it is made where it is missing.
        categories: of the annotations, where there are any.
        batch_size: images at once.
        drawn_from: score from which a box is drawn; None for no pictures.

    Returns:
        What was found.

    Raises:
        UsageError: the annotations have another number of categories than the detector classes.
        OutputError: the folder cannot be written.
    """
    classes, found = predictor.classes(categories), Found()
    make_folder(output)
    pictures = picture_paths(files, output / PICTURES)
    try:
        with tqdm(total=len(files), unit="image", leave=False, disable=None) as progress:
            for start in range(0, len(files), batch_size):
                chosen = range(start, min(start + batch_size, len(files)))
                images = {i: image for i in chosen if (image := _read(files[i], predictor.format, found)) is not None}
                instances = predictor([*images.values()]) if images else []
                for (i, image), detections in zip(images.items(), instances, strict=True):
                    if drawn_from is not None:
                        _draw(image, detections, classes, predictor.format, drawn_from, pictures[i])
                    _keep(found, files[i], image, detections, classes)
                progress.update(len(chosen))
    finally:
        write_json(found.results, output / RESULTS)
        if categories is None:
            listed = {"images": found.images, "annotations": [], "categories": classes.categories}
            write_json(listed, output / IMAGES)
    return found


def _read(file: ImageFile, format: str, found: Found) -> np.ndarray | None:
    try:
        return read_image(file.path, format)
    except DamagedImageError as error:
        found.damaged.append(str(error))
        logger.warning("%s", error)
        return None


def _draw(image: np.ndarray, detections: Instances, classes: Classes, format: str, score: float, picture: Path) -> None:
    picture.parent.mkdir(parents=True, exist_ok=True)
    kept = detections[detections.scores >= score]
    save_picture(draw_detections(convert_image_to_rgb(image, format), kept, classes.names), picture)


def _keep(found: Found, file: ImageFile, image: np.ndarray, detections: Instances, classes: Classes) -> None:
    """Add an image and its detections."""
    results = instances_to_coco_json(detections, file.id)
    for result in results:
        result["category_id"] = classes.ids[result["category_id"]]
    height, width = image.shape[:2]
    found.images.append({"id": file.id, "file_name": file.name, "width": width, "height": height})
    found.results.extend(results)


def picture_paths(files: Sequence[ImageFile], folder: Path) -> list[Path]:
    """Where the picture of each file goes: to its name below the folder, with a number where that is taken, and with
    ".png" behind it where it is neither JPEG nor PNG."""
    paths, taken = [], set()
    for file in files:
        name, number = Path(file.name), 1
        if name.suffix.lower() not in DRAWN_AS:
            name = name.with_name(f"{name.name}.png")
        path = folder / name
        while path in taken:
            number += 1
            path = folder / name.with_stem(f"{name.stem}_{number}")
        taken.add(path)
        paths.append(path)
    return paths


def write_json(data: object, path: Path) -> None:
    """Write a JSON file whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_write(path) as f:
        f.write(json.dumps(data).encode())
