"""Losses that are read some steps later, as on a GPU: training, records and a non-finite loss stay what they are."""

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fbnetv3.training import Hook
from fbnetv3.training.devices.delayed_losses import DelayedLosses
from fbnetv3.training.losses import supervised_objective
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.training.trainer import DivergedError
from fbnetv3.training.training_hooks import DivergenceHook, MetricsHook
from tests.training.small_trainer import flat_weights, make_checkpointing, make_trainer


def add(losses, step, loss=0.5):
    losses.add(torch.tensor(loss), torch.tensor(loss), step, 0.1, batch=None)


def test_a_loss_is_read_some_steps_later():
    losses = DelayedLosses(delay=2)
    read = []
    for step in range(1, 6):
        add(losses, step, loss=step / 2)
        read.append([(item.step, item.loss) for item in losses.read()])
    assert read == [[], [], [(1, 0.5)], [(2, 1.0)], [(3, 1.5)]]
    assert [item.step for item in losses.read(all_steps=True)] == [4, 5]


def test_without_delay_a_loss_is_read_at_once():
    losses = DelayedLosses(delay=0)
    add(losses, 1)
    assert [item.step for item in losses.read()] == [1]


def test_a_copy_begins_in_its_step_and_is_awaited_when_it_is_read(monkeypatch):
    def start_copy(tensor):
        calls.append("start")
        return lambda: calls.append("wait") or tensor

    calls = []
    monkeypatch.setattr("fbnetv3.training.devices.delayed_losses.copy_to_host", start_copy)
    losses = DelayedLosses(delay=1)
    add(losses, 1)
    assert not list(losses.read()) and calls == ["start"]
    add(losses, 2)
    assert [item.step for item in losses.read()] == [1] and calls == ["start", "start", "wait"]


def test_the_delay_changes_neither_weights_nor_metrics(tmp_path):
    folders, weights = (tmp_path / "at_once", tmp_path / "later"), []
    for folder, delay in zip(folders, (0, 3), strict=True):
        hooks = [MetricsHook(RunFolder(folder), period=3), make_checkpointing(folder, steps=3)]
        trainer = make_trainer(hooks, loss_delay=delay, ema=0.9)
        torch.manual_seed(5)
        trainer.run()
        weights.append(flat_weights(trainer))
    assert torch.equal(*weights)
    at_once, later = ((folder / "metrics.jsonl").read_text().splitlines() for folder in folders)
    assert at_once == later
    assert [json.loads(line)["step"] for line in later] == [3, 4, 6, 8, 9, 12, 15, 16]


def test_every_loss_is_read_before_an_epoch_is_evaluated():
    class Recorder(Hook):
        def after_loss(self, trainer, loss):
            events.append(loss.step)

        def after_epoch(self, trainer):
            events.append("epoch")

    events = []
    make_trainer([Recorder()], epochs=2, loss_delay=3).run()
    assert events == [1, 2, 3, 4, "epoch", 5, 6, 7, 8, "epoch"]


class WaitCounter(TorchDispatchMode):
    """Counts conversions of tensors to Python numbers, which wait for a GPU unless the tensors are on the host."""

    def __init__(self, on_host):
        super().__init__()
        self.on_host = on_host
        self.waits = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.waits += args[0] is not self.on_host
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_reads_nothing_from_the_device(precision):
    trainer = make_trainer(precision=precision, ema=0.9, fused=True, loss_delay=4)
    batches = list(trainer.loader)
    trainer.step(batches[0])
    with WaitCounter(on_host=trainer.ema.n_averaged) as counter:
        for batch in batches:
            trainer.step(batch)
    assert counter.waits == 0


@pytest.mark.parametrize("bad_step", [2, 4])
def test_a_non_finite_loss_ends_the_run_with_the_weights_that_gave_it(tmp_path, bad_step):
    """A fused optimizer skips the step, and those until the loss is read."""

    def objective(model, images, targets):
        weights.append(flat_weights(trainer))
        factor = float("nan") if len(weights) == bad_step else 1
        return supervised_objective(model, images, targets) * factor

    weights = []
    hooks = [DivergenceHook(RunFolder(tmp_path))]
    trainer = make_trainer(hooks, fused=True, loss_delay=2)
    trainer.objective = objective
    message = rf"the loss is nan at step {bad_step} \(epoch 1, learning rate 0.4\d*, images bright\[\d+\]"
    with pytest.raises(DivergedError, match=message):
        trainer.run()
    assert len(weights) == min(4, bad_step + 2)  # the epoch has four steps
    assert torch.equal(flat_weights(trainer), weights[bad_step - 1])
    dump = torch.load(tmp_path / "diverged.pth")
    assert dump["step"] == bad_step and len(dump["names"]) == 16
    assert torch.equal(dump["model"]["2.weight"].flatten(), weights[bad_step - 1][:32])


def test_float16_may_skip_steps_that_overflow():
    def objective(model, images, targets):
        steps.append(1)
        return supervised_objective(model, images, targets) * (float("inf") if len(steps) == 3 else 1)

    steps = []
    trainer = make_trainer(epochs=2, precision=torch.float16, fused=True, loss_delay=2)
    trainer.objective = objective
    trainer.run()
    assert len(steps) == 8 and flat_weights(trainer).isfinite().all()
