"""Two processes on this machine's CPU train one detector."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fbnetv3.detection.data.detection_datasets import StepSampler
from tests.detection.two_processes import batches

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found(digits_config, tmp_path_factory):
    """What each process of a job comes to, its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.detection.two_processes", str(folder), str(digits_config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return [torch.load(folder / f"process{rank}.pth", weights_only=False) for rank in (0, 1)], folder


@pytest.mark.parametrize("case", ["empty", "uneven"])
def test_batchnorm_over_a_process_without_proposals_is_that_of_all_others(found, case):
    sizes = {"empty": (5, 0), "uneven": (2, 3)}[case]
    alone = nn.BatchNorm2d(3).train()
    nn.init.normal_(alone.weight, generator=torch.Generator().manual_seed(1))
    x = torch.cat(batches(*sizes)).requires_grad_()
    y = alone(x)
    (y**3).sum().backward()
    both = [process[case] for process in found[0]]
    torch.testing.assert_close(torch.cat([process["y"] for process in both]), y.detach())
    torch.testing.assert_close(torch.cat([process["dx"] for process in both]), x.grad, atol=1e-5, rtol=1e-4)
    for process in both:
        torch.testing.assert_close(process["mean"], alone.running_mean)
        torch.testing.assert_close(process["var"], alone.running_var)
        for ours, theirs in zip(process["parameters"], alone.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.grad, atol=1e-5, rtol=1e-4)


def test_one_value_a_channel_is_refused_in_both(found):
    assert {process["one value"] for process in found[0]} == {
        "Expected more than 1 value per channel when training, in all processes together"
    }


def test_both_end_with_the_same_weights_and_the_first_one_writes_them(found):
    both, folder = found
    weights = [process["training"]["model"] for process in both]
    saved = torch.load(folder / "run/model_final.pth")
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
        assert torch.equal(value, saved["model"][key]), key
    assert both[0]["training"]["results"]["own_test"]["bbox"].keys() >= {"AP", "AP50"}
    assert both[1]["training"]["results"] == {}


def test_each_has_its_part_of_every_step(found):
    (first, second), _ = ([process["training"]["names"] for process in found[0]], None)
    assert len(first) == len(second) == 4
    for mine, theirs in zip(first, second, strict=True):
        assert len(mine) == len(theirs) == 1 and mine != theirs


def test_a_loss_that_is_not_finite_in_one_ends_both_and_names_its_image(found):
    (first, second), folder = found
    assert first["diverging"] == second["diverging"]
    assert "is nan at step 2" in first["diverging"]
    assert torch.load(folder / "diverged/diverged.pth")["names"] == second["training"]["names"][1]


@pytest.mark.parametrize("groups", [None, [0, 1, 1, 0, 1, 0, 0]])
def test_steps_are_the_same_for_any_number_of_processes(groups):
    """And from any start; a step has images of one group."""

    def stream():
        while True:
            yield from torch.randperm(7, generator=torch.Generator().manual_seed(3)).tolist()

    def steps(start=0, **place):
        sampler = StepSampler(stream, 4, groups, **place)
        sampler.start = start
        return [step for step, _ in zip(sampler, range(12 - start), strict=False)]

    whole = steps()
    assert sorted(position for step in whole for position, _ in step) != []
    parts = zip(steps(rank=0, world_size=2), steps(rank=1, world_size=2), strict=True)
    assert [first + second for first, second in parts] == whole
    assert steps(start=5) == whole[5:]
    if groups:
        assert all(len({groups[index] for _, index in step}) == 1 for step in whole)
    else:
        assert [position for step in whole for position, _ in step] == list(range(48))
