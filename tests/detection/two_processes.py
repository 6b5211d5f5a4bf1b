"""What each of two processes comes to, for test_two_processes.py; its arguments are a folder and a config."""

import os
import sys
from pathlib import Path

import torch
from torch import nn

from fbnetv3.detection.detection_config_loading import load_config
from fbnetv3.detection.training.detection_trainer import WatchedTrainer
from fbnetv3.detection.training.detector_training import run_training
from fbnetv3.errors import UserError
from fbnetv3.modeling.sync_batchnorm import CpuSyncBatchNorm2d
from fbnetv3.training.processes.distributed import joined


def norm(parts):
    """Outputs, gradients and statistics of BatchNorm over the batches of both processes, of which mine is one."""
    module = CpuSyncBatchNorm2d(3).train()
    nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(1))
    with joined("cpu") as world:
        x = parts[world.rank].clone().requires_grad_()
        y = module(x)
        (y**3).sum().backward()
        total = [torch.stack(world.gather(p.grad)).sum(0) for p in module.parameters()]
    return {"y": y.detach(), "dx": x.grad, "parameters": total, "mean": module.running_mean, "var": module.running_var}


def batches(first, second):
    """The same numbers in both processes, in two parts."""
    values = torch.randn(first + second, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return values[:first], values[first:]


def one_value():
    """What BatchNorm says to one value a channel, of both processes together."""
    module = CpuSyncBatchNorm2d(3).train()
    with joined("cpu") as world:
        try:
            module(torch.ones(1 - world.rank, 3, 1, 1))
        except ValueError as error:
            return str(error)


def training(folder, config):
    """A short training, and what has become of the model in this process."""
    models = []
    first = WatchedTrainer.before_train
    WatchedTrainer.before_train = lambda self: (models.append(self.model.module), first(self))[1]
    names = []
    step = WatchedTrainer.run_step
    WatchedTrainer.run_step = lambda self: (
        step(self),
        names.append([image["file_name"] for image in self.data_loader.last]),
    )[0]
    cfg = load_config(config, ["MODEL.FBNETV3.NORM", "SyncBN", "OUTPUT_DIR", str(folder / "run")])
    result = run_training(cfg)
    return {"model": models[0].state_dict(), "names": list(names), "results": result.results}


def diverging(folder, config):
    """A training in which the second process alone meets a loss that is not finite."""
    run_step = WatchedTrainer._write_metrics

    def poisoned(self, loss_dict, *args, **kwargs):
        bad = self.world.rank == 1 and self.iter == 1
        run_step(self, {key: value * torch.nan if bad else value for key, value in loss_dict.items()}, *args, **kwargs)

    WatchedTrainer._write_metrics = poisoned
    cfg = load_config(config, ["OUTPUT_DIR", str(folder / "diverged")])
    try:
        run_training(cfg)
    except UserError as error:
        return str(error)
    finally:
        WatchedTrainer._write_metrics = run_step


def main(folder, config):
    found = {
        "empty": norm(batches(5, 0)),
        "uneven": norm(batches(2, 3)),
        "one value": one_value(),
        "training": training(folder, config),
        "diverging": diverging(folder, config),
    }
    torch.save(found, folder / f"process{os.environ['RANK']}.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
