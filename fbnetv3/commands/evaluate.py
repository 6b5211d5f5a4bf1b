"""Evaluate a network on a dataset: `fbnetv3 eval MODEL [--data PATH] [KEY VALUE ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fbnetv3 import model_zoo
from fbnetv3.arch import configs_folder
from fbnetv3.commands import train
from fbnetv3.config import is_detection_config
from fbnetv3.data.check.check_dataset import guess_dataset
from fbnetv3.deploy.exported_folder import is_exported_folder
from fbnetv3.errors import UnknownNameError, UsageError
from fbnetv3.model_zoo.pretrained import is_checkpoint
from fbnetv3.model_zoo.zoo import is_detector
from fbnetv3.modeling.torch_device import find_device
from fbnetv3.training.run_state.detector_record import read_detector_record
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.utils.command_line import ArgumentParser
from fbnetv3.utils.files import expand_path


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a network."""
    parser = ArgumentParser(
        description="Evaluate a network on the validation images of its config, or of --data."
    )
    parser.add_argument(
        "model", metavar="MODEL", help="checkpoint, folder of a run, config file or model zoo entry"
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        help="for a classifier: folder with val/ or test/, of tar files or of CSV files; or subset file; "
        "for a detector: annotations of any format, such as data.yaml, or a folder with them",
    )
    parser.add_argument(
        "--report", metavar="DIR", help="folder for tables and figures (default: that of the run)"
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="cpu, cuda or cuda:1, or auto: a GPU if there is one (default: that of the config)",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="config overrides, such as EVAL.TTA flip"
    )
    args = parser.parse_intermixed_args(argv)
    source = _choose_config(args.model)
    overrides = _detector_data(args.data) if args.data and _is_detector(source) else _data_overrides(args)
    if args.device:
        device = str(find_device(args.device))
        overrides += ["MODEL.DEVICE" if _is_detector(source) else "DEVICE", device]
    train.main(["--eval-only", *source, *overrides, *args.overrides])


def _choose_config(model: str) -> list[str]:
    """Return the arguments that name config and weights."""
    path = expand_path(model)
    if is_exported_folder(path):
        raise UsageError(
            f"{model}: is an exported network: evaluate the checkpoint that it was exported from"
        )
    if path.is_dir():
        config = RunFolder(path).config
        if not config.is_file():
            raise UsageError(
                f"{model}: is not the folder of a run, which has a {config.name}: pass one, or a checkpoint"
            )
        return ["--config", str(config)]
    if is_checkpoint(model):
        return ["MODEL.WEIGHTS", model]
    if path.is_file():
        return ["--config", model]
    try:
        entry = model_zoo.entry(model)
    except UnknownNameError as error:
        raise UnknownNameError(f"{model}: no such run, checkpoint or config, and {error}") from None
    weights = entry.local_weights() if is_detector(entry.name) else f"zoo://{entry.name}"
    return ["--config", str(configs_folder() / entry.name), "MODEL.WEIGHTS", str(weights)]


def _is_detector(source: Sequence[str]) -> bool:
    """Return whether the result of `_choose_config` is a detector."""
    option, value = source[:2]
    return is_detection_config(value) if option == "--config" else read_detector_record(value) is not None


def _detector_data(data: str) -> list[str]:
    """Return the overrides that evaluate a detector on other annotations than those of its config."""
    values = {"TEST_ANNOTATIONS": data, "TEST_IMAGES": "", "FORMAT": "auto"}
    return [word for key, value in values.items() for word in (f"DATASETS.CUSTOM.{key}", value)]


def _data_overrides(args: argparse.Namespace) -> list[str]:
    overrides = ["EVAL.REPORT", args.report] if args.report else []
    if args.data:
        name, root = guess_dataset(args.data)
        if not name:
            raise UsageError(
                f"{args.data}: has no folder val/ or test/ with a folder for each class, no tar files and no val.csv; "
                "put class folders into a folder val/"
            )
        overrides += ["DATA.NAME", name, "DATA.ROOT", root]
    return overrides
