"""Finished searches of the toy space, for the tests that only look at them."""

import pytest

from fbnetv3.nars.algorithm.nars_search import search
from tests.nars.toy import QUICK, SPACE, evaluate, spent


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    settings = {**QUICK, "columns": {"spent": spent}, "budgets": [{"spent": 12}, {"spent": [None, 18]}]}
    return search(SPACE, evaluate, folder / "out", **settings)


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    return search(SPACE, evaluate, tmp_path_factory.mktemp("plain") / "out", **QUICK)
