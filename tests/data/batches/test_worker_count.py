"""How many processes load images if the config leaves it open."""

import os

import pytest
import torch

from fbnetv3.arch import configs_folder
from fbnetv3.config import load_config
from fbnetv3.data import Preprocessing, build_dataset
from fbnetv3.data.batches.worker_count import (
    available_cpus,
    choose_workers,
    processes_of_machine,
    resolve_workers,
)
from fbnetv3.training.builders import loader_from_config

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("cpus", "processes", "for_gpu", "for_cpu"),
    [
        (1, 1, 1, 0),  # reading and launching kernels take turns
        (2, 1, 1, 1),
        (8, 1, 7, 7),
        (64, 1, 16, 16),
        (16, 2, 7, 7),
        (96, 8, 11, 11),
        (4, 8, 1, 0),
    ],
)
def test_the_cpus_that_training_leaves_load_images(cpus, processes, for_gpu, for_cpu):
    assert choose_workers(cpus, processes, on_gpu=True) == for_gpu
    assert choose_workers(cpus, processes, on_gpu=False) == for_cpu


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system does not limit CPUs by process"
)
def test_only_cpus_of_this_process_count():
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, cpus)
    assert available_cpus() == len(cpus)


@pytest.mark.parametrize(("value", "count"), [(None, 1), ("8", 8), ("", 1), ("0", 1), ("many", 1)])
def test_processes_that_torchrun_has_started(monkeypatch, value, count):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if value is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", value)
    assert processes_of_machine() == count


def test_numbers_keep_their_meaning():
    assert [resolve_workers(n, on_gpu) for n in (0, 3, 99) for on_gpu in (False, True)] == [
        0,
        0,
        3,
        3,
        99,
        99,
    ]


@pytest.mark.parametrize(("setting", "expected"), [("auto", 1), ("0", 0), ("2", 2)])
def test_loaders_have_the_workers_of_the_config(monkeypatch, setting, expected):
    monkeypatch.setattr("fbnetv3.data.batches.worker_count.available_cpus", lambda: 2)
    cfg = load_config(configs_folder() / "digits" / "fbnetv3_digits.yaml", ["DATA.WORKERS", setting])
    val = build_dataset("digits", "", "val")
    loader = loader_from_config(cfg, val, Preprocessing(32, 32, (0.5,), (0.5,)), CPU)
    assert loader.num_workers == expected
