"""Data loaders for detectors; training batches depend only on seed and step, so a run can resume anywhere."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset
from detectron2.data.build import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
)
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader, Dataset, Sampler

from fbnetv3.data.batches.worker_count import available_cpus, choose_workers, processes_of_machine
from fbnetv3.data.loader import SignalSafeLoader, init_worker
from fbnetv3.detection.data.dataset_mapper import FBNetV3DatasetMapper, build_training_mapper
from fbnetv3.detection.data.detection_datasets import load_dataset_dicts
from fbnetv3.detection.data.image_sampling import index_stream
from fbnetv3.errors import DataError, UsageError
from fbnetv3.training.processes.distributed import ProcessGroup
from fbnetv3.utils.random_state import derive_seed, seeded


class StepBatchSampler(Sampler):
    """Yields, for each training step from `start` on, the (position, index) pairs of its images; never ends.

    Positions count the images of the whole training run. A step's images and their augmentation depend only on the
    index stream and the step. Several processes run the same steps as a single one; each takes its share of every step.

    `index_stream` returns the endless stream of image indices, the same at each call. `batch_size` is the number of
    images per step over all processes. All images of a step have the same number in `groups`; None for no grouping.
    """

    def __init__(
        self,
        index_stream: Callable[[], Iterator[int]],
        batch_size: int,
        groups: Sequence[int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.index_stream = index_stream
        self.batch_size = batch_size
        self.groups = groups
        images_per_process = batch_size // world_size
        self.share = slice(rank * images_per_process, (rank + 1) * images_per_process)
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return (step[self.share] for step in itertools.islice(self._steps(), self.start, None))

    def _steps(self) -> Iterator[list[tuple[int, int]]]:
        incomplete: dict[int, list[tuple[int, int]]] = {}  # the growing step of each group
        for position, index in enumerate(self.index_stream()):
            group = self.groups[index] if self.groups is not None else 0
            step = incomplete.setdefault(group, [])
            step.append((position, index))
            if len(step) == self.batch_size:
                yield incomplete.pop(group)


class SeededDataset(Dataset):
    """Dataset dicts passed through a mapper whose randomness depends only on the run's seed and the position."""

    def __init__(self, dicts: Sequence[dict[str, Any]], mapper: Callable[[dict], dict], seed: int) -> None:
        self.dicts = dicts
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        position, index = key
        with seeded(derive_seed(self.seed, position)):
            return self.mapper(copy.deepcopy(self.dicts[index]))


class DetectionTrainLoader(SignalSafeLoader):
    """Yields training batches endlessly, and keeps the last one for error reports."""

    last_batch: Sequence[dict[str, Any]] = ()

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:  # type: ignore[override]
        for batch in super().__iter__():
            self.last_batch = batch
            yield batch


def build_train_loader(
    cfg: CfgNode, seed: int, group: ProcessGroup, classes: Sequence[str] | None = None
) -> DetectionTrainLoader:
    """Build the loader of `DATASETS.TRAIN`, with the config's augmentation and a `StepBatchSampler`.

    `classes` names the detector's classes, whose order the class indices follow; by default, that of the dataset.
    """
    batch_size = cfg.SOLVER.IMS_PER_BATCH
    if batch_size % group.size:
        raise UsageError(
            f"SOLVER.IMS_PER_BATCH {batch_size} is not a multiple of the {group.size} processes"
        )
    dicts = _load_training_dicts(cfg, classes)
    # Landscape and portrait images form separate steps, which need less padding
    groups = None
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        groups = [int(image["width"] <= image["height"]) for image in dicts]
    # Serialized, which keeps worker processes from copying them
    images: Any = DatasetFromList(dicts, copy=False)
    return DetectionTrainLoader(
        SeededDataset(images, build_training_mapper(cfg, images), seed),
        batch_sampler=StepBatchSampler(
            index_stream(cfg, dicts, seed), batch_size, groups, group.rank, group.size
        ),
        generator=torch.Generator().manual_seed(seed % 2**63),
        **_loader_options(cfg),
    )


def _load_training_dicts(cfg: CfgNode, classes: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Load the images of `DATASETS.TRAIN` that have annotations to train on."""
    dicts = [image for name in cfg.DATASETS.TRAIN for image in load_dataset_dicts(name, classes)]
    # Apply the filters of detectron2's get_detection_dataset_dicts
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS and dicts and "annotations" in dicts[0]:
        dicts = filter_images_with_only_crowd_annotations(dicts)
    if cfg.MODEL.KEYPOINT_ON:
        dicts = filter_images_with_few_keypoints(dicts, cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE)
    if not dicts:
        raise DataError(
            f"DATASETS.TRAIN {cfg.DATASETS.TRAIN}: no image has annotations to train on: name a dataset, or set "
            "DATASETS.CUSTOM"
        )
    return dicts


def build_test_loader(cfg: CfgNode, name: str) -> DataLoader:
    """Build the loader of a test dataset, one image per batch; several processes share the images."""
    images = DatasetFromList(load_dataset_dicts(name), copy=False)
    dataset = MapDataset(images, FBNetV3DatasetMapper(cfg, is_train=False))
    return SignalSafeLoader(dataset, sampler=InferenceSampler(len(images)), **_loader_options(cfg))


def _loader_options(cfg: CfgNode) -> dict[str, Any]:
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda")
    return {
        # detectron2's default suits large machines: no more workers than the machine has CPUs for them
        "num_workers": min(
            cfg.DATALOADER.NUM_WORKERS, choose_workers(available_cpus(), processes_of_machine(), on_gpu)
        ),
        "collate_fn": list,
        "worker_init_fn": init_worker,
        # So that `send_inputs` need not wait for the GPU
        "pin_memory": on_gpu,
    }
