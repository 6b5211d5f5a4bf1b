"""Two processes on this machine's CPU: they give the same results as one, and both end if one fails."""

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
from tests.training.processes import two_classifier_processes

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
TRAIN = [ROOT / "tools" / "train_net.py", "--config", configs_folder() / "digits" / "fbnetv3_digits.yaml"]
TRAIN = [*map(str, TRAIN), "SOLVER.BATCH_SIZE", "128", "SOLVER.WARMUP_EPOCHS", "0"]


def torchrun(*arguments, processes=2, **variables):
    """Start a job of two processes that write to one output stream."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env={**ENVIRONMENT, **variables}, **pipes)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return the results of a single process, the results of each of two, and their folder."""
    folder = tmp_path_factory.mktemp("processes")
    job = torchrun("-m", "tests.training.processes.two_classifier_processes", folder)
    rng_state = torch.get_rng_state()
    scenarios = (two_classifier_processes.train, two_classifier_processes.accumulate)
    single = {scenario.__name__: scenario(SINGLE_PROCESS, folder) for scenario in scenarios}
    torch.set_rng_state(rng_state)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    both = [torch.load(folder / f"process{rank}.pth", weights_only=False) for rank in (0, 1)]
    return single, both, folder


@pytest.mark.parametrize("scenario", ["train", "accumulate"])
def test_gradients_and_losses_are_those_of_one_process(results, scenario):
    single, both, _ = results
    expected_steps = single[scenario]["steps"]
    assert len(expected_steps) == 8
    for process in both:
        steps = zip(process[scenario]["steps"], expected_steps, strict=True)
        for (loss, gradients), (expected_loss, expected_gradients) in steps:
            assert loss == pytest.approx(expected_loss, rel=1e-6)
            assert (gradients - expected_gradients).norm() < 1e-8 * expected_gradients.norm()


@pytest.mark.parametrize("part", ["model", "ema"])
def test_weights_and_statistics_are_those_of_one_process(results, part):
    single, both, _ = results
    for process in both:
        for key, value in single["train"][part].items():
            torch.testing.assert_close(process["train"][part][key], value, rtol=1e-5, atol=1e-6)


def test_statistics_need_no_exchange_with_synchronized_batchnorm(results):
    """They are equal bit for bit, so that DistributedDataParallel need not broadcast them before each step."""
    _, (process_0, process_1), _ = results
    assert (process_0["buffers"]["broadcast_sync"], process_0["buffers"]["broadcast_plain"]) == (
        False,
        True,
    )
    for key, value in process_0["train"]["model"].items():
        assert torch.equal(value, process_1["train"]["model"][key]), key


def test_buffers_of_rank_0_replace_those_of_others_in_one_message_for_each_type(results):
    _, both, _ = results
    expected = both[0]["buffers"]["before"]
    for process in both:
        assert process["buffers"]["messages"] == 3  # float32, int64 and bool
        after = process["buffers"]["after"]
        assert after.keys() == expected.keys()
        for key, value in after.items():
            assert torch.equal(value, expected[key]) and value.stride() == expected[key].stride(), key
    assert not torch.equal(both[1]["buffers"]["before"]["norm.running_mean"], expected["norm.running_mean"])


def test_a_step_has_one_exchange_on_the_cpu(results):
    """Besides the gradients, the loss, and the statistics of BatchNorm, which GPUs exchange among themselves."""
    _, both, _ = results
    for process in both:
        assert process["exchanges"] == {"sum": 8 + 2, "gather": 0}  # each step, and the end of each epoch


def test_evaluation_counts_each_image_once(results):
    single, both, _ = results
    expected_metrics = single["train"]["metrics"]
    for process in both:
        metrics = process["train"]["metrics"]
        assert metrics.keys() == expected_metrics.keys() == {1, 7, 60}
        for length, expected in expected_metrics.items():
            assert metrics[length] == pytest.approx(expected, rel=1e-5)
            assert metrics[length]["images"] == length


def test_corrupt_images_are_counted_in_all_processes(results):
    single, both, _ = results
    expected = sorted(single["train"]["corrupt_images"])
    assert [message.rpartition(": ")[2] for message in expected] == ["image 30", "image 3", "image 4"]
    assert all(sorted(process["train"]["corrupt_images"]) == expected for process in both)


def test_a_non_finite_loss_in_one_process_ends_both_and_names_its_batch(results):
    _, both, folder = results
    names = both[1]["diverge"]["names"]
    assert names != both[0]["diverge"]["names"]
    for process in both:
        assert "the loss is nan at step 3" in process["diverge"]["error"]
        assert f"images {', '.join(names[:3])} and 5 more" in process["diverge"]["error"]
    assert torch.load(folder / "diverged.pth")["names"] == names


def test_a_signal_to_one_process_saves_the_run_and_ends_both(results):
    _, both, _ = results
    for process in both:
        assert (process["interrupt"]["exception"], process["interrupt"]["step"]) == ("Terminated", 3)
        for key, value in process["interrupt"]["uninterrupted"].items():
            assert torch.equal(process["interrupt"]["resumed"][key], value), key


def worker_pids(job, count):
    """Wait until a job has `count` training processes, and return their process ids."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        children = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
        if len(children) == count:
            return [int(child) for child in children]
        time.sleep(0.1)
    raise TimeoutError


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads process ids from /proc")


@linux
def test_an_elastic_job_resumes_after_a_process_was_killed(tmp_path):
    """With --max-restarts and --resume, torchrun restarts the job, which completes the run."""
    run = [*TRAIN, "SOLVER.EPOCHS", "4", "CHECKPOINT.STEPS", "2", "OUTPUT_DIR"]
    job = torchrun("--max-restarts", "1", *run, tmp_path / "run", "--resume")
    pids = worker_pids(job, 2)
    wait_for(lambda: list((tmp_path / "run" / "checkpoints").glob("step_*.pth")))
    os.kill(pids[1], signal.SIGKILL)
    output, _ = job.communicate(timeout=240)
    assert job.returncode == 0, output
    assert len(re.findall("resuming after", output)) == 1
    assert [m["epoch"] for m in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_top1" in m] == [
        1,
        2,
        3,
        4,
    ]
    assert len(re.findall(r"epoch 4/4: ", output)) == 1, "only rank 0 logs"


def start_rank(rank, port, *arguments):
    """Start one of two processes without torchrun, as a scheduler would."""
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    environment = {**ENVIRONMENT, **{name: str(value) for name, value in variables.items()}}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, **pipes)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_process_ends_with_a_message_when_the_other_was_killed(tmp_path):
    port = free_port()
    run = [*TRAIN, "SOLVER.EPOCHS", "100", "CHECKPOINT.STEPS", "2", "OUTPUT_DIR", tmp_path / "run"]
    rank_0, rank_1 = start_rank(0, port, *run), start_rank(1, port, *run)
    wait_for(lambda: list((tmp_path / "run" / "checkpoints").glob("step_*.pth")))
    rank_1.kill()
    kill_time = time.monotonic()
    _, err = rank_0.communicate(timeout=120)
    assert time.monotonic() - kill_time < 60
    assert rank_0.returncode == 1
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (
        len(lines) == 1
        and "another training process exited or stopped responding" in lines[0]
        and "--resume" in lines[0]
    )
    assert "Traceback" not in err


def test_errors_are_prefixed_with_the_rank(tmp_path):
    port = free_port()
    run = [*TRAIN, "SOLVER.BATCH_SIZE", "7", "OUTPUT_DIR", tmp_path / "run"]
    processes = [start_rank(rank, port, *run) for rank in (0, 1)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert (
        "error: SOLVER.BATCH_SIZE 7 must be at least 4 and a multiple of 2, the number of processes"
        in errors[0]
    )
    assert (
        "[process 1] error: SOLVER.BATCH_SIZE 7 must be at least 4 and a multiple of 2, the number of processes"
        in errors[1]
    )
    assert not (tmp_path / "run").exists()


def test_incomplete_variables(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    message = r"RANK, .* is not: start several processes with torchrun"
    with pytest.raises(UsageError, match=message), process_group("cpu"):
        pass


@pytest.mark.parametrize(("name", "value"), [("RANK", ""), ("WORLD_SIZE", "two")])
def test_variables_that_are_not_integers(monkeypatch, name, value):
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "", "MASTER_PORT": "1"}
    for variable, text in {**variables, name: value}.items():
        monkeypatch.setenv(variable, text)
    with (
        pytest.raises(UsageError, match=f"variable {name} must be an integer, not '{value}'"),
        process_group("cpu"),
    ):
        pass


def test_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with process_group("cpu") as group:
        assert group is SINGLE_PROCESS
        assert group.sum(1, 2.5) == [1, 2.5]
        assert not group.any(False)
        assert group.gather("x") == ["x"]
        assert group.broadcast(3) == 3
