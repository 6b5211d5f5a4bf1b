"""Evaluations on a real Ray cluster of two workers, one of which is killed during a trial."""

import os
import signal
import time
from pathlib import Path

import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.nars.execution.attempts import SearchContext
from fbnetv3.nars.execution.executors import ExecutorOptions, open_executor
from fbnetv3.nars.trials.trial_store import COMPLETED
from tests.nars.execution.execution_helpers import SPACE as ONE_VARIABLE
from tests.nars.execution.execution_helpers import make_attempt, open_for_tests, run_attempts
from tests.nars.toy import QUICK, SPACE, evaluate, outcome

ray = pytest.importorskip("ray", reason="Ray is optional: pip install '.[search]'")
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # Ray assigns them whether they exist or not
        ray.init(
            address="local",  # not a cluster that may be running on this machine
            num_cpus=2,
            num_gpus=2,
            include_dashboard=False,
            log_to_driver=False,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
        )
    yield
    ray.shutdown()


def test_a_worker_that_is_killed_costs_one_attempt(cluster, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()

    def dies_once(candidate, epochs):
        (marks / f"{candidate.number}_{os.getpid()}").touch()
        if candidate.number == 3 and candidate.attempt == 0:
            time.sleep(0.2)  # in the middle
            os.kill(os.getpid(), signal.SIGKILL)
        return evaluate(candidate, epochs)

    settings = {**QUICK, "evaluations": 20, "window": 3}
    result = search(SPACE, dies_once, tmp_path / "ray", **{**settings, "executor": "ray"}, workers=2)
    assert {trial.status for trial in result.trials} == {COMPLETED}
    retried = [trial.number for trial in result.trials if any(part.attempts > 1 for part in trial.segments)]
    assert retried == [3]
    assert len(list(marks.glob("3_*"))) == 2  # once in the process that died, once in another
    search(SPACE, evaluate, tmp_path / "serial", **settings)
    assert outcome(tmp_path / "ray") == outcome(tmp_path / "serial")


def test_failures_and_time_limits(cluster, tmp_path):
    def fails_or_hangs(candidate, epochs):
        if candidate["a"] == 0:
            raise ZeroDivisionError("what now")
        if candidate["a"] == 1:
            time.sleep(100)
        return [1.0] * epochs

    with open_for_tests(fails_or_hangs, tmp_path, "ray", time_limit=20.0) as executor:
        outcomes = run_attempts(executor, make_attempt(0), make_attempt(1), make_attempt(2))
    assert outcomes[0].error.startswith("ZeroDivisionError: what now (in test_ray_executor.py, line ")
    assert outcomes[0].error.endswith("; traceback in logs/tracebacks.txt")
    assert "ZeroDivisionError: what now\n" in (tmp_path / "logs" / "tracebacks.txt").read_text()
    assert "killed after 20 s: time_limit is 20 s" in outcomes[1].error
    assert outcomes[2].curve == (1.0, 1.0)


def test_a_task_that_fails_is_not_reported_as_a_dead_worker(cluster, tmp_path):
    class CannotBeLoaded:
        def __reduce__(self):
            return exec, ("raise ImportError('not on this node')",)

        def __call__(self, candidate, epochs):
            raise AssertionError("no task should get here")

    with open_for_tests(CannotBeLoaded(), tmp_path, "ray") as executor:
        outcomes = run_attempts(executor, make_attempt(0))
    assert outcomes[0].error.startswith("the Ray task failed")
    assert "not on this node" in outcomes[0].error


def test_workers_import_the_users_modules_on_ray(cluster, tmp_path):
    module = "tests.nars.simulation.workloads"  # no other test imports it on the cluster

    def evaluate_with_extension(candidate, epochs):
        import sys

        return [float(module in sys.modules)] * epochs

    context = SearchContext(ONE_VARIABLE, evaluate_with_extension, imports=[module])
    with open_executor("ray", context, ExecutorOptions()) as executor:
        assert run_attempts(executor, make_attempt(0))[0].curve == (1.0, 1.0)


def test_modules_of_the_search_can_be_imported_on_ray(cluster, tmp_path, monkeypatch):
    """Those in folders that only the import path of the searching process contains."""
    (tmp_path / "beside_the_search.py").write_text(
        "def evaluate(candidate, epochs):\n    return [4.0] * epochs\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import beside_the_search

    with open_for_tests(beside_the_search.evaluate, tmp_path, "ray") as executor:
        assert run_attempts(executor, make_attempt(0))[0].curve == (4.0, 4.0)


def test_unknown_resources(cluster, tmp_path):
    with pytest.raises(UsageError, match="resources"):
        open_for_tests(evaluate, tmp_path, "ray", resources={"num_wheels": 4}).__enter__()


def test_more_resources_than_the_cluster_has(cluster, tmp_path):
    with pytest.raises(
        UsageError, match="a trial needs 1 CPU and 64 GPU, but .* has 2 CPU and 2 GPU in all"
    ):
        open_for_tests(evaluate, tmp_path, "ray", resources={"num_gpus": 64}).__enter__()
    with open_for_tests(evaluate, tmp_path, "ray", workers=9) as executor:
        assert executor.slots == 2


class SeesGpus:
    """Returns the number of GPUs that a trial sees, and of those that its task has reserved."""

    def __init__(self, trial_device):
        self.trial_device = trial_device

    def __call__(self, candidate, epochs):
        names = os.environ["CUDA_VISIBLE_DEVICES"]
        reserved = ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
        return [float(len(names.split(","))) if names else 0.0, reserved]


def test_trials_reserve_the_share_of_a_gpu_with_which_all_workers_fit(cluster, tmp_path):
    """One that ran out of memory reserves a whole GPU."""
    with open_for_tests(SeesGpus("auto"), tmp_path, "ray", workers=4) as executor:
        outcomes = run_attempts(executor, make_attempt(0), make_attempt(1, alone=True))
    assert outcomes[0].curve == (1.0, 0.5)
    assert outcomes[1].curve == (1.0, 1.0)


def test_trials_without_gpus_see_none(cluster, tmp_path):
    """Whatever the version of Ray does."""
    with open_for_tests(SeesGpus("cpu"), tmp_path, "ray", workers=1) as executor:
        assert run_attempts(executor, make_attempt(0))[0].curve == (0.0, 0.0)


def test_trials_on_cuda_need_gpus(cluster, tmp_path):
    with pytest.raises(UsageError, match="resources.num_gpus is 0, but DEVICE is cuda"):
        open_for_tests(SeesGpus("cuda"), tmp_path, "ray", resources={"num_gpus": 0}).__enter__()


@pytest.mark.parametrize(
    ("needed", "slots"),
    [
        ({"CPU": 4}, 3),  # two on the first machine, one on the second
        ({"CPU": 1, "GPU": 3}, 1),  # not of two machines
        ({"CPU": 1, "GPU": 0.6}, 6),  # two shares of 0.6 do not fit on a GPU, nor on parts of several
        ({"CPU": 2, "GPU": 0.5}, 6),
        ({"GPU": 0.3333}, 18),
        ({"CPU": 0, "GPU": 0}, None),
    ],
)
def test_trials_that_fit_on_a_cluster(needed, slots):
    from fbnetv3.nars.execution.ray_executor import count_slots

    assert count_slots([{"CPU": 8, "GPU": 4}, {"CPU": 5, "GPU": 2}], needed) == slots


def test_an_address_without_a_cluster(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(UsageError, match=f"no Ray cluster at {address} .*Connection refused"):
            open_for_tests(evaluate, tmp_path, "ray", address=address).__enter__()


def test_a_cluster_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(
        ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("no answer\nfrom it"))
    )
    with pytest.raises(UsageError, match=r"address: no Ray cluster at auto \(no answer from it\)"):
        open_for_tests(evaluate, tmp_path, "ray", address="auto").__enter__()
