"""What the tests of distributed training run under torchrun, and in one process to compare with."""

import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import fbnetv3
from fbnetv3.data import CorruptImageCounter, CorruptImageError, Preprocessing, build_dataset, build_loader
from fbnetv3.modeling.sync_batchnorm import sync_batchnorm
from fbnetv3.training import Hook, Trainer, evaluate
from fbnetv3.training.ema import ModelEMA
from fbnetv3.training.optimizers import build_optimizer, build_schedule
from fbnetv3.training.processes.distributed import process_group
from fbnetv3.training.run_state.checkpoints import Checkpoints
from fbnetv3.training.trainer import DivergedError
from fbnetv3.training.training_hooks import Autopsy, Checkpointing

CPU = torch.device("cpu")
TRANSFORM = Preprocessing(32, 32, (0.5,), (0.5,)).transform()


class Images:
    """The first digits of a split, some of them damaged."""

    def __init__(self, split, length, damaged=()):
        self.data, self.length, self.damaged = build_dataset("digits", "", split), length, damaged
        self.classes = self.data.classes

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index in self.damaged:
            raise CorruptImageError(f"image {index}")
        return self.data[index]

    def image_name(self, index):
        return self.data.image_name(index)


def in_double(model, images, targets):
    return F.cross_entropy(model(images.double()), targets)


def make_trainer(world, data, hooks=(), objective=in_double, **arguments):
    """An FBNetV3 in double precision, so that the order of a sum does not show."""
    torch.manual_seed(0)
    dropout = arguments.pop("drop_rate", 0.0)
    if arguments.pop("linear", False):
        model = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 10)).double()
    else:
        model = fbnetv3.create_model("fbnetv3_digits", num_classes=10, in_chans=1, drop_rate=dropout).double()
    sync_batchnorm(model, CPU)
    torch.manual_seed(world.rank)
    loader = build_loader(data, TRANSFORM, batch_size=16, training=True, rank=world.rank, world_size=world.size)
    optimizer, schedule = build_optimizer("sgd", model, 0.02), build_schedule("cosine", 2)
    arguments = {"lr": 0.02, "epochs": 2, "device": CPU, "channels_last": False, **arguments}
    ema = ModelEMA(model, 0.9)
    return Trainer(model, objective, optimizer, schedule, loader, ema=ema, world=world, hooks=hooks, **arguments)


class Recorder(Hook):
    """Loss and gradients of every step."""

    def __init__(self):
        self.steps = []

    def after_step(self, trainer):
        gradients = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        self.steps.append((trainer.loss.item(), gradients.clone()))


def train(world, folder):
    """Gradients, weights, average and metrics, with damaged images."""
    recorder = Recorder()
    data = Images("train", 67, damaged=(3, 4, 30))
    trainer = make_trainer(world, data, [recorder], damage=CorruptImageCounter(3))
    trainer.run()
    metrics = {}
    for length in (1, 7, 60):
        val = Images("val", length)
        loader = build_loader(val, TRANSFORM, batch_size=5, training=False, rank=world.rank, world_size=world.size)
        model = trainer.ema.module.float()
        metrics[length] = evaluate(model, loader, CPU, channels_last=False, progress=False, world=world)
    return {
        "steps": recorder.steps,
        "model": trainer.model.state_dict(),
        "ema": trainer.ema.module.state_dict(),
        "metrics": metrics,
        "damaged": list(trainer.damage.messages),
    }


def accumulate(world, folder):
    """Each step in three parts. (BatchNorm would see another part in each process, so there is none.)"""
    recorder = Recorder()
    data = Images("train", 67, damaged=(3, 4, 30))
    make_trainer(world, data, [recorder], damage=CorruptImageCounter(3), accumulate=3, linear=True).run()
    return {"steps": recorder.steps}


def diverge(world, folder):
    """The last process's loss is not finite in step 3."""

    def objective(model, images, targets):
        broken = trainer.progress.step == 2 and world.rank == world.size - 1
        return in_double(model, images, targets) * (float("nan") if broken else 1)

    seen = {}

    class Names(Hook):
        def on_divergence(self, trainer):
            seen["names"] = trainer._last.names

    trainer = make_trainer(world, Images("train", 64), [Names(), Autopsy(folder / "diverged.pth")], objective)
    try:
        trainer.run()
    except DivergedError as error:
        return {"error": str(error), **seen}


def interrupt(world, folder):
    """SIGTERM reaches one process alone, the run is saved, and goes on as if nothing had been."""

    class Interrupting(Hook):
        def after_step(self, trainer):
            if trainer.progress.step == 3 and world.rank == world.size - 1:
                signal.raise_signal(signal.SIGTERM)

    data, checkpoints = Images("train", 64), Checkpoints(folder / "checkpoints")
    checkpoints.folder.mkdir(exist_ok=True)
    whole = make_trainer(world, data, drop_rate=0.5)
    whole.run()
    saving = Checkpointing(checkpoints, 99, 0, folder / "final.pth", folder / "best.pth", {})
    cut = make_trainer(world, data, [Interrupting(), saving], drop_rate=0.5)
    try:
        cut.run()
    except BaseException as error:
        ended = type(error).__name__
    resumed = make_trainer(world, data, drop_rate=0.5)
    torch.manual_seed(99)
    resumed.load_state_dict(world.broadcast(checkpoints.load_latest()[1] if world.is_main else None))
    resumed.run()
    states = [{key: value.clone() for key, value in t.model.state_dict().items()} for t in (whole, resumed)]
    return {"ended": ended, "step": cut.progress.step, "whole": states[0], "resumed": states[1]}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with process_group("cpu") as world:
        found = {scenario.__name__: scenario(world, folder) for scenario in (train, accumulate, diverge, interrupt)}
        torch.save(found, folder / f"process{world.rank}.pth")
