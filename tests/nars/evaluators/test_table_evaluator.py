"""The evaluator that looks up accuracies in a table."""

import json

import numpy as np
import pytest

from fbnetv3.nars.evaluators.table_evaluator import TableError, TableEvaluator
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.search_space import space_from_dict

SPACE = space_from_dict(
    {"name": "two", "variables": {"a": {"range": [0, 2]}, "b": {"choices": ["x", "y"]}}}
)


def make_candidate(*vector):
    return Candidate(SPACE, np.array(vector))


def test_look_up(tmp_path):
    file = tmp_path / "table.json"
    file.write_text(json.dumps({"0x": {"acc": 1.5}, "1x": {"acc": [1, 2, 3]}, "2y": {}}))
    evaluate = TableEvaluator(file, "acc")
    assert evaluate(make_candidate(0, 0), 2) == [1.5, 1.5]
    assert evaluate(make_candidate(1, 0), 2) == [1, 2]
    with pytest.raises(TableError, match="has no candidate 2x"):
        evaluate(make_candidate(2, 0), 1)
    with pytest.raises(TableError, match="2y: no measurement 'acc"):
        evaluate(make_candidate(2, 1), 1)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("", "cannot be read as JSON"),
        ("[1, 2]", "must be a mapping"),
        ("{}", "must be a mapping"),
        ('{"a": 3}', "must be a mapping"),
    ],
)
def test_invalid_tables(tmp_path, content, error):
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(TableError, match=f"table.json: {error}"):
        TableEvaluator(tmp_path / "table.json")
