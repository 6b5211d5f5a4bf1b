"""Devices by name, and copies to them."""

import pytest
import torch

from fbnetv3.errors import UsageError
from fbnetv3.modeling.torch_device import copy_to_device, find_device, parse_device
from tests.fake_gpu import FakeGpu


def test_auto_is_a_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto") == torch.device("cpu") == find_device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with FakeGpu():
        assert find_device("auto") == torch.device("cuda")
        assert find_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["cuda:77", "tpu9", "cuda:x", "", "meta"])
def test_devices_that_are_not_here(name):
    with pytest.raises(UsageError) as error:
        find_device(name, "DEVICE")
    message = str(error.value)
    assert message.startswith(f"DEVICE {name!r} cannot be used here (") and "\n" not in message
    assert message.endswith("): set it to auto or cpu")


def test_names_are_parsed_without_the_device():
    assert parse_device("cuda:77") == torch.device("cuda", 77)
    with pytest.raises(UsageError, match="device 'tpu9' cannot be used here"):
        parse_device("tpu9")


def test_a_gpu_copies_from_pinned_memory_while_the_cpu_goes_on():
    tensor = torch.arange(3.0)
    with FakeGpu() as gpu:
        copy = copy_to_device(tensor, torch.device("cuda", 1))
    assert gpu.copies == ["pinned", "to the GPU"] and torch.equal(copy, tensor)


def test_nothing_is_copied_on_the_cpu():
    tensor = torch.arange(3.0)
    assert copy_to_device(tensor, torch.device("cpu")) is tensor
