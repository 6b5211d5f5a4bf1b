"""The training loop, its hooks, interruptions and checkpoints."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from fbnetv3.data import Preprocessing, build_loader
from fbnetv3.data.datasets import ArrayDataset
from fbnetv3.engine import Hook, Trainer, evaluate
from fbnetv3.engine.checkpoint import _STATE, Checkpoints
from fbnetv3.engine.ema import ModelEMA
from fbnetv3.engine.hooks import Autopsy, Checkpointing, Evaluation
from fbnetv3.engine.interrupt import _pending, check_interrupt, deferred_interrupt
from fbnetv3.engine.objective import CrossEntropy
from fbnetv3.engine.optimization import build_optimizer, build_schedule
from fbnetv3.engine.trainer import DivergedError
from fbnetv3.errors import OutputError, Terminated, WeightsError
from fbnetv3.file_io import atomic_write, remove_partial

CPU = torch.device("cpu")
STATE = dict.fromkeys(_STATE)


def make_trainer(hooks=(), epochs=4, lr=0.5, seed=0, dropout=0.3, ema=None, **arguments):
    """A linear network that learns whether an image is dark or bright."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 64)
    images = (rng.integers(0, 100, (64, 4, 4)) + 120 * targets[:, None, None]).astype(np.uint8)
    data = ArrayDataset("bright", images, targets, ["dark", "bright"])
    transform = Preprocessing(4, 4, (0.5,), (0.5,)).transform()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(dropout), nn.Linear(16, 2))
    loader = build_loader(data, transform, batch_size=16, training=True, seed=seed)
    return Trainer(
        model,
        CrossEntropy(),
        build_optimizer("sgd", model, lr),
        build_schedule("cosine", epochs),
        loader,
        lr=lr,
        epochs=epochs,
        device=CPU,
        channels_last=False,
        ema=ModelEMA(model, ema) if ema is not None else None,
        hooks=hooks,
        **arguments,
    )


def checkpointing(checkpoints, folder, epochs=1, steps=0):
    return Checkpointing(checkpoints, epochs, steps, folder / "final.pth", folder / "best.pth", {})


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


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


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


def test_what_has_diverged_is_not_saved(tmp_path):
    def objective(model, images, targets):
        return CrossEntropy()(model, images, targets) * (float("inf") if trainer.progress.step == 4 else 1)

    checkpoints = Checkpoints(tmp_path)
    trainer = make_trainer([checkpointing(checkpoints, tmp_path, steps=1)])
    trainer.objective = objective
    with pytest.raises(DivergedError, match="inf at step 5"):
        trainer.run()
    assert checkpoints.load_latest()[1]["step"] == 4
    trainer.loss = torch.tensor(float("nan"))  # as a GPU would see it, after the step
    with pytest.raises(DivergedError):
        trainer._call("on_interrupt")
    assert checkpoints.latest().name == "step_00000004.pth"


def test_checkpoints_of_later_steps_are_of_another_past(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step in (5, 9):
        (tmp_path / f"step_{step:08d}.pth").write_bytes(b"damaged")
    checkpoints.save(7, STATE)
    assert [path.name for path in checkpoints.all()] == ["step_00000007.pth"]


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
                remove_partial(checkpoints.folder)
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
    script = "import sys; from pathlib import Path; from tests.engine.test_engine import killed_run; "
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


def test_checkpoints_between_epochs(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=99)
    make_trainer([checkpointing(checkpoints, tmp_path, steps=3)]).run()
    assert [int(path.stem[5:]) for path in checkpoints.all()] == [3, 4, 6, 8, 9, 12, 15, 16]


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3):
        checkpoints.save(step, {**STATE, "step": step})
    whole = (tmp_path / "step_00000003.pth").read_bytes()
    (tmp_path / "step_00000003.pth").write_bytes(whole[: len(whole) // 2])
    path, state = checkpoints.load_latest()
    assert (path.name, state["step"]) == ("step_00000002.pth", 2)
    assert "step_00000003.pth: is damaged" in caplog.text and "trying the one before" in caplog.text
    for path in checkpoints.all():
        path.write_bytes(b"")
    with pytest.raises(WeightsError, match="no checkpoint is whole"):
        checkpoints.load_latest()
    assert Checkpoints(tmp_path / "nowhere").load_latest() is None


def test_the_best_weights_are_kept(tmp_path):
    tops = iter([10.0, 30.0, 20.0, 25.0])
    hooks = [Evaluation(lambda: {"top1": next(tops)}), checkpointing(Checkpoints(tmp_path), tmp_path)]
    make_trainer(hooks).run()
    best = torch.load(tmp_path / "best.pth")
    assert best["metrics"] == {"val_top1": 30.0}
    assert not torch.equal(best["model"]["2.weight"], torch.load(tmp_path / "final.pth")["model"]["2.weight"])


def test_the_newest_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for epoch in (1, 2, 9, 10, 11):
        checkpoints.save(epoch, {**STATE, "epoch": epoch})
    assert [path.name for path in checkpoints.all()] == ["step_00000010.pth", "step_00000011.pth"]
    assert checkpoints.load(checkpoints.latest())["epoch"] == 11
    assert Checkpoints(tmp_path / "nowhere").latest() is None


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


def test_a_resumed_run_has_its_average_back(tmp_path):
    mixup = v2.MixUp(alpha=0.2, num_classes=2)
    checkpoints = Checkpoints(tmp_path)
    saving = checkpointing(checkpoints, tmp_path)
    whole = make_trainer([saving], ema=0.9, mixup=mixup)
    torch.manual_seed(1)
    whole.run()
    final = torch.load(tmp_path / "final.pth")
    assert not torch.equal(final["model"]["2.weight"], final["model_ema"]["2.weight"])
    for saved in checkpoints.all():
        resumed = make_trainer(ema=0.9, mixup=mixup)
        resumed.load_state_dict(checkpoints.load(saved))
        resumed.run()
        assert torch.equal(weights(resumed), weights(whole))
        for key, value in resumed.ema.module.state_dict().items():
            assert torch.equal(value, final["model_ema"][key])


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_a_damaged_checkpoint_is_named(tmp_path, content):
    (tmp_path / "step_00000001.pth").write_bytes(content)
    with pytest.raises(WeightsError, match="step_00000001.pth: is damaged"):
        Checkpoints(tmp_path).load(tmp_path / "step_00000001.pth")
    torch.save({"model": {}}, tmp_path / "step_00000001.pth")
    with pytest.raises(WeightsError, match="is not a checkpoint of a training run"):
        Checkpoints(tmp_path).load(tmp_path / "step_00000001.pth")


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as f:
        f.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="cannot be written: No such file"), atomic_write(tmp_path / "nowhere" / "x"):
        pass


def test_a_full_disk(tmp_path):
    """In a process whose files may be 100 kB at most, as on a full disk: one line, and the older checkpoint stays."""
    script = """
import resource, signal, sys, torch
from pathlib import Path
from fbnetv3.engine.checkpoint import Checkpoints
from fbnetv3.errors import OutputError
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(1, {"model": {}, "optimizer": {}, "epoch": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoints.save(2, {"model": {"x": torch.zeros(1_000_000)}, "optimizer": {}, "epoch": 2})
except OutputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert "step_00000002.pth: cannot be written" in done.stdout, done.stderr
    assert os.listdir(tmp_path) == ["step_00000001.pth"]


def test_epochs_without_evaluation_have_no_metrics(tmp_path):
    seen = []

    class Recorder(Hook):
        def after_epoch(self, trainer):
            seen.append(trainer.progress.metrics.get("val_top1"))

    make_trainer([Evaluation(lambda: {"top1": 1.0}, period=3), Recorder()], epochs=4).run()
    assert seen == [None, None, 1.0, 1.0]
