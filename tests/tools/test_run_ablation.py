"""tools/run_ablation.py as a user runs it."""

import json

import torch

from fbnetv3.experiments.ablation import CellResult, load_ablation, run_ablation
from tests.experiments.test_ablation import file  # noqa: F401 - a fixture


def test_an_interrupted_ablation_resumes_without_training_any_cell_twice(tool, file, tmp_path):  # noqa: F811
    interrupted = run_ablation(load_ablation(file))
    first_results = [next(interrupted), next(interrupted)]
    interrupted.close()
    weights = list((tmp_path / "out").glob("*/model_final.pth"))
    assert len(weights) == 2
    run = tool("run_ablation", "--config", file)
    assert (run.code, run.err) == (0, "")
    results = [CellResult(**entry) for entry in json.loads((tmp_path / "out" / "results.json").read_text())]
    assert results[:2] == first_results and len(results) == 4
    for path in weights:
        content = torch.load(path)
        assert content["model_ema"] is not None and content["arch"] == "fbnetv3_digits"
    assert "2/4: digits, student, seed 0" in run.out and "distilled from fbnetv3_digits" in run.out
    assert run.out.count("epoch 2/2") == 2, "finished cells are not trained again"
    assert (tmp_path / "out" / "table.md").read_text().strip() in run.out
    assert (tmp_path / "out" / "figure.png").read_bytes().startswith(b"\x89PNG")
