"""What a search's report shows, and what it leaves out."""

import json
import warnings

import pytest

from fbnetv3.errors import OutputError
from fbnetv3.nars import save_analysis, search, write_report
from fbnetv3.nars.algorithm.trial_store import TrialsError
from tests.nars.toy import QUICK, SPACE, evaluate


@pytest.mark.parametrize(
    ("trials", "shown"), [(2, set()), (3, {"predictor"}), (5, {"predictor", "samples"})], ids=("two", "three", "five")
)
def test_what_too_few_trials_cannot_tell_is_left_out(trials, shown, tmp_path):
    settings = {**QUICK, "rounds": 1, "batch": trials}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = search(SPACE, evaluate, tmp_path / "out", **settings)
        save_analysis(result)
        write_report(result.folder)
    pictures = {path.stem for path in (tmp_path / "out/report").glob("*.png")}
    assert pictures & {"predictor", "samples"} == shown
    assert "NaN" not in (tmp_path / "out/analysis.json").read_text()
    assert len(json.loads((tmp_path / "out/analysis.json").read_text())["found"]) == len(result.found)


def test_a_damaged_analysis_is_named(tmp_path):
    result = search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "rounds": 1, "batch": 3})
    (tmp_path / "out/analysis.json").write_text('{"found": [')
    with pytest.raises(TrialsError, match=r"analysis\.json: is damaged .*: remove it, and resume the search"):
        write_report(result.folder)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    result = search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "rounds": 1, "batch": 3})
    (tmp_path / "out/report").write_text("in the way")
    with pytest.raises(OutputError, match="report: cannot be written .File exists"):
        write_report(result.folder)
