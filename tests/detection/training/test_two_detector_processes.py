"""Two processes on this machine's CPU train one detector."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fbnetv3.detection.data.detection_loaders import StepBatchSampler
from fbnetv3.detection.training.detector_checkpoint import RAW_KEY
from tests.detection.training.two_detector_processes import make_batches, make_norm

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def results(digits_config, tmp_path_factory):
    """Return the results of both processes, and their folder."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.detection.training.two_detector_processes", str(folder), str(digits_config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    job = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert job.returncode == 0, job.stdout + job.stderr
    return [torch.load(folder / f"process{rank}.pth", weights_only=False) for rank in (0, 1)], folder


@pytest.mark.parametrize("case", ["empty", "uneven", "no weights"])
def test_batchnorm_over_unequal_batches_is_that_of_one_process(results, case):
    """A process may have no proposals."""
    norm = make_norm(nn.BatchNorm2d, affine=case != "no weights")
    x = torch.cat(make_batches(5, 0) if case == "empty" else make_batches(2, 3)).requires_grad_()
    y = norm(x)
    (y**3).sum().backward()
    both = [process[case] for process in results[0]]
    torch.testing.assert_close(torch.cat([process["y"] for process in both]), y.detach())
    torch.testing.assert_close(torch.cat([process["dx"] for process in both]), x.grad, atol=1e-5, rtol=1e-4)
    for process in both:
        torch.testing.assert_close(process["mean"], norm.running_mean)
        torch.testing.assert_close(process["var"], norm.running_var)
        for gradient, parameter in zip(process["parameters"], norm.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, atol=1e-5, rtol=1e-4)


def test_one_value_per_channel_is_refused_in_both(results):
    assert {process["one value per channel"] for process in results[0]} == {
        "expected more than 1 value per channel across all processes when training"
    }


def test_both_have_the_same_weights_and_rank_0_writes_them(results):
    both, folder = results
    weights = [process["training"]["model"] for process in both]
    saved = torch.load(folder / "run/model_final.pth")
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
        assert torch.equal(value, saved[RAW_KEY][key]), key
    assert both[0]["training"]["results"]["custom_test"]["bbox"].keys() >= {"AP", "AP50"}
    assert both[1]["training"]["results"] == {}


def test_a_step_has_one_exchange_besides_gradients_and_batchnorm(results):
    """Losses, loading times and signals are one message; synchronized statistics are equal without an exchange."""
    for process in (both["training"] for both in results[0]):
        assert process["exchanges"] == [1, 1, 1, 1]
        assert process["broadcasts_buffers"] is False


def test_each_has_its_part_of_every_step(results):
    names_0, names_1 = (process["training"]["names"] for process in results[0])
    assert len(names_0) == len(names_1) == 4
    for step_names_0, step_names_1 in zip(names_0, names_1, strict=True):
        assert len(step_names_0) == len(step_names_1) == 1 and step_names_0 != step_names_1


@pytest.mark.parametrize("name", ["diverging", "diverging fused"])
def test_a_non_finite_loss_in_one_process_ends_both_and_names_its_image(results, name):
    (process_0, process_1), folder = results
    assert process_0[name] == process_1[name]
    assert "is nan at step 2" in process_0[name]
    dump = torch.load(folder / name.replace("diverging", "diverged").replace(" ", "_") / "diverged.pth")
    assert dump["names"] == process_1["training"]["names"][1]
    assert all(value.isfinite().all() for value in dump["model"].values())


@pytest.mark.parametrize("groups", [None, [0, 1, 1, 0, 1, 0, 0]])
def test_steps_are_the_same_for_any_number_of_processes(groups):
    """The steps are the same from any start, and each has images of one group only."""

    def stream():
        while True:
            yield from torch.randperm(7, generator=torch.Generator().manual_seed(3)).tolist()

    def steps(start=0, **place):
        sampler = StepBatchSampler(stream, 4, groups, **place)
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
