"""Training on a GPU. All other tests run on CPUs; `pytest -m gpu` runs these."""

import pytest
import torch

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.errors import DeviceMemoryError
from fbnetv3.training import train
from fbnetv3.training.losses import supervised_objective
from fbnetv3.training.run_state.checkpoints import state_on_host
from fbnetv3.training.trainer import DivergedError
from fbnetv3.utils.random_state import forked_random_state, seed_device
from tests.training.small_trainer import flat_weights, make_trainer

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
DIGITS = configs_folder() / "digits" / "fbnetv3_digits.yaml"


def make_config(folder, *overrides):
    short = "DEVICE cuda SOLVER.EPOCHS 2 SOLVER.WARMUP_EPOCHS 0 LOG.TRACKERS [] OUTPUT_DIR"
    return load_config(DIGITS, [*short.split(), str(folder), *overrides])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16", "auto"])
def test_the_digits_network_learns_in_every_precision(tmp_path, precision):
    curve = train(make_config(tmp_path, "SOLVER.EPOCHS", "5", "SOLVER.PRECISION", precision))
    assert curve[-1]["top1"] > 80


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_steps_do_not_wait_for_the_gpu(precision):
    trainer = make_trainer(device=GPU, precision=precision, fused=True, ema=0.9)
    batches = list(trainer.loader)
    trainer.step(batches[0])
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            trainer.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_non_finite_loss_leaves_the_weights_whole():
    def objective(model, images, targets):
        weights.append(flat_weights(trainer))
        return supervised_objective(model, images, targets) * (float("nan") if len(weights) == 2 else 1)

    weights = []
    trainer = make_trainer(device=GPU, fused=True)
    trainer.objective = objective
    with pytest.raises(DivergedError, match="the loss is nan at step 2"):
        trainer.run()
    assert torch.equal(flat_weights(trainer), weights[1])


def test_deterministic_runs_end_with_the_same_metrics(tmp_path):
    curves = [train(make_config(tmp_path / name, "SOLVER.DETERMINISTIC", "True")) for name in ("a", "b")]
    assert curves[0] == curves[1]


def test_running_out_of_memory_states_what_there_was(tmp_path):
    torch.cuda.set_per_process_memory_fraction(1e-3)
    try:
        with pytest.raises(
            DeviceMemoryError, match=r"the peak was [\d.]+ GiB; [\d.]+ of [\d.]+ GiB are free"
        ):
            train(make_config(tmp_path, "INPUT.RESOLUTION", "512", "SOLVER.BATCH_SIZE", "512"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_random_state_is_restored():
    seed_device(3, GPU)
    before = torch.cuda.get_rng_state()
    with forked_random_state(GPU):
        seed_device(7, GPU)
        torch.rand(3, device=GPU)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_a_checkpoint_waits_once_for_all_its_tensors(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waits.append(device))
    weights = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(9))).to(GPU).state_dict()
    state = state_on_host({"model": weights})
    torch.cuda.default_stream().synchronize()
    assert len(waits) == 1
    for key, value in weights.items():
        assert state["model"][key].device.type == "cpu" and torch.equal(state["model"][key], value.cpu())
