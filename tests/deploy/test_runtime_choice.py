"""The runtime of an exported folder: by name, or the fastest that gives the right outputs."""

import itertools
import sys
from functools import partial

import numpy as np
import pytest

from fbnetv3.deploy import load
from fbnetv3.deploy.latency.benchmark import measure_exported
from fbnetv3.deploy.predictors.logit_difference import relative_difference
from fbnetv3.deploy.runtime_choice import choose_fastest
from fbnetv3.errors import ExportError, MissingPackageError, UsageError


class Clock:
    """Time that passes only while a candidate runs."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def choose(seconds, wrong=(), missing=(), failing=()):
    """Choose among candidates by name, whose calls take these seconds in turn."""
    clock = Clock()
    times = {name: itertools.cycle(values) for name, values in seconds.items()}

    def opener(name):
        def open_candidate():
            if name in missing:
                raise MissingPackageError(f"{name} cannot be imported: run pip install {name}")
            return name

        return open_candidate

    def run(name):
        if name in failing:
            raise ExportError("returned logits of 0 instead of 1 images")
        clock.now += next(times[name])

    def agrees(name, reference):
        assert reference == next(each for each in seconds if each not in {*missing, *failing})
        return name not in wrong

    return choose_fastest({name: opener(name) for name in seconds}, agrees, [run], clock=clock)


def test_the_fastest_is_chosen():
    assert choose({"own": [2.0], "other": [1.0]}) == "other"
    assert choose({"own": [1.0], "other": [2.0]}) == "own"


def test_without_int8_instructions_float32_is_chosen():
    """On such a processor, int8 and bfloat16 take longer; the order does not matter."""
    times = {"float32": [10.0], "bfloat16": [31.0], "int8": [14.0]}
    for order in itertools.permutations(times):
        assert choose({name: times[name] for name in order}) == "float32"


def test_a_slow_first_call_and_rare_interruptions_do_not_count():
    assert choose({"own": [1.0], "other": [50.0, 0.5, 0.5, 0.5, 9.0, 0.5, 0.5, 9.0]}) == "other"


def test_single_images_and_batches_count_the_same():
    """Twice as fast with batches outweighs a loss of a quarter with single images."""
    seconds = {("own", 1): 1.0, ("other", 1): 1.25, ("own", 16): 16.0, ("other", 16): 8.0}
    clock = Clock()

    def run(name, batch):
        clock.now += seconds[name, batch]

    runs = [partial(run, batch=batch) for batch in (1, 16)]
    openers = {name: lambda name=name: name for name in ("own", "other")}
    assert choose_fastest(openers, lambda name, reference: True, runs, clock=clock) == "other"


def test_wrong_outputs_are_never_chosen():
    assert choose({"own": [2.0], "fast": [0.1], "other": [1.0]}, wrong={"fast"}) == "other"


def test_missing_packages():
    assert choose({"own": [1.0], "other": [2.0]}, missing={"own"}) == "other"
    with pytest.raises(MissingPackageError, match="pip install own"):
        choose({"own": [1.0], "other": [2.0]}, missing={"own", "other"})


def test_what_does_not_run_on_this_processor_is_left_out(caplog):
    assert choose({"own": [0.1], "other": [2.0], "third": [1.0]}, failing={"own"}) == "third"
    assert caplog.messages == ["own is not used: returned logits of 0 instead of 1 images"]
    with pytest.raises(ExportError, match="0 instead of 1 images"):
        choose({"own": [1.0], "other": [2.0]}, failing={"own", "other"})


def test_onnx_files_run_in_openvino(exported, held_out):
    pytest.importorskip("openvino", reason="OpenVINO is optional: pip install '.[export]'")
    folder = exported("onnx")
    own, other = load(folder, "onnxruntime"), load(folder, runtime="openvino")
    assert own.runtime.name.startswith("onnxruntime ") and other.runtime.name.startswith("openvino ")
    assert load(folder).runtime.name == own.runtime.name
    assert relative_difference(other.logits(held_out[0]), own.logits(held_out[0])) < 1e-5
    assert load(folder, "auto").runtime.name in (own.runtime.name, other.runtime.name)


def test_auto_without_openvino(exported, monkeypatch):
    folder = exported("onnx")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert load(folder, "auto").runtime.name.startswith("onnxruntime ")
    with pytest.raises(MissingPackageError, match="openvino cannot be imported.*pip install openvino"):
        load(folder, "openvino")


def test_unknown_runtimes_are_named(exported):
    choices = "runtime 'openvin' does not run model.onnx: did you mean openvino?"
    with pytest.raises(UsageError, match=choices):
        load(exported("onnx"), "openvin")
    with pytest.raises(UsageError, match=r"runtime 'openvino' does not run model.pt2: .*torch"):
        load(exported("torch-export"), "openvino")


def test_measuring_names_the_runtime(exported):
    pytest.importorskip("openvino", reason="OpenVINO is optional: pip install '.[export]'")
    result = measure_exported(exported("onnx"), runtime="openvino", seconds=0.05, warmup=0.01)
    assert result.runtime.startswith("openvino ") and np.isfinite(result.timing.median)
