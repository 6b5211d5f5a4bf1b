"""Random state that is restored: of the CPU and of the GPU in use, and of no other GPU."""

import pytest
import torch

from fbnetv3.utils.random_state import forked_random_state, seed_device

CPU = torch.device("cpu")


def refuse(*args, **kwargs):
    raise AssertionError("CUDA was started")


def test_a_seed_gives_the_numbers_of_manual_seed_and_is_undone():
    before = torch.get_rng_state()
    with forked_random_state(CPU):
        seed_device(7, CPU)
        numbers = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)
    with forked_random_state(CPU):
        torch.manual_seed(7)
        assert torch.equal(torch.rand(3), numbers)


def test_a_cpu_leaves_cuda_alone(monkeypatch):
    for name in ("get_rng_state", "set_rng_state", "manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    with forked_random_state(CPU):
        seed_device(7, CPU)


def test_only_the_gpu_in_use_is_restored(monkeypatch, recwarn):
    """A machine with several GPUs, of which all processes would otherwise warn."""
    states = {torch.device("cuda", index): f"state {index}" for index in range(8)}
    restored = {}
    monkeypatch.setattr(torch.cuda, "get_rng_state", states.get)
    monkeypatch.setattr(
        torch.cuda, "set_rng_state", lambda state, device: restored.__setitem__(device, state)
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    with pytest.raises(ZeroDivisionError), forked_random_state(torch.device("cuda:3")):
        raise ZeroDivisionError
    assert restored == {torch.device("cuda:3"): "state 3"}
    assert not recwarn.list
