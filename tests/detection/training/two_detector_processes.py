"""Scenarios that each of two processes runs, for test_two_detector_processes.py; arguments: a folder and a config."""

import os
import sys
from pathlib import Path
from unittest import mock

import torch
from torch import distributed, nn

from fbnetv3.detection.detection_config import load_detection_config
from fbnetv3.detection.training import detector_setup
from fbnetv3.detection.training.checked_trainer import CheckedTrainer
from fbnetv3.detection.training.detector_training import train_detector
from fbnetv3.errors import UserError
from fbnetv3.modeling.sync_batchnorm import CpuSyncBatchNorm2d
from fbnetv3.training.processes.distributed import process_group


def make_norm(norm, affine=True):
    """Return a BatchNorm of three channels in training mode, with random weights if it has any."""
    module = norm(3, affine=affine).train()
    if affine:
        nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(1))
    return module


def sync_norm(batches_by_rank, affine=True):
    """Return BatchNorm's outputs, gradients and statistics over the batches of both processes."""
    module = make_norm(CpuSyncBatchNorm2d, affine)
    with process_group("cpu") as group:
        x = batches_by_rank[group.rank].clone().requires_grad_()
        y = module(x)
        (y**3).sum().backward()
        gradients = [torch.stack(group.gather(p.grad)).sum(0) for p in module.parameters()]
    return {
        "y": y.detach(),
        "dx": x.grad,
        "parameters": gradients,
        "mean": module.running_mean,
        "var": module.running_var,
    }


def make_batches(size_0, size_1):
    """Return random batches of these sizes, the same in both processes."""
    values = torch.randn(size_0 + size_1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return values[:size_0], values[size_0:]


def one_value_per_channel():
    """Return BatchNorm's error for one value per channel in both processes together."""
    module = CpuSyncBatchNorm2d(3).train()
    with process_group("cpu") as group:
        try:
            module(torch.ones(1 - group.rank, 3, 1, 1))
        except ValueError as error:
            return str(error)


def training(folder, config):
    """Train briefly; return this process's weights, image names and exchanges of each step, and results."""
    models = []
    image_names = []
    exchanges = []
    before_train = CheckedTrainer.before_train
    run_step = CheckedTrainer.run_step

    def recording_before_train(self):
        models.append(self.model)
        before_train(self)

    def recording_run_step(self):
        with mock.patch.object(distributed, "all_reduce", wraps=distributed.all_reduce) as all_reduce:
            run_step(self)
        # Those of the synchronized BatchNorm are of float32
        dtypes = [call.args[0].dtype for call in all_reduce.call_args_list]
        exchanges.append(dtypes.count(torch.float64))
        image_names.append([image["file_name"] for image in self.data_loader.last_batch])

    CheckedTrainer.before_train = recording_before_train
    CheckedTrainer.run_step = recording_run_step
    cfg = load_detection_config(config, ["MODEL.FBNETV3.NORM", "SyncBN", "OUTPUT_DIR", str(folder / "run")])
    result = train_detector(cfg)
    return {
        "model": models[0].module.state_dict(),
        "broadcasts_buffers": models[0].broadcast_buffers,
        "names": list(image_names),
        "exchanges": list(exchanges),
        "results": result.results,
    }


def diverging(folder, config, fused=False):
    """Train with a non-finite loss on rank 1 only; return the error."""
    write_metrics = CheckedTrainer._write_metrics
    detector_setup.prefers_fused = lambda cfg: fused

    def write_nan(self, loss_dict, *args, **kwargs):
        factor = torch.nan if self.group.rank == 1 and self.iter == 1 else 1
        write_metrics(self, {key: value * factor for key, value in loss_dict.items()}, *args, **kwargs)

    CheckedTrainer._write_metrics = write_nan
    out = folder / ("diverged_fused" if fused else "diverged")
    # Without a checkpoint at the step, for which its losses would be read
    cfg = load_detection_config(config, ["SOLVER.CHECKPOINT_PERIOD", "9", "OUTPUT_DIR", str(out)])
    try:
        train_detector(cfg)
    except UserError as error:
        return str(error)
    finally:
        CheckedTrainer._write_metrics = write_metrics


def main(folder, config):
    results = {
        "empty": sync_norm(make_batches(5, 0)),
        "uneven": sync_norm(make_batches(2, 3)),
        "no weights": sync_norm(make_batches(2, 3), affine=False),
        "one value per channel": one_value_per_channel(),
        "training": training(folder, config),
        "diverging": diverging(folder, config),
        "diverging fused": diverging(folder, config, fused=True),
    }
    torch.save(results, folder / f"process{os.environ['RANK']}.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
