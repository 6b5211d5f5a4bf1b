"""The training loop, its hooks and interruptions."""

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
from fbnetv3.training.losses import CrossEntropy
from fbnetv3.training.processes.interrupts import _pending, check_interrupt, deferred_interrupt
from fbnetv3.training.run_state.checkpoints import Checkpoints
from fbnetv3.training.trainer import DivergedError
from fbnetv3.training.training_hooks import Autopsy, Evaluation
from fbnetv3.utils.files import remove_partial_files
from tests.training.small_trainer import CPU, checkpointing, make_trainer, weights


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
        def __getattribute__(self, name):
            if name in ("before_train", "before_epoch", "after_step", "after_epoch", "after_train"):
                return lambda trainer: calls.append(name)
            return super().__getattribute__(name)

    make_trainer([Recorder()], epochs=2).run()
    epoch = ["before_epoch", *["after_step"] * 4, "after_epoch"]
    assert calls == ["before_train", *epoch, *epoch, "after_train"]


def test_the_learning_rate_follows_the_schedule():
    rates = []

    class Recorder(Hook):
        def after_step(self, trainer):
            rates.append(trainer.optimizer.param_groups[0]["lr"])

    make_trainer([Recorder()], epochs=2, lr=1.0).run()
    assert rates == pytest.approx([0.5 * (1 + np.cos(np.pi * i / 8)) for i in range(8)])


def test_a_resumed_run_ends_with_the_same_weights_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    whole = make_trainer([checkpointing(checkpoints, tmp_path)])
    whole.run()
    for saved in checkpoints.all():
        resumed = make_trainer()
        torch.manual_seed(99)
        resumed.load_state_dict(checkpoints.load(saved))
        resumed.run()
        assert torch.equal(weights(resumed), weights(whole))


def test_the_same_seed_gives_the_same_weights():
    a, b, c = make_trainer(), make_trainer(), make_trainer(seed=1)
    for trainer, seed in ((a, 0), (b, 0), (c, 1)):
        torch.manual_seed(seed)
        trainer.run()
    assert torch.equal(weights(a), weights(b))
    assert not torch.equal(weights(a), weights(c))


def test_ctrl_c_ends_a_run_even_from_a_destructor():
    """Python drops an exception there; the run must not go on for ever."""

    class Dropped:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    class Interrupting(Hook):
        def after_step(self, trainer):
            if trainer.progress.step == 2:
                Dropped()

    trainer = make_trainer([Interrupting()], epochs=100)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.progress.step == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_interrupts_at_once():
    with deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            check_interrupt()
        _pending.clear()


@pytest.mark.parametrize("step", [2, 4])
def test_a_diverged_loss_stops_the_run_and_leaves_what_is_needed(tmp_path, step):
    def objective(model, images, targets):
        seen.append(images)
        return CrossEntropy()(model, images, targets) * (float("nan") if len(seen) == step else 1)

    seen = []
    trainer = make_trainer([Autopsy(tmp_path / "diverged.pth")], lr=0.5)
    trainer.objective = objective
    message = rf"the loss is nan at step {step} \(epoch 1, learning rate 0.4\d*, images bright\[\d+\], .* and 13 more\)"
    with pytest.raises(DivergedError, match=message):
        trainer.run()
    left = torch.load(tmp_path / "diverged.pth")
    assert torch.equal(left["images"], seen[step - 1]) and len(left["names"]) == 16 and left["step"] == step
    assert all(value.isfinite().all() for value in left["model"].values())


def test_hooks_are_closed_however_a_run_ends():
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
    """Between two steps, at the end of an epoch, during an evaluation."""

    class Interrupting(Hook):
        def after_step(self, trainer):
            if trainer.progress.step == moment:
                signal.raise_signal(number)

        def after_epoch(self, trainer):
            if moment == "evaluation" and trainer.progress.epoch == 2:
                signal.raise_signal(number)
                check_interrupt()

    mixup = v2.MixUp(alpha=0.2, num_classes=2)
    whole = make_trainer(mixup=mixup)
    torch.manual_seed(5)
    whole.run()
    checkpoints = Checkpoints(tmp_path)
    cut = make_trainer([Interrupting(), checkpointing(checkpoints, tmp_path, epochs=99)], mixup=mixup)
    torch.manual_seed(5)
    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Terminated):
        cut.run()
    _, state = checkpoints.load_latest()
    assert state["step"] == (8 if moment == "evaluation" else moment)
    resumed = make_trainer(mixup=mixup)
    resumed.load_state_dict(state)
    resumed.run()
    assert torch.equal(weights(resumed), weights(whole))
    assert (resumed.progress.epoch, resumed.progress.step) == (4, 16)


def killed_run(folder, kills_wanted=50):
    """Kill a run at random moments and let it go on from what it finds, until it is complete. Returns the kills.

    It forks, and what was parallel in the parent would hang in the child: to be called in a process of its own.
    """
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.folder.mkdir()
    random, kills = np.random.default_rng(0), 0
    while True:
        child = os.fork()
        if child == 0:
            try:
                remove_partial_files(checkpoints.folder)
                trainer = make_trainer([checkpointing(checkpoints, folder, epochs=2, steps=3)], **LONG)
                torch.manual_seed(5)
                if found := checkpoints.load_latest():
                    trainer.load_state_dict(found[1])
                trainer.run()
                os._exit(0)
            finally:
                os._exit(1)
        if kills < kills_wanted:
            time.sleep(random.uniform(0.0, 0.2))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            return kills
        kills += 1


LONG = {"mixup": v2.MixUp(alpha=0.2, num_classes=2), "ema": 0.9, "epochs": 300}


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path):
    """SIGKILL, 50 times, whatever the run is doing; each time it goes on from what it finds."""
    script = "import sys; from pathlib import Path; from tests.training.test_engine import killed_run; "
    script += "print(killed_run(Path(sys.argv[1])))"
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=one_thread, cwd=root, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 20
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = make_trainer(**LONG)
    torch.manual_seed(5)
    whole.run()
    torch.set_num_threads(threads)
    final = torch.load(tmp_path / "final.pth")
    for mine, theirs in (("model", whole.model), ("model_ema", whole.ema.module)):
        for key, value in theirs.state_dict().items():
            assert torch.equal(final[mine][key], value)
    assert len(list((tmp_path / "checkpoints").iterdir())) <= 3 + 1


def test_accumulation_gives_the_gradients_of_the_whole_batch():
    whole, parts = make_trainer(dropout=0.0), make_trainer(dropout=0.0, accumulate=3)
    for trainer in (whole, parts):
        trainer.run()
    torch.testing.assert_close(weights(whole), weights(parts), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision(precision):
    trainer = make_trainer(epochs=10, precision=precision, dropout=0.0)
    exact = make_trainer(epochs=10, dropout=0.0)
    trainer.run(), exact.run()
    assert not torch.equal(weights(trainer), weights(exact))
    assert (weights(trainer) - weights(exact)).abs().max() < 0.1
    assert weights(trainer).dtype == torch.float32


def test_epochs_without_evaluation_have_no_metrics(tmp_path):
    seen = []

    class Recorder(Hook):
        def after_epoch(self, trainer):
            seen.append(trainer.progress.metrics.get("val_top1"))

    make_trainer([Evaluation(lambda: {"top1": 1.0}, period=3), Recorder()], epochs=4).run()
    assert seen == [None, None, 1.0, 1.0]
