"""Datasets for detectors: register them with detectron2, load and check them, and look up their classes."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from fbnetv3.data.classes.class_matching import match_classes
from fbnetv3.data.classes.keypoint_skeleton import KeypointSkeleton
from fbnetv3.data.digit_scenes import digit_scenes_folder, ensure_digit_scenes
from fbnetv3.detection.data.annotations.annotation_ids import Id, sort_by_id
from fbnetv3.detection.data.annotations.clean_annotations import MAX_IMAGES_OPENED, CleanAnnotations
from fbnetv3.detection.data.annotations.coco_files import RawAnnotations, read_annotations
from fbnetv3.detection.data.annotations.dataset_dicts import to_dataset_dicts
from fbnetv3.detection.data.annotations.registered_annotations import (
    AnnotationCache,
    has_annotations,
    load_own_dicts,
)
from fbnetv3.detection.data.custom_datasets import (
    CUSTOM_DATASETS,
    custom_sources,
    read_custom_annotations,
    select_custom_data,
)
from fbnetv3.detection.data.formats import AnnotationSource
from fbnetv3.detection.data.keypoint_names import register_keypoints
from fbnetv3.errors import DataError, UsageError, suggest
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.training.run_state.detector_record import read_detector_record
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)

_DIGIT_SCENES = "digit_scenes_"
_COCO = "coco_2017_val"

Categories = Sequence[Mapping[str, Any]]  # "categories" of a COCO-format file
Classes = dict[Id, str]  # category id -> class name, ordered by class index

_cache = AnnotationCache()


def register_custom_datasets(cfg: CfgNode) -> None:
    """Register the datasets of `DATASETS.CUSTOM` as "custom_train" and "custom_test", and select them.

    `DATASETS.TRAIN` becomes "custom_train". `DATASETS.TEST` may name both, to evaluate on the training images too;
    otherwise it becomes "custom_test", or empty if there is none.
    """
    select_custom_data(cfg)
    # An earlier config in the same process may have registered different files
    for name in CUSTOM_DATASETS:
        for catalog in (DatasetCatalog, MetadataCatalog):
            with contextlib.suppress(KeyError):
                catalog.remove(name)
    sources = custom_sources(cfg)
    for name, source in sources.items():
        register_annotations(name, partial(read_custom_annotations, name, source))
        MetadataCatalog.get(name).set(annotation_source=source)
    # Select the registered datasets
    if "custom_train" in sources:
        cfg.DATASETS.TRAIN = ("custom_train",)
    if sources:
        requested = tuple(name for name in cfg.DATASETS.TEST if name in CUSTOM_DATASETS)
        cfg.DATASETS.TEST = requested or tuple(name for name in sources if name == "custom_test")


def register_annotations(name: str, read: Callable[[], RawAnnotations]) -> None:
    """Register a dataset whose annotations `read` returns in COCO's format, not clean yet.

    `read` is called when the dataset is loaded.
    """
    DatasetCatalog.register(name, partial(load_dataset_dicts, name))
    MetadataCatalog.get(name).set(evaluator_type="coco", annotation_reader=read)


def _set_metadata(name: str, json_file: str, image_root: str) -> None:
    MetadataCatalog.get(name).set(
        json_file=json_file,
        image_root=image_root,
        evaluator_type="coco",
        annotation_reader=partial(_read_json, json_file, image_root),
    )


def _read_json(json_file: str, image_root: str) -> RawAnnotations:
    return RawAnnotations(read_annotations(json_file), image_root, json_file)


def _set_digit_scenes_metadata(name: str) -> None:
    """Set the annotation file and the image folder, which change with the cache folder."""
    image_root = str(digit_scenes_folder() / name.removeprefix(_DIGIT_SCENES))
    json_file = f"{image_root}.json"
    if MetadataCatalog.get(name).get("json_file") != json_file:
        MetadataCatalog.pop(name)  # detectron2 refuses to change metadata
        _set_metadata(name, json_file, image_root)


def load_clean_annotations(name: str, **options: Any) -> CleanAnnotations:
    """Return the clean annotations of a registered dataset, which set its class names in detectron2's metadata.

    They come from its COCO-format file, or from the dataset dicts of the function that registered it. They are kept in
    memory until the file changes, unless there are very many.

    Args:
        name: the dataset.
        options: those of `clean_annotations`; with any, the annotations are read and checked again.

    Raises:
        UsageError: there is no such dataset.
        DataError: its annotations cannot be used.
    """
    _require_registered(name)
    if name.startswith(_DIGIT_SCENES):  # drawn on first use
        ensure_digit_scenes()
        _set_digit_scenes_metadata(name)
    with _missing_file_as_data_error(name):
        return _cache.load(name, **options)


def load_dataset_dicts(name: str, classes: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Load the images of a registered dataset with their clean annotations, in detectron2's dataset dict format.

    Args:
        name: the dataset.
        classes: class names of a detector, whose order the category indices follow; by default, indices follow the
            order of the dataset's category ids, as in detectron2.

    Raises:
        UsageError: there is no such dataset, or it has a class that is not in `classes`.
        DataError: its annotations cannot be used.
    """
    _require_registered(name)
    if not has_annotations(name):
        return _load_other_dicts(name, classes)
    clean = load_clean_annotations(name)
    indices = None
    if classes is not None and names_its_classes(name):
        indices = match_classes(clean.classes, classes, name, "the detector")
    dicts = to_dataset_dicts(clean, indices)
    # Keys of one's own, such as the file of a semantic segmentation
    originals = _cache.original_dicts(name)
    return [{**originals.get(record["image_id"], {}), **record} for record in dicts]


def names_its_classes(name: str) -> bool:
    """Return whether a loaded dataset names its classes; one that is registered by its owner's code may not."""
    return bool(MetadataCatalog.get(name).get("thing_classes"))


def _load_other_dicts(name: str, classes: Sequence[str] | None) -> list[dict[str, Any]]:
    """Load a dataset of a kind that is not evaluated as COCO is, as its function returns it."""
    with _missing_file_as_data_error(name):
        dicts = load_own_dicts(name)
    if classes is not None and names_its_classes(name):
        indices = match_classes(MetadataCatalog.get(name).thing_classes, classes, name, "the detector")
        # Copies: the function may return the same dicts each time
        dicts = [
            {
                **record,
                "annotations": [
                    {**annotation, "category_id": indices[annotation["category_id"]]}
                    for annotation in record.get("annotations", ())
                ],
            }
            for record in dicts
        ]
    return dicts


def _require_registered(name: str) -> None:
    registered = DatasetCatalog.list()
    if name not in registered:
        raise UsageError(f"unknown dataset '{name}': {suggest(name, registered)}")


@contextlib.contextmanager
def _missing_file_as_data_error(name: str) -> Iterator[None]:
    json_file = MetadataCatalog.get(name).get("json_file", name)
    try:
        yield
    except FileNotFoundError as error:
        setting = (
            "DATASETS.CUSTOM.DATA, or its other keys, to where it is now"
            if name in CUSTOM_DATASETS
            else "DETECTRON2_DATASETS to the folder that contains it"
        )
        raise DataError(f"{error.filename or json_file}: no such file ({name}): set {setting}") from None


def prepare_datasets(
    cfg: CfgNode,
    group: ProcessGroup,
    *,
    training: bool = False,
    skeleton: KeypointSkeleton | None = None,
) -> None:
    """Check annotations and images on rank 0, and load the test datasets, which registers their class names.

    `skeleton` has the keypoints of a trained detector, which the datasets must have.
    """
    training_names = cfg.DATASETS.TRAIN if training else ()
    names = dict.fromkeys((*training_names, *cfg.DATASETS.TEST))
    for name in names if group.is_rank_0 else ():
        _require_registered(name)
        # Evaluation reads masks of both formats
        mask_format = cfg.INPUT.MASK_FORMAT if name in training_names else "bitmask"
        if has_annotations(name) and not name.startswith(_DIGIT_SCENES):
            summary = load_clean_annotations(
                name,
                mask_format=mask_format if cfg.MODEL.MASK_ON else None,
                need_boxes=name in training_names,
                max_opened=MAX_IMAGES_OPENED,
            ).summary
            logger.info(
                "%s: %d images, %d boxes, %d images without boxes",
                name,
                summary.images,
                summary.boxes,
                summary.empty_images,
            )
    for name in cfg.DATASETS.TEST:
        load_dataset_dicts(name)
    if cfg.MODEL.KEYPOINT_ON:
        categories = {
            name: load_clean_annotations(name).categories if has_annotations(name) else [] for name in names
        }
        register_keypoints(cfg, categories, skeleton)


def num_classes_setting(cfg: CfgNode) -> tuple[str, int]:
    """Return the config key that holds the network's number of classes, and its value."""
    section = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    return f"MODEL.{section}.NUM_CLASSES", cfg.MODEL[section].NUM_CLASSES


def set_num_classes(cfg: CfgNode) -> None:
    """Replace the number of classes 0 by the number that the training dataset has, or else the test dataset.

    Raises:
        UsageError: the datasets do not say which classes they have.
        DataError: their annotations cannot be used.
    """
    key, num_classes = num_classes_setting(cfg)
    if num_classes != 0:
        return
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for name in names:
        if classes := list(dataset_classes(name).values()):
            logger.info(
                "%s is %d, the number of classes of %s: %s", key, len(classes), name, first_few(classes, 10)
            )
            cfg.MODEL[key.split(".")[1]].NUM_CLASSES = len(classes)
            return
    source = dataset_source(names[0]) if names else None
    missing = f"there is no {source.annotations}" if source else "no dataset is set that names its classes"
    raise UsageError(
        f"{key} 0 means as many as the dataset has, but {missing}: set DATASETS.CUSTOM.DATA, or the number"
    )


def classes_from_categories(categories: Categories, num_classes: int | None = None) -> Classes:
    """Return the classes of a COCO-format file, ordered by category id as in detectron2."""
    classes = {category["id"]: category["name"] for category in sort_by_id(categories)}
    if num_classes is not None and num_classes != len(classes):
        names = first_few(list(classes.values()))
        raise UsageError(
            f"the annotations have {len(classes)} categories ({names}), but the detector has {num_classes} classes: "
            "pass annotations with the categories that it was trained on"
        )
    return classes


def detector_classes(cfg: CfgNode, categories: Categories | None = None) -> Classes:
    """Return the classes of a config's detector: those that the checkpoint in `MODEL.WEIGHTS` records.

    With `categories`, the list of a COCO-format file, their ids are used, matched by name if the checkpoint records its
    classes. If it does not, the classes come from the datasets of the config, test datasets first: from detectron2's
    metadata, or from the annotation file if it exists. If none has the network's number of classes, a detector with 80
    classes gets COCO's names and ids, and any other gets "class 1", "class 2" and so on, with ids from 1.
    """
    _, num_classes = num_classes_setting(cfg)
    weights = cfg.MODEL.WEIGHTS
    record = read_detector_record(weights) if weights else None
    if record and record.classes and categories is not None:
        return _match_categories(record.classes, categories)
    if record and record.classes:
        return dict(zip(record.category_ids, record.classes, strict=True))
    if categories is not None:
        return classes_from_categories(categories, num_classes)
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN, _COCO):
        classes = dataset_classes(name)
        if len(classes) == num_classes:
            return classes
    return {number: f"class {number}" for number in range(1, num_classes + 1)}


def _match_categories(names: Sequence[str], categories: Categories) -> Classes:
    """Return the ids of a COCO-format file for a detector's classes, in the detector's order.

    Classes that the file lacks get ids that it does not use.
    """
    classes = classes_from_categories(categories)
    outputs = match_classes(list(classes.values()), names, "the annotation file", "the detector")
    id_of_output = dict(zip(outputs, classes, strict=True))
    unused = (number for number in itertools.count(1) if number not in classes)
    return {
        id_of_output[index] if index in id_of_output else next(unused): name
        for index, name in enumerate(names)
    }


def classes_from_names(
    names: Sequence[str], categories: Categories | None = None, category_ids: Sequence[Id] = ()
) -> Classes:
    """Return the classes of an exported detector, which stores their names and, since version 2, their category ids.

    With `categories`, the list of a COCO-format file, the file's ids are used, matched by name. Without ids, COCO's
    names have COCO's ids, and other names have ids from 1.
    """
    if categories is not None:
        return _match_categories(names, categories)
    if category_ids:
        return dict(zip(category_ids, names, strict=True))
    coco = dataset_classes(_COCO)
    return coco if list(coco.values()) == list(names) else dict(enumerate(names, 1))


def dataset_classes(name: str) -> Classes:
    """Return the classes of a registered dataset; an empty mapping if they are unknown until it is loaded."""
    metadata = MetadataCatalog.get(name)
    if names := metadata.get("thing_classes"):
        # Category id -> class index; not every dataset has it
        index_of_id = metadata.get("thing_dataset_id_to_contiguous_id")
        ids = sorted(index_of_id, key=index_of_id.get) if index_of_id else range(len(names))
        if len(ids) != len(names):
            problem = f"{len(names)} thing_classes but {len(ids)} ids in thing_dataset_id_to_contiguous_id"
            raise DataError(f"{name}: its metadata has {problem}; register one id per class")
        return dict(zip(ids, names, strict=True))
    source = dataset_source(name)
    if source is None or not source.annotations.exists():
        return {}
    return classes_from_categories(source.categories())


def dataset_source(name: str) -> AnnotationSource | None:
    """Return the annotation file or folder of a registered dataset; None if a function provides its images."""
    metadata = MetadataCatalog.get(name)
    if source := metadata.get("annotation_source"):
        return source
    file = metadata.get("json_file", "")
    return AnnotationSource(Path(file), Path(metadata.get("image_root", "")), "coco") if file else None


for _name in ("digit_scenes_train", "digit_scenes_test"):
    DatasetCatalog.register(_name, partial(load_dataset_dicts, _name))
    _set_digit_scenes_metadata(_name)
