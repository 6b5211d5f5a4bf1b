"""Evaluations on a real Ray cluster of two workers: one is killed in the middle of a trial, and nothing is lost."""

import os
import signal
import time
from pathlib import Path

import pytest

from fbnetv3.errors import UsageError
from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.nars.algorithm.trial_store import DONE
from fbnetv3.nars.execution.executors import open_executor
from tests.nars.test_executors import SPACE as ONE
from tests.nars.test_executors import job, run
from tests.nars.toy import QUICK, SPACE, evaluate, outcome

ray = pytest.importorskip("ray", reason="Ray is optional: pip install '.[search]'")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster():
    ray.init(
        address="local",  # whatever else runs on this machine
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()


def test_a_worker_that_is_killed_costs_one_attempt(cluster, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()

    def deadly(candidate, epochs):
        (marks / f"{candidate.number}_{os.getpid()}").touch()
        if candidate.number == 3 and candidate.attempt == 0:
            time.sleep(0.2)  # in the middle
            os.kill(os.getpid(), signal.SIGKILL)
        return evaluate(candidate, epochs)

    settings = {**QUICK, "rounds": 2}
    result = search(SPACE, deadly, tmp_path / "ray", **{**settings, "executor": "ray"}, workers=2)
    assert {trial.status for trial in result.trials} == {DONE}
    assert [trial.number for trial in result.trials if trial.attempts == 2] == [3]
    assert len(list(marks.glob("3_*"))) == 2  # once in the process that died, once in another
    search(SPACE, evaluate, tmp_path / "serial", **settings)
    assert outcome(tmp_path / "ray") == outcome(tmp_path / "serial")


def test_failures_and_time_limits(cluster, tmp_path):
    def moody(candidate, epochs):
        if candidate["a"] == 0:
            raise ZeroDivisionError("what now")
        if candidate["a"] == 1:
            time.sleep(100)
        return [1.0] * epochs

    with open_executor("ray", ONE, moody, workers=2, time_limit=8.0, logs=tmp_path) as executor:
        found = run(executor, job(0), job(1), job(2))
    assert found[0].error.startswith("ZeroDivisionError: what now")
    assert "ended after 8 s: the time limit is 8 s" in found[1].error
    assert found[2].curve == (1.0, 1.0)


def test_resources_that_ray_does_not_know(cluster, tmp_path):
    with pytest.raises(UsageError, match="resources"):
        open_executor(
            "ray", ONE, evaluate, workers=1, time_limit=None, logs=tmp_path, resources={"num_wheels": 4}
        ).__enter__()


def test_more_than_the_cluster_has(cluster, tmp_path):
    with pytest.raises(UsageError, match="a trial needs 64 GPU, the cluster has 0 in all"):
        opened = open_executor(
            "ray", ONE, evaluate, workers=1, time_limit=None, logs=tmp_path, resources={"num_gpus": 64}
        )
        opened.__enter__()
    with open_executor("ray", ONE, evaluate, workers=9, time_limit=None, logs=tmp_path) as executor:
        assert executor.slots == 2


def test_an_address_where_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(UsageError, match=f"no Ray cluster at {address} .Connection refused"):
            open_executor("ray", ONE, evaluate, workers=1, time_limit=None, logs=tmp_path, address=address).__enter__()


def test_a_cluster_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: (_ for _ in ()).throw(ConnectionError("nobody listens\nthere")))
    with pytest.raises(UsageError, match=r"address: no Ray cluster at auto \(nobody listens\)"):
        open_executor("ray", ONE, evaluate, workers=1, time_limit=None, logs=tmp_path, address="auto").__enter__()
