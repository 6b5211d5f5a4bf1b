"""Each process gets a GPU of its own, by mocks of torch's functions; two may share one only in tests."""

import pytest
import torch

from fbnetv3.config import get_cfg
from fbnetv3.errors import UsageError
from fbnetv3.training.devices.run_device import synchronizes_batchnorm
from fbnetv3.training.processes import distributed
from fbnetv3.training.processes.distributed import SHARE_GPU, ProcessGroup, process_group


class JoinedError(Exception):
    """The process would now wait for the others."""


@pytest.fixture
def join(monkeypatch):
    """Join as one of two processes with GPUs by `join(device, num_gpus, local_rank)`; return how it is done."""

    def run(device, num_gpus, local_rank=1):
        calls = {}

        def init_process_group(backend, **options):
            calls.update(options, backend=backend)
            raise JoinedError

        variables = {"RANK": local_rank, "LOCAL_RANK": local_rank, "WORLD_SIZE": 2}
        for name, value in {**variables, "MASTER_ADDR": "", "MASTER_PORT": 1}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
        monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: calls.update(current=gpu))
        monkeypatch.setattr(distributed, "rendezvous", lambda *_, **__: iter([(None, local_rank, 2)]))
        monkeypatch.setattr(distributed, "_store_of_this_launch", lambda store, *_: store)
        monkeypatch.setattr(torch.distributed, "init_process_group", init_process_group)
        with pytest.raises(JoinedError), process_group(device):
            pass
        return calls

    return run


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_nccl_knows_the_gpu_of_the_process(join, device):
    calls = join(device, num_gpus=2)
    gpu = torch.device("cuda", 1)
    assert (calls["backend"], calls["device_id"], calls["current"]) == ("nccl", gpu, gpu)


@pytest.mark.parametrize(("device", "num_gpus"), [("auto", 0), ("cpu", 2)])
def test_cpus_exchange_gradients_through_gloo(join, device, num_gpus):
    calls = join(device, num_gpus)
    assert (calls["backend"], calls["device_id"], "current" in calls) == ("gloo", None, False)


def test_two_processes_do_not_share_a_gpu(join, monkeypatch):
    monkeypatch.delenv(SHARE_GPU, raising=False)
    message = "local rank 1 has no GPU: this machine has 1; start at most one process per GPU"
    with pytest.raises(UsageError, match=message):
        join("cuda", num_gpus=1)


@pytest.mark.parametrize(("num_gpus", "local_rank", "index"), [(1, 1, 0), (2, 3, 1)])
def test_processes_may_share_a_gpu_in_tests(join, monkeypatch, num_gpus, local_rank, index):
    """NCCL does not support it, Gloo does."""
    monkeypatch.setenv(SHARE_GPU, "1")
    calls = join("cuda", num_gpus, local_rank)
    gpu = torch.device("cuda", index)
    assert (calls["backend"], calls["device_id"], calls["current"]) == ("gloo", None, gpu)


def test_without_a_gpu_there_is_none_to_share(join, monkeypatch):
    monkeypatch.setenv(SHARE_GPU, "1")
    with pytest.raises(UsageError, match="has no GPU: this machine has 0"):
        join("cuda", num_gpus=0)


def test_synchronized_batchnorm_is_not_compiled():
    def syncs(num_processes, *overrides):
        cfg = get_cfg()
        cfg.merge_from_list(["MODEL.COMPILE", "True", *overrides])
        return synchronizes_batchnorm(cfg, ProcessGroup(size=num_processes))

    assert not syncs(1)
    assert not syncs(2, "MODEL.SYNC_BN", "False")
    assert not syncs(2, "QAT.ENABLED", "True")  # statistics are constant
    with pytest.raises(UsageError, match="set MODEL.COMPILE or MODEL.SYNC_BN to False"):
        syncs(2)
    assert syncs(2, "MODEL.COMPILE", "False")


@pytest.mark.gpu
def test_two_processes_on_one_gpu_train_as_one(tmp_path):
    """Through Gloo; the sums differ by rounding, which every step amplifies."""
    from fbnetv3.training.run_state.metrics import read_metrics
    from tests.training.processes.test_distributed import TRAIN, torchrun

    run = [*TRAIN, "SOLVER.EPOCHS", "1", "LOG.PERIOD", "1", "DEVICE", "cuda", "MODEL.DROP_RATE", "0"]
    losses = []
    for name, processes in (("one", 1), ("two", 2)):
        folder = tmp_path / name
        job = torchrun(*run, "OUTPUT_DIR", folder, processes=processes, **{SHARE_GPU: "1"})
        output, _ = job.communicate(timeout=300)
        assert job.returncode == 0, output
        losses.append(
            [entry["loss"] for entry in read_metrics(folder / "metrics.jsonl") if "loss" in entry]
        )
    assert losses[1][:3] == pytest.approx(losses[0][:3], rel=0.01)
