"""Predictors in other processes: after a fork, and pickled."""

import contextlib
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from fbnetv3.deploy import ClassifierPredictor, TorchRuntime, load
from fbnetv3.deploy.predictors.augmented_predictor import augment_predictor
from fbnetv3.deploy.process_local import ProcessLocal

BATCH = np.random.default_rng(0).standard_normal((6, 1, 32, 32)).astype(np.float32)
FORMATS = ["onnx", "torch-export", "torchscript", "executorch", "aoti", "litert", "ncnn"]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def open_runtime(kind, exported, digits):
    if kind == "torch":
        return TorchRuntime(digits.model, optimize=True)
    if kind == "openvino":
        pytest.importorskip("openvino", reason="pip install openvino")
        return load(exported("onnx"), "openvino").runtime
    return load(exported(kind)).runtime


def run_in_fork(function):
    """Return the result of a function in a forked child, which is killed after 60 seconds."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: sender.send(function()))
    child.start()
    try:
        assert receiver.poll(60), "the child hangs"
        return receiver.recv()
    finally:
        child.kill()
        child.join()


FORKED = ["torch", "openvino", *(format for format in FORMATS if format != "executorch")]


@pytest.mark.parametrize("kind", FORKED)
def test_a_fork_after_a_batch_does_not_hang(kind, exported, digits, two_threads):
    runtime = open_runtime(kind, exported, digits)
    runtime.run(BATCH[:1])
    expected = runtime.run(BATCH)
    np.testing.assert_allclose(run_in_fork(lambda: runtime.run(BATCH)), expected, atol=1e-4)
    np.testing.assert_array_equal(runtime.run(BATCH), expected)  # the parent is as before


@pytest.mark.parametrize("format", FORMATS)
def test_predictors_can_be_pickled(format, exported):
    predictor = load(exported(format))
    copy = pickle.loads(pickle.dumps(predictor))
    np.testing.assert_array_equal(copy.runtime.run(BATCH), predictor.runtime.run(BATCH))
    assert copy.classes == predictor.classes and copy.preprocessing == predictor.preprocessing
    assert len(pickle.dumps(predictor)) < 4096  # the path of the file, not the file


@pytest.mark.parametrize("optimize", [False, True])
def test_predictors_of_torch_networks_can_be_pickled(optimize, digits):
    predictor = ClassifierPredictor(
        TorchRuntime(digits.model, optimize=optimize), digits.preprocessing, digits.classes
    )
    copy = pickle.loads(pickle.dumps(augment_predictor(predictor, "flip")))
    expected = augment_predictor(predictor, "flip").runtime.run(BATCH)
    np.testing.assert_array_equal(copy.runtime.run(BATCH), expected)


# Networks of each folder are opened twice and closed in this order; then a signal arrives
CLOSE_AND_SIGNAL = """
import gc, os, signal, sys
from fbnetv3.deploy import load
for folder in sys.argv[1:]:
    signal.signal(signal.SIGTERM, lambda *args: print(folder, flush=True))
    first, second = load(folder), load(folder)
    del first
    gc.collect()
    del second
    gc.collect()
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_signals_are_handled_after_networks_are_closed(exported):
    """Two cores of OpenVINO 2026.4 leave a stack for signal handlers that does not exist anymore: a crash."""
    pytest.importorskip("openvino", reason="pip install openvino")
    folders = []
    for name in (*FORMATS, "openvino"):
        with contextlib.suppress(pytest.skip.Exception):  # its packages are not installed
            folders.append(str(exported(name)))
    done = subprocess.run(
        [sys.executable, "-c", CLOSE_AND_SIGNAL, *folders], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()) == (0, folders), done.stderr


def _classify(predictor, image):
    return predictor(image, top=1)[0].label


def test_a_spawned_process_classifies(exported, held_out):
    """As joblib, Ray and multiprocessing send it there."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result = pool.apply_async(_classify, (load(exported("onnx")), np.asarray(held_out[0][0])))
        assert result.get(120) == str(held_out[1][0])


class Opened:
    """An object that knows its process, and must not be destroyed in another one."""

    def __init__(self):
        self.process = os.getpid()

    def __del__(self):
        assert os.getpid() == self.process


def test_each_process_opens_its_own():
    local = ProcessLocal(Opened)
    assert local.get() is local.get() and local.get().process == os.getpid()
    assert run_in_fork(lambda: (local.get().process, os.getpid())) != (os.getpid(),) * 2
    child, child_itself = run_in_fork(lambda: (local.get().process, os.getpid()))
    assert child == child_itself != os.getpid()
    assert pickle.loads(pickle.dumps(ProcessLocal(os.getpid))).get() == os.getpid()


def test_a_thread_that_opens_during_a_fork_does_not_lock_the_child():
    begun = threading.Event()

    def open_slowly():
        begun.set()
        time.sleep(0.5)
        return os.getpid()

    local = ProcessLocal(open_slowly)
    thread = threading.Thread(target=local.get)
    thread.start()
    begun.wait()
    assert run_in_fork(local.get) != os.getpid()
    thread.join()
    assert local.get() == os.getpid()
