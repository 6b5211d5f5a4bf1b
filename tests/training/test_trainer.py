"""Training loop, hooks, interrupts and kills."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from fbnetv3.data import build_loader
from fbnetv3.errors import Terminated
from fbnetv3.training import Hook, evaluate
from fbnetv3.training.losses import supervised_objective
from fbnetv3.training.processes.interrupts import _pending, check_interrupt, deferred_interrupts
from fbnetv3.training.run_state.metrics import read_learning_curve
from fbnetv3.training.run_state.run_folder import RunFolder
from fbnetv3.training.trainer import DivergedError
from fbnetv3.training.training_hooks import DivergenceHook, EvaluationHook, MetricsHook
from fbnetv3.utils.files import remove_partial_files
from tests.training.small_trainer import CPU, flat_weights, make_checkpointing, make_trainer


def test_training_learns():
    trainer = make_trainer(epochs=10)
    trainer.run()
    assert (trainer.progress.epoch, trainer.progress.step, trainer.total_steps) == (10, 40, 40)
    data = trainer.loader.dataset.dataset
    loader = build_loader(data, trainer.loader.dataset.transform, batch_size=64, training=False)
    assert evaluate(trainer.model, loader, CPU, channels_last=False)["top1"] > 95


def test_hooks_are_called_around_the_loop():
    calls = []

    class Recorder(Hook):
        def before_train(self, trainer):
            calls.append("before_train")

        def before_epoch(self, trainer):
            calls.append("before_epoch")

        def after_step(self, trainer):
            calls.append("after_step")

        def after_epoch(self, trainer):
            calls.append("after_epoch")

        def after_train(self, trainer):
            calls.append("after_train")

        def close(self, trainer):
            calls.append("close")

    make_trainer([Recorder()], epochs=2).run()
    epoch = ["before_epoch", *["after_step"] * 4, "after_epoch"]
    assert calls == ["before_train", *epoch, *epoch, "after_train", "close"]


def test_the_learning_rate_follows_the_schedule():
    rates = []

    class Recorder(Hook):
        def after_step(self, trainer):
            rates.append(trainer.optimizer.param_groups[0]["lr"])

    make_trainer([Recorder()], epochs=2, lr=1.0).run()
    assert rates == pytest.approx([0.5 * (1 + np.cos(np.pi * i / 8)) for i in range(8)])


def test_parameter_groups_have_their_own_learning_rates():
    trainer = make_trainer(epochs=1, lr=1.0)
    weight, bias = trainer.model[2].parameters()
    trainer.optimizer = torch.optim.SGD(
        [{"params": [weight], "lr_scale": 0.1}, {"params": [bias], "lr_scale": 2.0}], 1.0
    )
    trainer.run()
    factor = 0.5 * (1 + np.cos(np.pi * 3 / 4))  # of the last of four steps
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates == pytest.approx([0.1 * factor, 2.0 * factor])
    assert trainer.current_lr == pytest.approx(factor)  # what logs show


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path):
    checkpointing = make_checkpointing(tmp_path)
    uninterrupted = make_trainer([checkpointing])
    uninterrupted.run()
    for path in checkpointing.checkpoints.paths():
        resumed = make_trainer()
        torch.manual_seed(99)
        resumed.load_state_dict(checkpointing.checkpoints.load(path))
        resumed.run()
        assert torch.equal(flat_weights(resumed), flat_weights(uninterrupted))


def test_the_same_seed_gives_the_same_weights():
    a, b, c = make_trainer(), make_trainer(), make_trainer(seed=1)
    for trainer, seed in ((a, 0), (b, 0), (c, 1)):
        torch.manual_seed(seed)
        trainer.run()
    assert torch.equal(flat_weights(a), flat_weights(b))
    assert not torch.equal(flat_weights(a), flat_weights(c))


def test_ctrl_c_ends_a_run_even_from_a_destructor():
    """Python drops exceptions raised in a destructor, but the run must still stop."""

    class RaisesInDestructor:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    class Interrupting(Hook):
        def after_step(self, trainer):
            if trainer.progress.step == 2:
                RaisesInDestructor()

    trainer = make_trainer([Interrupting()], epochs=100)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.progress.step == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_interrupts_at_once():
    with deferred_interrupts():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check_interrupt()
        _pending.clear()


@pytest.mark.parametrize("step", [2, 4])
def test_a_non_finite_loss_ends_the_run_and_dumps_the_batch(tmp_path, step):
    def objective(model, images, targets):
        images_seen.append(images)
        return supervised_objective(model, images, targets) * (
            float("nan") if len(images_seen) == step else 1
        )

    images_seen = []
    trainer = make_trainer([DivergenceHook(RunFolder(tmp_path))], lr=0.5)
    trainer.objective = objective
    message = rf"the loss is nan at step {step} \(epoch 1, learning rate 0.4\d*, images bright\[\d+\], .* and 13 more\)"
    with pytest.raises(DivergedError, match=message):
        trainer.run()
    dump = torch.load(tmp_path / "diverged.pth")
    assert (
        torch.equal(dump["images"], images_seen[step - 1])
        and len(dump["names"]) == 16
        and dump["step"] == step
    )
    assert all(value.isfinite().all() for value in dump["model"].values())


def test_float16_may_skip_100_consecutive_steps():
    def objective(model, images, targets):
        return supervised_objective(model, images, targets) * float("inf")

    trainer = make_trainer(epochs=50, precision=torch.float16)
    trainer.objective = objective
    with pytest.raises(DivergedError, match="the loss is inf at step 100"):
        trainer.run()


def test_a_hook_that_fails_to_close_does_not_prevent_others_from_closing():
    closed = []

    class Failing(Hook):
        def close(self, trainer):
            closed.append(self)
            raise ZeroDivisionError

    hooks = [Failing(), Failing()]
    with pytest.raises(ZeroDivisionError):
        make_trainer(hooks, epochs=1).run()
    assert closed == hooks


def test_hooks_are_closed_if_the_run_fails():
    class Failing(Hook):
        closed = 0

        def after_step(self, trainer):
            raise ZeroDivisionError

        def close(self, trainer):
            self.closed += 1

    hook = Failing()
    with pytest.raises(ZeroDivisionError):
        make_trainer([hook]).run()
    assert hook.closed == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [1, 6, 8, "evaluation"])
def test_an_interrupted_run_saves_itself_and_ends_with_the_same_weights(tmp_path, number, moment):
    """The interrupt comes between two steps, at the end of an epoch, or during an evaluation."""

    class Interrupting(Hook):
        def after_step(self, trainer):
            if trainer.progress.step == moment:
                signal.raise_signal(number)

        def after_epoch(self, trainer):
            if moment == "evaluation" and trainer.progress.epoch == 2:
                signal.raise_signal(number)
                check_interrupt()

    mixup = v2.MixUp(alpha=0.2, num_classes=2)
    uninterrupted = make_trainer(mixup=mixup)
    torch.manual_seed(5)
    uninterrupted.run()
    checkpointing = make_checkpointing(tmp_path, epochs=99)
    interrupted = make_trainer([Interrupting(), checkpointing], mixup=mixup)
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Terminated):
        interrupted.run()
    _, state = checkpointing.checkpoints.load_newest()
    assert state["step"] == (8 if moment == "evaluation" else moment)
    resumed = make_trainer(mixup=mixup)
    resumed.load_state_dict(state)
    resumed.run()
    assert torch.equal(flat_weights(resumed), flat_weights(uninterrupted))
    assert (resumed.progress.epoch, resumed.progress.step) == (4, 16)


def run_with_kills(folder, max_kills=50):
    """Kill a run at random moments and resume it until it is complete. Return the number of kills.

    Call it in a separate process: it forks, and threads of the parent would block the child.
    """
    checkpointing = make_checkpointing(folder, epochs=2, steps=3)
    checkpoints = checkpointing.checkpoints
    rng = np.random.default_rng(0)
    kills = 0
    while True:
        child = os.fork()
        if child == 0:
            try:
                remove_partial_files(checkpoints.folder)
                trainer = make_trainer([checkpointing], **LONG)
                torch.manual_seed(5)
                if newest := checkpoints.load_newest():
                    trainer.load_state_dict(newest[1])
                trainer.run()
                os._exit(0)
            finally:
                os._exit(1)
        if kills < max_kills:
            time.sleep(rng.uniform(0.0, 0.2))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return kills
        kills += 1


LONG = {"mixup": v2.MixUp(alpha=0.2, num_classes=2), "ema": 0.9, "epochs": 300}


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path):
    """The run is killed 50 times."""
    script = (
        "import sys; from pathlib import Path; from tests.training.test_trainer import run_with_kills; "
    )
    script += "print(run_with_kills(Path(sys.argv[1])))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=root, timeout=300
    )
    assert process.returncode == 0, process.stderr
    assert int(process.stdout) >= 20
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    uninterrupted = make_trainer(**LONG)
    torch.manual_seed(5)
    uninterrupted.run()
    torch.set_num_threads(threads)
    final = torch.load(tmp_path / "model_final.pth")
    for part, model in (("model", uninterrupted.model), ("model_ema", uninterrupted.ema.module)):
        for key, value in model.state_dict().items():
            assert torch.equal(final[part][key], value)
    assert len(list((tmp_path / "checkpoints").iterdir())) <= 3 + 1


def test_accumulation_gives_the_gradients_of_the_whole_batch():
    whole_batches, accumulating = make_trainer(dropout=0.0), make_trainer(dropout=0.0, accumulate=3)
    for trainer in (whole_batches, accumulating):
        trainer.run()
    torch.testing.assert_close(
        flat_weights(whole_batches), flat_weights(accumulating), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision(precision):
    trainer = make_trainer(epochs=10, precision=precision, dropout=0.0)
    exact = make_trainer(epochs=10, dropout=0.0)
    trainer.run(), exact.run()
    assert not torch.equal(flat_weights(trainer), flat_weights(exact))
    assert (flat_weights(trainer) - flat_weights(exact)).abs().max() < 0.1
    assert flat_weights(trainer).dtype == torch.float32


def test_short_epochs_share_a_drawing_of_the_curve(tmp_path, monkeypatch):
    """The first one has its own, and the end of the run, so that the figure has all epochs."""

    def draw(metrics, figure):
        epochs_drawn.append(len(read_learning_curve(metrics)))

    epochs_drawn = []
    monkeypatch.setattr("fbnetv3.training.training_hooks.plot_curve", draw)
    hooks = [EvaluationHook(lambda models: [{"top1": 1.0}]), MetricsHook(RunFolder(tmp_path), period=20)]
    make_trainer(hooks, epochs=5).run()
    assert epochs_drawn == [1, 5]


def test_epochs_without_evaluation_have_no_metrics(tmp_path):
    top1_by_epoch = []

    class Recorder(Hook):
        def after_epoch(self, trainer):
            top1_by_epoch.append(trainer.progress.metrics.get("val_top1"))

    make_trainer([EvaluationHook(lambda models: [{"top1": 1.0}], period=3), Recorder()], epochs=4).run()
    assert top1_by_epoch == [None, None, 1.0, 1.0]
