"""Detect objects in image files, and write a COCO results file and pictures with boxes."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from tqdm import tqdm

from fbnetv3.data.corrupt_images import CorruptImageError
from fbnetv3.data.image_folders import find_image_files
from fbnetv3.deploy import DetectorPredictor, load
from fbnetv3.detection.data.annotations.clean_annotations import read_image_and_category_entries
from fbnetv3.detection.data.dataset_mapper import inference_resize, read_image_array
from fbnetv3.detection.data.detection_datasets import (
    Categories,
    Classes,
    classes_from_names,
    detector_classes,
)
from fbnetv3.detection.inference.optimize_detector import optimize_for_inference
from fbnetv3.detection.inference.visualize import PICTURE_SUFFIXES, draw_detections, save_picture
from fbnetv3.detection.training.detector_checkpoint import load_detector
from fbnetv3.errors import DataError, UsageError
from fbnetv3.utils.files import make_folder, write_json
from fbnetv3.utils.logging_setup import quiet_detectron2

logger = logging.getLogger(__name__)

RESULTS_FILE = "coco_instances_results.json"
IMAGES_FILE = "images.json"
PICTURES_FOLDER = "pictures"
DRAW_THRESHOLD = 0.5  # default minimum score of the detections in pictures


class ConfigPredictor:
    """A detector built from a config that takes images of any size as arrays.

    `weights` is a checkpoint's path or URL, or a `zoo://` entry; averaged weights are preferred. If `optimize` is true,
    `optimize_for_inference` is applied.
    """

    def __init__(self, cfg: CfgNode, weights: str | os.PathLike, *, optimize: bool = True) -> None:
        self.cfg = cfg.clone()
        self.cfg.defrost()
        # Keep build_model from loading a classifier's weights
        self.cfg.MODEL.WEIGHTS = os.fspath(weights)
        with quiet_detectron2():
            model = load_detector(build_model(self.cfg), weights).eval()
            self.model = optimize_for_inference(model) if optimize else model
        self.input_format = self.cfg.INPUT.FORMAT
        self._resize = inference_resize(self.cfg)

    def classes(self, categories: Categories | None = None) -> Classes:
        """Return the detector's classes; see `detector_classes`."""
        return detector_classes(self.cfg, categories)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Detect objects in images, uint8 (height, width, channels) in `INPUT.FORMAT`; sizes may differ.

        Only images that have the same size after resizing form a batch: padding to a common size would change the
        results, because squeeze-and-excite averages over the padding too. Detections are on the CPU, in pixels of their
        image: `pred_boxes`, `scores`, `pred_classes`, and `pred_masks` if the detector predicts masks.
        """
        # Resize the images and group them by size
        inputs: list[dict[str, Any]] = []
        indices_by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, image in enumerate(images):
            resized = self._resize.get_transform(image).apply_image(image)
            channels_first = np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32)
            tensor = torch.from_numpy(channels_first)
            inputs.append({"image": tensor, "height": image.shape[0], "width": image.shape[1]})
            indices_by_shape[tensor.shape].append(i)

        # Run one batch for each size
        detections: dict[int, Instances] = {}
        for indices in indices_by_shape.values():
            with quiet_detectron2():
                outputs = self.model([inputs[i] for i in indices])
            for i, output in zip(indices, outputs, strict=True):
                detections[i] = output["instances"].to("cpu")
        return [detections[i] for i in range(len(images))]


class ExportedPredictor:
    """An exported detector with the interface of `ConfigPredictor`.

    `score_threshold` applies in addition to the detector's own.
    """

    input_format = "RGB"

    def __init__(self, folder: str | os.PathLike, score_threshold: float = 0.0) -> None:
        predictor = load(folder)
        if not isinstance(predictor, DetectorPredictor):
            raise UsageError(f"{folder}: contains a classifier, not a detector: use tools/classify.py")
        self._predictor = predictor
        self._score_threshold = score_threshold

    def classes(self, categories: Categories | None = None) -> Classes:
        """Return the classes; see `classes_from_names`."""
        return classes_from_names(self._predictor.classes, categories)

    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Detect objects in images, uint8 (height, width, 3) in RGB. Boxes are in pixels of each image."""
        results = []
        for image in images:
            detections = self._predictor.detect(image)
            selected = detections.scores >= self._score_threshold
            # Convert to detectron2's structures
            instances = Instances(image.shape[:2])
            instances.pred_boxes = Boxes(torch.from_numpy(detections.boxes[selected]))
            instances.scores = torch.from_numpy(detections.scores[selected])
            instances.pred_classes = torch.from_numpy(detections.classes[selected])
            results.append(instances)
        return results


@dataclass(frozen=True)
class ImageFile:
    """An image file to run a detector on."""

    path: Path
    name: str  # path relative to the input folder, or the file name
    image_id: int | str  # in the results and annotations


@dataclass
class DetectionRun:
    """Detections in image files."""

    results: list[dict[str, Any]] = field(default_factory=list)  # as in COCO results files
    images: list[dict[str, Any]] = field(default_factory=list)  # as in COCO annotation files
    corrupt: list[str] = field(default_factory=list)  # error messages


def set_score_threshold(cfg: CfgNode, score: float) -> None:
    """Set the minimum score of detections, for all kinds of detectors."""
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = score
    cfg.MODEL.RETINANET.SCORE_THRESH_TEST = score


def find_input_images(
    inputs: Iterable[str | os.PathLike],
    annotations: str | os.PathLike | None = None,
    *,
    exclude: Path | None = None,
) -> tuple[list[ImageFile], list[dict[str, Any]] | None]:
    """Collect image files from files and folders, including subfolders, except the folder `exclude`.

    `annotations` is a COCO-format file with the ids of the images; images that it does not list are skipped. Its
    categories are returned with the files; None without annotations.
    """
    inputs = list(inputs)
    paths = list(_named_paths(inputs, exclude))
    if not paths:
        raise DataError(f"{', '.join(map(str, inputs))}: contains no images")
    if annotations is None:
        return [ImageFile(path, name, number) for number, (path, name) in enumerate(paths, 1)], None

    # Look up ids by the path in the folder, or by the file name only
    data = read_image_and_category_entries(annotations)
    ids = {image["file_name"]: image["id"] for image in data["images"]}
    named_ids = [(path, name, ids.get(name, ids.get(path.name))) for path, name in paths]
    files = [ImageFile(path, name, image_id) for path, name, image_id in named_ids if image_id is not None]
    if not files:
        raise DataError(
            f"{annotations}: lists none of the {len(paths)} images, such as {paths[0][1]}; it lists "
            f"{data['images'][0]['file_name']}: name the folder that each file_name is relative to"
        )
    if num_unlisted := len(paths) - len(files):
        logger.warning("%d images are skipped: %s does not list them", num_unlisted, annotations)
    if num_missing := len(ids) - len({file.image_id for file in files}):
        logger.warning(
            "%s: %d of its %d images are not among the inputs", annotations, num_missing, len(ids)
        )
    return files, data["categories"]


def _named_paths(inputs: Iterable[str | os.PathLike], exclude: Path | None) -> Iterator[tuple[Path, str]]:
    """Yield each file once, with its name."""
    excluded_folder = exclude.resolve() if exclude else None
    seen = set()
    for source in map(Path, inputs):
        if source.is_dir():
            paths = find_image_files(source)
            named_paths = [(path, path.relative_to(source).as_posix()) for path in paths]
        elif source.exists():
            named_paths = [(source, source.name)]
        else:
            raise UsageError(f"{source}: no such file or folder")
        for path, name in named_paths:
            resolved = path.resolve()
            if resolved not in seen and excluded_folder not in resolved.parents:
                seen.add(resolved)
                yield path, name


def detect_files(
    predictor: ConfigPredictor | ExportedPredictor,
    files: Sequence[ImageFile],
    output: Path,
    *,
    categories: Categories | None = None,
    batch_size: int = 1,
    draw_threshold: float | None = DRAW_THRESHOLD,
) -> DetectionRun:
    """Detect objects in image files, and write results and pictures with boxes to a folder.

    Corrupt images are skipped with a warning. Even after an error or Ctrl-C, the folder has the results so far:
    `coco_instances_results.json`, which pycocotools' `loadRes` reads, and, without `categories`, `images.json` with the
    ids of the images.

    `categories` is the list of the annotation file, if there is one. Boxes with lower scores than `draw_threshold` are
    not drawn; None writes no pictures.
    """
    classes = predictor.classes(categories)
    category_ids = list(classes)
    names = list(classes.values())
    run = DetectionRun()
    make_folder(output)
    pictures = dict(zip(files, picture_paths(files, output / PICTURES_FOLDER), strict=True))
    try:
        with tqdm(total=len(files), unit="image", leave=False, disable=None) as progress:
            for start in range(0, len(files), batch_size):
                batch = files[start : start + batch_size]
                images = _read_images(batch, predictor.input_format, run)
                detections = predictor([*images.values()])
                for (file, image), instances in zip(images.items(), detections, strict=True):
                    if draw_threshold is not None:
                        rgb = convert_image_to_rgb(image, predictor.input_format)
                        shown = instances[instances.scores >= draw_threshold]
                        save_picture(draw_detections(rgb, shown, names), pictures[file])
                    height, width = instances.image_size
                    run.images.append(
                        {"id": file.image_id, "file_name": file.name, "width": width, "height": height}
                    )
                    for result in instances_to_coco_json(instances, file.image_id):
                        run.results.append({**result, "category_id": category_ids[result["category_id"]]})
                progress.update(len(batch))
    finally:
        # Also after an error or interrupt
        write_json(output / RESULTS_FILE, run.results, indent=None)
        if categories is None:
            listed = [{"id": category_id, "name": name} for category_id, name in classes.items()]
            content = {"images": run.images, "annotations": [], "categories": listed}
            write_json(output / IMAGES_FILE, content, indent=None)
    return run


def _read_images(
    files: Sequence[ImageFile], input_format: str, run: DetectionRun
) -> dict[ImageFile, np.ndarray]:
    """Read the images of a batch; report corrupt ones and skip them."""
    images = {}
    for file in files:
        try:
            images[file] = read_image_array(file.path, input_format)
        except CorruptImageError as error:
            run.corrupt.append(str(error))
            logger.warning("%s", error)
    return images


def picture_paths(files: Sequence[ImageFile], folder: Path) -> list[Path]:
    """Return the path of each file's picture: the file's name inside the folder.

    ".png" is appended to names that are neither JPEG nor PNG, and a number to repeated names.
    """
    paths: dict[Path, None] = {}  # an ordered set
    for file in files:
        name = Path(file.name)
        if name.suffix.lower() not in PICTURE_SUFFIXES:
            name = name.with_name(f"{name.name}.png")
        path = folder / name
        number = 1
        while path in paths:
            number += 1
            path = folder / name.with_stem(f"{name.stem}_{number}")
        paths[path] = None
    return list(paths)
