"""Open a dataset of any kind and check all of its splits."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from fbnetv3.data.check.examination import examine_dataset
from fbnetv3.data.check.findings import ERROR, WARNING, DataCheck, Finding, SplitContents, find_problems
from fbnetv3.data.datasets import FolderDataset, ImageDataset, build_dataset, open_imagefolder
from fbnetv3.errors import DataError
from fbnetv3.utils.files import expand_path
from fbnetv3.utils.text import first_few

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")


def check_dataset(name: str, root: str, workers: int = 0, progress: bool = True) -> DataCheck:
    """Read all images of a registered dataset's splits, and report what would stop or spoil training.

    Args:
        name: name of the dataset, as in DATA.NAME.
        root: its folder or file, as in DATA.ROOT.
        workers: number of worker processes.
        progress: whether to show progress bars on a terminal.

    Raises:
        UsageError: `root` is not set, or no such dataset is registered.
        DataError: no split can be opened.
    """
    datasets: dict[str, ImageDataset] = {}
    findings = []
    for split in SPLITS:
        try:
            datasets[split] = _open_split(name, root, split)
        except DataError as error:
            findings.append(Finding(f"no {split}", ERROR, str(error)))
    if not datasets:
        raise DataError(findings[0].message)
    return _check(root or name, datasets, findings, workers, progress)


def _open_split(name: str, root: str, split: str) -> ImageDataset:
    # Empty class folders are a finding among others, not the end of the check
    if name == "imagefolder":
        return open_imagefolder(root, split, allow_empty_classes=True)
    return build_dataset(name, root, split)


def check_folder(folder: Path, workers: int = 0, progress: bool = True) -> DataCheck:
    """Check a folder with one subfolder of images per class that is not yet divided into training and validation."""
    advice = "not divided into train and val: tools/make_split.py holds out images"
    findings = [Finding("one split", WARNING, advice)]
    return _check(str(folder), {"all": FolderDataset(folder)}, findings, workers, progress)


def _check(
    source: str,
    datasets: dict[str, ImageDataset],
    findings: list[Finding],
    workers: int,
    progress: bool,
) -> DataCheck:
    splits = {
        split: SplitContents(
            dataset, examine_dataset(dataset, split, workers, progress), skipped_files(dataset)
        )
        for split, dataset in datasets.items()
    }
    return DataCheck(source, splits, [*findings, *find_problems(splits)])


def skipped_files(dataset: ImageDataset) -> str:
    """Return one line about the files that a dataset skipped when it looked for images; "" if it does not say.

    This is the optional attribute `skipped` of a dataset, as text.
    """
    return str(getattr(dataset, "skipped", "") or "")


def guess_dataset(path: str | os.PathLike) -> tuple[str, str]:
    """Return the name (DATA.NAME) and root (DATA.ROOT) of the dataset at a path; "" for an undivided folder.

    Raises:
        DataError: there is no such file or folder.
    """
    root = expand_path(path)
    if root.is_file():
        return "imagelist", str(root)
    if not root.is_dir():
        raise DataError(f"{path}: no such file or folder")
    if (root / "cifar-10-batches-py").is_dir():
        return "cifar10", str(root)
    splits = ("train", "val", "test")
    files = [f"{split}.csv" for split in splits if (root / f"{split}.csv").is_file()]
    folders = [f"{split}/" for split in splits if any(entry.is_dir() for entry in (root / split).glob("*"))]
    if files and folders:
        kinds = f"{first_few(files)} and class folders in {first_few(folders)}"
        logger.info(
            "%s: has %s; the CSV files are used (DATA.NAME imagefolder uses the folders)", path, kinds
        )
    if files:
        return "csv", str(root)
    if any(any(root.glob(pattern)) for pattern in ("*.tar", *(f"{split}/*.tar" for split in splits))):
        return "shards", str(root)
    is_divided = any((root / split).is_dir() for split in splits)
    return ("imagefolder" if is_divided else ""), str(root)


def check_path(path: str | os.PathLike, workers: int = 0, progress: bool = True) -> DataCheck:
    """Check the dataset at a path, of whichever kind; see `guess_dataset`."""
    name, root = guess_dataset(path)
    return (
        check_dataset(name, root, workers, progress)
        if name
        else check_folder(Path(root), workers, progress)
    )
