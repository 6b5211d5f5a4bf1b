"""Data sets for detectors: those of one's own, what is checked of each, and batches in an order that can go on."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetFromList, MapDataset, MetadataCatalog
from detectron2.data.build import filter_images_with_few_keypoints, filter_images_with_only_crowd_annotations
from detectron2.data.datasets import load_coco_json
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from torch.utils.data import DataLoader, Dataset, Sampler

from fbnetv3.data.digit_scenes import digit_scenes, digit_scenes_folder
from fbnetv3.data.loader import init_worker
from fbnetv3.detection.data.coco_annotations import check_annotations
from fbnetv3.detection.data.dataset_mapper import FBNetV3DatasetMapper
from fbnetv3.errors import DataError, UsageError, suggest
from fbnetv3.training.processes.distributed import World
from fbnetv3.utils.random_state import derive_seed

OWN = {"own_train": "TRAIN", "own_test": "TEST"}
_DIGIT_SCENES = "digit_scenes_"
_SAMPLERS = ("TrainingSampler", "RepeatFactorTrainingSampler")


def register_own(cfg: CfgNode) -> None:
    """Register the data set of `DATASETS.OWN` as "own_train" and "own_test", and put it in place of others.

    `DATASETS.TEST` may name both of them, to evaluate on the training images too; else it becomes "own_test", or
    nothing where there is none.

    Raises:
        UsageError: a file without its folder, or the other way round.
    """
    own = cfg.DATASETS.OWN
    for name, part in OWN.items():
        annotations, images = own[f"{part}_JSON"], own[f"{part}_IMAGES"]
        if bool(annotations) != bool(images):
            raise UsageError(f"DATASETS.OWN.{part}_JSON and DATASETS.OWN.{part}_IMAGES go together: set both")
        for catalog in (DatasetCatalog, MetadataCatalog):
            with contextlib.suppress(KeyError):
                catalog.remove(name)
        if annotations:
            _register(name, Path(annotations).expanduser(), Path(images).expanduser())
    if own.TRAIN_JSON:
        cfg.DATASETS.TRAIN = ("own_train",)
    if own.TRAIN_JSON or own.TEST_JSON:
        named = tuple(name for name in cfg.DATASETS.TEST if name in OWN)
        cfg.DATASETS.TEST = named or (("own_test",) if own.TEST_JSON else ())


def _register(name: str, annotations: Path, images: Path) -> None:
    DatasetCatalog.register(name, lambda: load_coco_json(str(annotations), str(images), name))
    MetadataCatalog.get(name).set(json_file=str(annotations), image_root=str(images), evaluator_type="coco")


def _register_digit_scenes() -> None:
    """Make the scenes of handwritten digits known to detectron2; they are drawn on first use."""
    for split in ("train", "test"):
        name = f"{_DIGIT_SCENES}{split}"
        if name not in DatasetCatalog.list():
            DatasetCatalog.register(name, partial(_load_digit_scenes, name))
            _describe_digit_scenes(name)


def _describe_digit_scenes(name: str) -> None:
    folder, split = digit_scenes_folder(), name.removeprefix(_DIGIT_SCENES)
    file = str(folder / f"{split}.json")
    if MetadataCatalog.get(name).get("json_file") != file:  # another cache than before
        MetadataCatalog.pop(name)
        MetadataCatalog.get(name).set(json_file=file, image_root=str(folder / split), evaluator_type="coco")


def _load_digit_scenes(name: str) -> list[dict[str, Any]]:
    digit_scenes()
    _describe_digit_scenes(name)
    about = MetadataCatalog.get(name)
    return load_coco_json(about.json_file, about.image_root, name)


def load_dicts(name: str) -> list[dict[str, Any]]:
    """The images of a registered data set with their annotations, in detectron2's format.

    Args:
        name: its name in detectron2's catalog.

    Raises:
        UsageError: no such data set.
        DataError: its file of annotations is missing or damaged, or has no images; the text names it.
    """
    if name not in DatasetCatalog.list():
        raise UsageError(f"no data set '{name}': {suggest(name, DatasetCatalog.list())}")
    file = MetadataCatalog.get(name).get("json_file", name)
    try:
        found = DatasetCatalog.get(name)
    except FileNotFoundError as error:
        where = "set DATASETS.OWN" if name in OWN else "set DETECTRON2_DATASETS to the folder that holds it"
        raise DataError(f"{error.filename or file}: no such file ({name}): {where}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: is not JSON ({error}): get it again") from None
    except (KeyError, TypeError, AssertionError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise DataError(f"{file}: has not COCO's format ({reason})") from None
    if not found:
        raise DataError(f"{file}: has no images ({name})")
    return found


def check_data(cfg: CfgNode, names: Sequence[str], need_boxes: bool) -> None:
    """Look through the annotation files of data sets and their images; see `check_annotations`.

    Data sets of other formats than COCO's, and files that are not there, are left to `load_dicts`.

    Args:
        cfg: says whether masks are needed, and of which kind.
        names: of registered data sets.
        need_boxes: whether there must be a box in each: to train on.

    Raises:
        AnnotationError: what is wrong, all at once.
    """
    for name in names:
        if name not in DatasetCatalog.list() or name.startswith(_DIGIT_SCENES):
            continue
        about = MetadataCatalog.get(name)
        file = about.get("json_file", "")
        if about.get("evaluator_type") == "coco" and file and Path(file).is_file():
            masks = cfg.INPUT.MASK_FORMAT if cfg.MODEL.MASK_ON else None
            check_annotations(file, about.image_root, mask_format=masks, need_boxes=need_boxes)


def class_count(cfg: CfgNode) -> tuple[str, int]:
    """The key that says how many classes the network has, and its value."""
    key = "RETINANET" if cfg.MODEL.META_ARCHITECTURE == "RetinaNet" else "ROI_HEADS"
    return f"MODEL.{key}.NUM_CLASSES", cfg.MODEL[key].NUM_CLASSES


def check_classes(cfg: CfgNode, names: Sequence[str]) -> list[str]:
    """The classes of data sets, which have to be loaded already; "" for none.

    Raises:
        UsageError: the data sets' classes differ, or the network has another number of them.
    """
    key, count = class_count(cfg)
    first: list[str] = []
    for name in names:
        classes = list(MetadataCatalog.get(name).get("thing_classes", []))
        if classes and len(classes) != count:
            shown = ", ".join(classes[:4]) + (" and so on" if len(classes) > 4 else "")
            raise UsageError(
                f"{name} has {len(classes)} classes ({shown}), the network {count}: set {key} {len(classes)}"
            )
        if first and classes != first:
            raise UsageError(f"{name} has other classes than {names[0]}: {sorted(set(classes) ^ set(first))[:6]}")
        first = first or classes
    return first


class StepSampler(Sampler):
    """Yields for each step the (position, index) of its images, without end, in an order of its own for each seed.

    Positions count the images of the whole training, so that a step's images and their augmentation depend on the
    seed and the step alone. Where several processes train together, steps are the same as for one, and each gets its
    part of every one.

    Args:
        indices: makes the stream of images, the same each time.
        batch_size: images a step, over all processes.
        groups: of each image, a number; a step has images of one group. None for no groups.
        rank, world_size: number of this process, and how many there are.

    Attributes:
        start: steps to leave out at the beginning.
    """

    def __init__(
        self,
        indices: Callable[[], Iterator[int]],
        batch_size: int,
        groups: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.indices, self.batch_size, self.groups = indices, batch_size, groups
        self.rank, self.part = rank, batch_size // world_size
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        mine = slice(self.rank * self.part, (self.rank + 1) * self.part)
        return (step[mine] for step in itertools.islice(self._steps(), self.start, None))

    def _steps(self) -> Iterator[list[tuple[int, int]]]:
        waiting: dict[int, list[tuple[int, int]]] = {}
        for item in enumerate(self.indices()):
            group = self.groups[item[1]] if self.groups is not None else 0
            waiting.setdefault(group, []).append(item)
            if len(waiting[group]) == self.batch_size:
                yield waiting.pop(group)


class SeededImages(Dataset):
    """Images behind a mapper, whose randomness depends on the seed and on the image's position in training alone."""

    def __init__(self, dicts: list[dict[str, Any]], mapper: Callable[[dict], dict], seed: int) -> None:
        self.dicts, self.mapper, self.seed = DatasetFromList(dicts, copy=False), mapper, seed

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        position, index = key
        with _seeded(derive_seed(self.seed, position)):
            return self.mapper(copy.deepcopy(self.dicts[index]))


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """NumPy's, Python's and torch's randomness from a seed of its own."""
    before = np.random.get_state(), random.getstate(), torch.default_generator.get_state()
    np.random.seed(seed % 2**32)
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before[0])
        random.setstate(before[1])
        torch.default_generator.set_state(before[2])


class TrainLoader:
    """Batches without end, of which it remembers the last.

    Attributes:
        sampler: set its `start` to go on in the middle.
        last: the last batch.
        images: how many there are.
    """

    def __init__(self, loader: DataLoader, sampler: StepSampler, images: int) -> None:
        self.loader, self.sampler, self.images = loader, sampler, images
        self.last: list[dict[str, Any]] = []

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self.loader:
            self.last = batch
            yield batch


def build_train_loader(cfg: CfgNode, seed: int, world: World) -> TrainLoader:
    """Batches of the data sets `DATASETS.TRAIN`, augmented as detectron2's mapper does.

    Raises:
        UsageError: no such data set or sampler, a batch that the processes cannot share.
        DataError: missing or damaged annotations, or no image with any.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch % world.size:
        raise UsageError(f"SOLVER.IMS_PER_BATCH {batch} is no multiple of the {world.size} processes")
    if not cfg.DATASETS.TRAIN:
        raise UsageError("DATASETS.TRAIN is empty: name a data set, or set DATASETS.OWN")
    dicts = [image for name in cfg.DATASETS.TRAIN for image in load_dicts(name)]
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and "annotations" in dicts[0]:
        dicts = filter_images_with_only_crowd_annotations(dicts)
    if cfg.MODEL.KEYPOINT_ON:
        dicts = filter_images_with_few_keypoints(dicts, cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE)
    if not dicts:
        raise DataError(f"{', '.join(cfg.DATASETS.TRAIN)}: no image has annotations to learn from")
    if cfg.MODEL.MASK_ON and not any("segmentation" in a for image in dicts for a in image.get("annotations", ())):
        names = ", ".join(cfg.DATASETS.TRAIN)
        raise UsageError(f"{names}: no outlines (segmentation) to learn masks from: set MODEL.MASK_ON False")
    groups = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = [int(image["width"] <= image["height"]) for image in dicts]
    sampler = StepSampler(_stream(cfg, dicts, seed), batch, groups, world.rank, world.size)
    loader = DataLoader(
        SeededImages(dicts, FBNetV3DatasetMapper(cfg, is_train=True), seed),
        batch_sampler=sampler,
        num_workers=_workers(cfg),
        collate_fn=list,
        worker_init_fn=init_worker,
        generator=torch.Generator().manual_seed(seed % 2**63),
    )
    return TrainLoader(loader, sampler, len(dicts))


def _stream(cfg: CfgNode, dicts: list[dict[str, Any]], seed: int) -> Callable[[], Iterator[int]]:
    """Makes the stream of images that a sampler of detectron2's gives all processes together."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return TrainingSampler(len(dicts), seed=seed)._infinite_indices
    if name == "RepeatFactorTrainingSampler":
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            dicts, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
        )
        return RepeatFactorTrainingSampler(factors, seed=seed)._infinite_indices
    raise UsageError(f"DATALOADER.SAMPLER_TRAIN {name!r} is none that can go on: {suggest(name, _SAMPLERS)}")


def build_test_loader(cfg: CfgNode, name: str) -> DataLoader:
    """The images of a data set, one a batch; of several processes, each gets other images.

    Raises:
        UsageError: no such data set.
        DataError: missing or damaged annotations.
    """
    images = DatasetFromList(load_dicts(name), copy=False)
    return DataLoader(
        MapDataset(images, FBNetV3DatasetMapper(cfg, is_train=False)),
        sampler=InferenceSampler(len(images)),
        num_workers=_workers(cfg),
        collate_fn=list,
        worker_init_fn=init_worker,
    )


def _workers(cfg: CfgNode) -> int:
    """Processes that read images: not more than there are processors."""
    return min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)


_register_digit_scenes()
