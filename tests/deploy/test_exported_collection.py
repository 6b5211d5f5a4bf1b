"""Exports of one network in many formats: a table, what is missing, and the fastest."""

import json
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from fbnetv3.deploy import FORMATS, PrecisionSettings, export_classifier, load
from fbnetv3.deploy.collection_index import Variant, read_index
from fbnetv3.deploy.exported_collection import collection_variants, export_collection, format_table
from fbnetv3.deploy.exported_folder import read_manifest
from fbnetv3.deploy.runtime_choice import predictors_are_similar
from fbnetv3.errors import ExportError, MissingPackageError, UsageError

VARIANTS = [("onnx", "float32"), ("onnx", "int8"), ("torch-export", "float32")]


@pytest.fixture(scope="module")
def export(digits, held_out):
    images, targets = held_out

    def export(format, precision, folder):
        settings = None
        if precision != "float32":
            settings = PrecisionSettings(
                precision, images, targets, calibration=digits.labeled_images("train", 64)[0]
            )
        return export_classifier(
            digits.model, digits.preprocessing, digits.classes, folder, format=format, precision=settings
        )

    return export


@pytest.fixture(scope="module")
def collection(export, tmp_path_factory):
    folder = tmp_path_factory.mktemp("collection") / "digits"
    return folder, export_collection(export, VARIANTS, folder)


def test_every_export_is_in_the_index_and_the_table(collection):
    folder, variants = collection
    assert read_index(folder) == variants
    assert sorted(path.name for path in folder.iterdir()) == [
        "formats.json", "formats.md", "onnx", "onnx_int8", "torch-export",
    ]  # fmt: skip
    onnx, int8, archive = variants
    # Its manifest has the same figures
    check = json.loads((folder / "onnx_int8" / "manifest.json").read_text())["verification"]
    assert onnx.difference < 1e-4 < int8.difference == check["int8"]["largest_relative_difference"] < 0.3
    assert (int8.before, int8.after) == (check["int8"]["top1_float32"], check["int8"]["top1_int8"])
    assert int8.agreement == check["int8"]["agreement"]
    assert int8.bytes == (folder / "onnx_int8" / "model.onnx").stat().st_size < 0.5 * onnx.bytes
    assert onnx.after is None and onnx.milliseconds > 0 and archive.milliseconds > 0
    rows = (folder / "formats.md").read_text().splitlines()
    assert len(rows) == 2 + len(VARIANTS) and "int8" in rows[3] and f"{int8.agreement:.2f}%" in rows[3]


def test_what_cannot_be_exported_is_left_out_with_its_reason(export, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    reported = []
    variants = export_collection(
        export, [("onnx", "float32"), ("torch-export", "float32")], tmp_path / "out", reported.append
    )
    assert reported == variants == read_index(tmp_path / "out")
    assert "run pip install onnxruntime" in variants[0].problem and not variants[1].problem
    assert not (tmp_path / "out" / "onnx").exists()
    assert "run pip install onnxruntime" in format_table(variants).splitlines()[1]
    with pytest.raises(
        ExportError, match="out2: nothing was exported: onnx: onnxruntime cannot be imported"
    ):
        export_collection(export, [("onnx", "float32")], tmp_path / "out2")
    assert not (tmp_path / "out2").exists()
    with pytest.raises(UsageError, match="out already exists"):
        export_collection(export, VARIANTS, tmp_path / "out")


@pytest.fixture
def slow(monkeypatch):
    """Names of runtimes that take 20 ms longer."""
    names = set()

    def run(predictor):
        if predictor.runtime.name.split()[0] in names:
            time.sleep(0.02)

    monkeypatch.setattr("fbnetv3.deploy.predictor_loading.predictor_runs", lambda any_batch: [run])
    return names


def test_the_fastest_is_loaded(collection, held_out, slow, monkeypatch):
    folder, _ = collection
    slow |= {"onnxruntime", "openvino"}
    fastest = load(folder)
    assert fastest.runtime.name.startswith("torch")
    images, targets = held_out
    assert np.mean(fastest.logits(images).argmax(1) == targets) > 0.9
    slow ^= {"onnxruntime", "torch"}
    assert load(folder, "auto").runtime.name.startswith("onnxruntime")
    # Without its runtime, the fastest of the others
    slow -= {"torch"}
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert load(folder).runtime.name.startswith("torch")
    with pytest.raises(UsageError, match="has several exports: name one of its folders"):
        load(folder, "openvino")


def test_lower_precisions_may_round_but_not_compute_something_else(collection):
    folder, _ = collection
    exact, rounded = load(folder / "onnx"), load(folder / "onnx_int8")
    assert predictors_are_similar(rounded, exact)

    class Saturated:
        name = "saturated"

        def run(self, batch):
            return rounded.runtime.run(batch).clip(max=0.5)

    assert not predictors_are_similar(replace(rounded, runtime=Saturated()), exact)


def test_an_export_has_to_be_named_where_one_is_needed(collection):
    folder, _ = collection
    with pytest.raises(
        ExportError, match="has exports in several formats: .*: onnx, onnx_int8, torch-export"
    ):
        read_manifest(folder)


def test_nothing_that_runs_here(collection, tmp_path, monkeypatch):
    folder, variants = collection
    for package in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)
    fields = [vars(variant) for variant in variants if variant.format == "onnx"]
    (tmp_path / "formats.json").write_text(json.dumps({"device": "", "variants": fields}))
    (tmp_path / "onnx").symlink_to(folder / "onnx")
    (tmp_path / "onnx_int8").symlink_to(folder / "onnx_int8")
    with pytest.raises(MissingPackageError, match="run pip install onnxruntime"):
        load(tmp_path)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"variants": [{"format": "../..", "precision": "int8"}]}', '{"variants": [{}]}']
)
def test_a_corrupt_index(text, tmp_path):
    (tmp_path / "formats.json").write_text(text)
    with pytest.raises(ExportError, match=r"formats.json: corrupt"):
        read_index(tmp_path)


def test_variants_and_folders():
    variants = collection_variants(FORMATS.names(), ["float32", "int8"])
    assert {
        ("onnx", "float32"),
        ("onnx", "int8"),
        ("executorch", "int8"),
        ("torch-export", "float32"),
    } <= set(variants)
    assert ("torch-export", "int8") not in variants
    assert Variant("onnx", "float32").folder == "onnx" and Variant("onnx", "int8").folder == "onnx_int8"
