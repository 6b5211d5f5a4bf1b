"""Two processes on this machine's CPU: the same as one, and an end when one of them ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fbnetv3.arch import configs_folder
from fbnetv3.errors import UsageError
from fbnetv3.training.processes.distributed import SINGLE_PROCESS, process_group
from fbnetv3.training.run_state.metrics import read_metrics
from tests.training import two_processes

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TRAIN = [ROOT / "tools" / "train_net.py", "--config", configs_folder() / "digits" / "fbnetv3_digits.yaml"]
TRAIN = [*map(str, TRAIN), "SOLVER.BATCH_SIZE", "128", "SOLVER.WARMUP_EPOCHS", "0"]


def torchrun(*arguments):
    """A job of two processes, with what it prints in one stream."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], cwd=ROOT, env=ENVIRONMENT, **pipes)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What one process comes to, and each of two."""
    folder = tmp_path_factory.mktemp("processes")
    job = torchrun("-m", "tests.training.two_processes", folder)
    before = torch.get_rng_state()
    scenarios = (two_processes.train, two_processes.accumulate)
    alone = {scenario.__name__: scenario(SINGLE_PROCESS, folder) for scenario in scenarios}
    torch.set_rng_state(before)
    out, _ = job.communicate(timeout=300)
    assert job.returncode == 0, out
    return alone, *(torch.load(folder / f"process{rank}.pth", weights_only=False) for rank in (0, 1)), folder


@pytest.mark.parametrize("scenario", ["train", "accumulate"])
def test_gradients_and_losses_are_those_of_one_process(found, scenario):
    alone, *both = (process[scenario]["steps"] for process in found[:3])
    assert len(alone) == 8
    for process in both:
        for (loss, gradients), (expected_loss, expected) in zip(process, alone, strict=True):
            assert loss == pytest.approx(expected_loss, rel=1e-6)
            assert (gradients - expected).norm() < 1e-8 * expected.norm()


@pytest.mark.parametrize("what", ["model", "ema"])
def test_weights_and_statistics_are_those_of_one_process(found, what):
    alone, *both, _ = found
    for process in both:
        for key, value in alone["train"][what].items():
            torch.testing.assert_close(process["train"][what][key], value, rtol=1e-5, atol=1e-6)


def test_evaluation_counts_each_image_once(found):
    alone, *both, _ = found
    for process in both:
        assert process["train"]["metrics"].keys() == alone["train"]["metrics"].keys() == {1, 7, 60}
        for length, expected in alone["train"]["metrics"].items():
            assert process["train"]["metrics"][length] == pytest.approx(expected, rel=1e-5)
            assert process["train"]["metrics"][length]["images"] == length


def test_every_process_knows_of_every_damaged_image(found):
    alone, *both, _ = found
    assert sorted(alone["train"]["damaged"]) == ["image 3", "image 30", "image 4"]
    assert all(sorted(process["train"]["damaged"]) == sorted(alone["train"]["damaged"]) for process in both)


def test_a_loss_that_is_not_finite_in_one_process_ends_all_and_names_its_batch(found):
    _, *both, folder = found
    names = both[1]["diverge"]["names"]
    assert names != both[0]["diverge"]["names"]
    for process in both:
        assert "the loss is nan at step 3" in process["diverge"]["error"]
        assert f"images {', '.join(names[:3])} and 5 more" in process["diverge"]["error"]
    assert torch.load(folder / "diverged.pth")["names"] == names


def test_a_signal_to_one_process_saves_and_ends_all(found):
    _, *both, _ = found
    for process in both:
        assert (process["interrupt"]["ended"], process["interrupt"]["step"]) == ("Terminated", 3)
        for key, value in process["interrupt"]["whole"].items():
            assert torch.equal(process["interrupt"]["resumed"][key], value), key


def workers(job, count):
    """Process ids of a job's training processes, as soon as there are so many."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        if len(children) == count:
            return [int(child) for child in children]
        time.sleep(0.1)
    raise TimeoutError


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")


@linux
def test_a_killed_process_ends_the_job_and_an_elastic_one_starts_again(tmp_path):
    """With --max-restarts and --resume it goes on by itself, and ends with what a whole run has."""
    run = [*TRAIN, "SOLVER.EPOCHS", "4", "CHECKPOINT.STEPS", "2", "OUTPUT_DIR"]
    job = torchrun("--max-restarts", "1", *run, tmp_path / "run", "--resume")
    first = workers(job, 2)
    wait_for(lambda: list((tmp_path / "run" / "checkpoints").glob("step_*.pth")))
    os.kill(first[1], signal.SIGKILL)
    out, _ = job.communicate(timeout=240)
    assert job.returncode == 0, out
    assert len(re.findall("going on from", out)) == 1
    assert [m["epoch"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_top1" in m] == [1, 2, 3, 4]
    assert len(re.findall(r"epoch 4/4: ", out)) == 1, "only one process speaks"


def by_hand(rank, port, *arguments):
    """One process of two, started as a scheduler would, without torchrun."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {**ENVIRONMENT, **{name: str(value) for name, value in place.items()}}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, **pipes)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_who_is_left_alone_says_so_and_ends(tmp_path):
    port = free_port()
    run = [*TRAIN, "SOLVER.EPOCHS", "100", "CHECKPOINT.STEPS", "2", "OUTPUT_DIR", tmp_path / "run"]
    main, other = by_hand(0, port, *run), by_hand(1, port, *run)
    wait_for(lambda: list((tmp_path / "run" / "checkpoints").glob("step_*.pth")))
    other.kill()
    killed = time.monotonic()
    _, err = main.communicate(timeout=120)
    assert time.monotonic() - killed < 60
    assert main.returncode == 1
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "another process of this training is gone" in lines[0] and "--resume" in lines[0]
    assert "Traceback" not in err


def test_a_wrong_call_is_said_by_each_with_its_number(tmp_path):
    port = free_port()
    run = [*TRAIN, "SOLVER.BATCH_SIZE", "7", "OUTPUT_DIR", tmp_path / "run"]
    ended = [process.communicate(timeout=120)[1] for process in [by_hand(rank, port, *run) for rank in (0, 1)]]
    assert "error: SOLVER.BATCH_SIZE 7 is not a multiple of the 2 processes" in ended[0]
    assert "[process 1] error: SOLVER.BATCH_SIZE 7 is not a multiple of the 2 processes" in ended[1]
    assert not (tmp_path / "run").exists()


def test_incomplete_variables(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match=r"RANK, .* not: start several processes with torchrun"), process_group("cpu"):
        pass


def test_one_process_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group("cpu") as world:
        assert world is SINGLE_PROCESS
        assert (world.sum(1, 2.5), world.any(False), world.gather("x"), world.broadcast(3)) == (
            [1, 2.5],
            False,
            ["x"],
            3,
        )
