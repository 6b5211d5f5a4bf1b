"""Experiment trackers by name: TensorBoard, Weights & Biases, MLflow. A tracker that fails does not end a run."""

from __future__ import annotations

import importlib
import logging
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from fbnetv3.errors import FieldError, MissingPackageError
from fbnetv3.registry import Registry
from fbnetv3.utils.files import write_text
from fbnetv3.utils.text import describe_error

logger = logging.getLogger(__name__)

TRACKERS = Registry("tracker")
"""Classes of trackers, called with the keywords `folder` (the run's), `config` (all config keys and values) and `step`
(completed steps of a resumed run, 0 of a new one). An attribute `package` names the package that a tracker needs."""


class Tracker(Protocol):
    """The interface of a tracker."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record values by name, such as "loss" and "val_top1", after a number of steps."""
        ...

    def close(self) -> None:
        """Finish the record of this start of the run."""
        ...


def check_trackers(names: Sequence[str]) -> None:
    """Raise the error of a tracker in LOG.TRACKERS that does not exist or whose package is not installed."""
    for name in names:
        TRACKERS.check(name, "LOG.TRACKERS", FieldError)
        package = getattr(TRACKERS.get(name), "package", "")
        try:
            importlib.import_module(package or "fbnetv3")
        except ImportError as error:
            problem = f"LOG.TRACKERS {name} needs {package}, which cannot be imported ({describe_error(error, 120)})"
            raise MissingPackageError(f"{problem}: pip install {package}") from None


class RunTrackers:
    """The trackers of a run. One that fails is left out from then on, with a warning.

    Args:
        names: names of trackers.
        folder: folder of the run.
        config: all config keys and values of the run.
        step: completed steps.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: Mapping[str, Any], step: int) -> None:
        self._trackers: dict[str, Tracker] = {}
        for name in names:
            try:
                self._trackers[name] = TRACKERS.get(name)(folder=folder, config=config, step=step)
            except Exception as error:  # such as of a server that is not reached
                _warn(name, error)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record values in all trackers."""
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(values, step)
            except Exception as error:
                _warn(name, error)
                del self._trackers[name]

    def close(self) -> None:
        """Close all trackers."""
        for name, tracker in self._trackers.items():
            try:
                tracker.close()
            except Exception as error:
                _warn(name, error)
        self._trackers = {}


def _warn(name: str, error: Exception) -> None:
    logger.warning("%s does not track this run any more: %s", name, describe_error(error))


@TRACKERS.register(name="tensorboard")
class TensorBoardTracker:
    """Writes TensorBoard events to `tensorboard/` in the run's folder."""

    package = "tensorboard"

    def __init__(self, *, folder: Path, config: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Entries after the checkpoint from which the run resumes are hidden
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


@TRACKERS.register(name="wandb")
class WandbTracker:
    """Logs to Weights & Biases; its own environment variables, such as WANDB_PROJECT and WANDB_MODE, apply.

    A resumed run continues its record. Weights & Biases keeps what was logged after the checkpoint, and ignores those
    steps when they are repeated.
    """

    package = "wandb"

    def __init__(self, *, folder: Path, config: Mapping[str, Any], step: int) -> None:
        import wandb

        run_id = _remembered_id(folder / "wandb_id.txt", step) or secrets.token_hex(4)
        write_text(folder / "wandb_id.txt", run_id + "\n")
        self._run = wandb.init(
            id=run_id, resume="allow", name=folder.name, dir=str(folder), config=dict(config)
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log values."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Finish the record and send what is left."""
        self._run.finish()


@TRACKERS.register(name="mlflow")
class MlflowTracker:
    """Logs to MLflow; its own environment variables, such as MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, apply.

    A resumed run continues its record.
    """

    package = "mlflow"

    def __init__(self, *, folder: Path, config: Mapping[str, Any], step: int) -> None:
        import mlflow

        self._mlflow = mlflow
        run_id = _remembered_id(folder / "mlflow_id.txt", step)
        run = mlflow.start_run(run_id=run_id) if run_id else mlflow.start_run(run_name=folder.name)
        write_text(folder / "mlflow_id.txt", run.info.run_id + "\n")
        # Parameters of a run cannot be changed
        if not run_id:
            mlflow.log_params({key: str(value) for key, value in config.items()})

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log values."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


def _remembered_id(file: Path, step: int) -> str:
    """Return the id of a resumed run's record; "" for a new run, or without one."""
    return file.read_text().strip() if step and file.exists() else ""
