"""Scenarios that test_distributed.py runs in two processes under torchrun, and in one process for comparison."""

import contextlib
import signal
import sys
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

import fbnetv3
from fbnetv3.data import CorruptImageCounter, CorruptImageError, Preprocessing, build_dataset, build_loader
from fbnetv3.modeling.sync_batchnorm import sync_batchnorm
from fbnetv3.training import Hook, Trainer, evaluate
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.optimizers import build_sgd
from fbnetv3.training.processes.distributed import ProcessGroup, process_group
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.training.schedules import build_schedule
from fbnetv3.training.trainer import DivergedError
from fbnetv3.training.training_hooks import CheckpointHook, DivergenceHook

CPU = torch.device("cpu")
TRANSFORM = Preprocessing(32, 32, (0.5,), (0.5,)).transform()


class DigitsWithCorruptImages:
    """The first digits of a split, some of which are corrupt."""

    def __init__(self, split, length, corrupt_indices=()):
        self.digits = build_dataset("digits", "", split)
        self.length = length
        self.corrupt_indices = corrupt_indices
        self.classes = self.digits.classes

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.corrupt_indices:
            raise CorruptImageError(f"image {index}")
        return self.digits[index]

    def image_name(self, index):
        return self.digits.image_name(index)


def double_objective(model, images, targets):
    return F.cross_entropy(model(images.double()), targets)


def make_trainer(
    group, dataset, hooks=(), objective=double_objective, drop_rate=0.0, linear=False, **arguments
):
    """Build a trainer in double precision, so that the order of a sum makes no difference."""
    torch.manual_seed(0)
    if linear:
        model = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10)).double()
    else:
        model = fbnetv3.create_model(
            "fbnetv3_digits", num_classes=10, in_chans=1, drop_rate=drop_rate
        ).double()
    sync_batchnorm(model, CPU)
    torch.manual_seed(group.rank)
    loader = build_loader(
        dataset, TRANSFORM, batch_size=16, training=True, rank=group.rank, world_size=group.size
    )
    return Trainer(
        model,
        objective,
        build_sgd(model.parameters(), 0.02, momentum=0.9, nesterov=True),
        build_schedule("cosine", 2),
        loader,
        lr=0.02,
        epochs=2,
        device=CPU,
        channels_last=False,
        ema=ModelEMA(model, 0.9),
        group=group,
        hooks=hooks,
        **arguments,
    )


class GradientRecorder(Hook):
    """Records loss and gradients of every step."""

    def __init__(self):
        self.steps = []

    def after_step(self, trainer):
        gradients = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        self.steps.append((trainer.loss.item(), gradients.clone()))


def train(group, folder):
    """Train with corrupt images; return gradients, weights, average and metrics."""
    recorder = GradientRecorder()
    dataset = DigitsWithCorruptImages("train", 67, corrupt_indices=(3, 4, 30))
    trainer = make_trainer(group, dataset, [recorder], corrupt_images=CorruptImageCounter(3))
    trainer.run()
    metrics = {}
    for length in (1, 7, 60):
        val = DigitsWithCorruptImages("val", length)
        loader = build_loader(
            val, TRANSFORM, batch_size=5, training=False, rank=group.rank, world_size=group.size
        )
        model = trainer.ema.module.float()
        metrics[length] = evaluate(model, loader, CPU, channels_last=False, progress=False, group=group)
    return {
        "steps": recorder.steps,
        "model": trainer.model.state_dict(),
        "ema": trainer.ema.module.state_dict(),
        "metrics": metrics,
        "corrupt_images": list(trainer.corrupt_images.messages),
    }


def accumulate(group, folder):
    """Train with each step in three parts, without BatchNorm, which would see different parts in each process."""
    recorder = GradientRecorder()
    dataset = DigitsWithCorruptImages("train", 67, corrupt_indices=(3, 4, 30))
    counter = CorruptImageCounter(3)
    make_trainer(group, dataset, [recorder], corrupt_images=counter, accumulate=3, linear=True).run()
    return {"steps": recorder.steps}


class Buffers(nn.Module):
    """Statistics, a four-dimensional buffer in channels-last format, and flags; different in each process."""

    def __init__(self, rank):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean += rank
        self.norm.num_batches_tracked += rank
        maps = torch.arange(24.0).view(1, 2, 3, 4) * (rank + 1)
        self.register_buffer("maps", maps.contiguous(memory_format=torch.channels_last))
        self.register_buffer("flags", torch.tensor([rank == 0, rank == 1]))
        self.register_buffer("empty", torch.empty(0))


def buffers(group, folder):
    """Return buffers before and after a broadcast, the number of its messages, and which models need it."""
    module = Buffers(group.rank)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with mock.patch.object(torch.distributed, "broadcast", wraps=torch.distributed.broadcast) as broadcast:
        group.broadcast_buffers(module, None)
    model = fbnetv3.create_model("fbnetv3_digits", num_classes=10, in_chans=1)
    plain = group.data_parallel(model, CPU).broadcast_buffers
    sync = group.data_parallel(sync_batchnorm(model, CPU), CPU).broadcast_buffers
    return {
        "before": before,
        "after": module.state_dict(),
        "messages": broadcast.call_count,
        "broadcast_plain": plain,
        "broadcast_sync": sync,
    }


def exchanges(group, folder):
    """Return how often a run of eight steps sums and gathers values on the CPU."""
    trainer = make_trainer(group, DigitsWithCorruptImages("train", 67), linear=True)
    counts = {}
    with contextlib.ExitStack() as stack:
        for name in ("sum", "gather"):
            method = getattr(ProcessGroup, name)
            patch = mock.patch.object(ProcessGroup, name, autospec=True, side_effect=method)
            counts[name] = stack.enter_context(patch)
        trainer.run()
    return {name: method.call_count for name, method in counts.items()}


def diverge(group, folder):
    """Train with a non-finite loss on the last rank in step 3."""

    def objective(model, images, targets):
        is_nan = trainer.progress.step == 2 and group.rank == group.size - 1
        return double_objective(model, images, targets) * (float("nan") if is_nan else 1)

    names = []

    def step(batch):
        names[:] = batch.names
        Trainer.step(trainer, batch)

    hooks = [DivergenceHook(RunFolder(folder))]
    trainer = make_trainer(group, DigitsWithCorruptImages("train", 64), hooks, objective)
    trainer.step = step
    try:
        trainer.run()
    except DivergedError as error:
        return {"error": str(error), "names": names}


def interrupt(group, folder):
    """Interrupt a run with SIGTERM to one process, resume it, and return its weights and an uninterrupted run's."""

    class Interrupting(Hook):
        def after_step(self, trainer):
            if trainer.progress.step == 3 and group.rank == group.size - 1:
                signal.raise_signal(signal.SIGTERM)

    dataset = DigitsWithCorruptImages("train", 64)
    run_folder = RunFolder(folder)
    run_folder.checkpoints.mkdir(exist_ok=True)
    uninterrupted = make_trainer(group, dataset, drop_rate=0.5)
    uninterrupted.run()
    checkpointing = CheckpointHook(run_folder, epoch_period=99, metadata={})
    interrupted = make_trainer(group, dataset, [Interrupting(), checkpointing], drop_rate=0.5)
    try:
        interrupted.run()
    except BaseException as error:
        exception = type(error).__name__
    resumed = make_trainer(group, dataset, drop_rate=0.5)
    torch.manual_seed(99)
    resumed.load_state_dict(
        group.broadcast(checkpointing.checkpoints.load_newest()[1] if group.is_rank_0 else None)
    )
    resumed.run()
    return {
        "exception": exception,
        "step": interrupted.progress.step,
        "uninterrupted": {key: value.clone() for key, value in uninterrupted.model.state_dict().items()},
        "resumed": {key: value.clone() for key, value in resumed.model.state_dict().items()},
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with process_group("cpu") as group:
        results = {
            scenario.__name__: scenario(group, folder)
            for scenario in (train, accumulate, buffers, exchanges, diverge, interrupt)
        }
        torch.save(results, folder / f"process{group.rank}.pth")
