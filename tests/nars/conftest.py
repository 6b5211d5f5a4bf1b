"""Finished searches of the toy space, for tests that only read them."""

import pytest

from fbnetv3.nars.algorithm.nars_search import search
from tests.nars.toy import PAPER_QUICK, QUICK, SPACE, evaluate, spent


@pytest.fixture(scope="session")
def budgeted_search(tmp_path_factory):
    """30 evaluations, and a recommendation for each of two budgets."""
    folder = tmp_path_factory.mktemp("budgeted")
    settings = {**QUICK, "columns": {"spent": spent}, "budgets": [{"spent": 12}, {"spent": [None, 18]}]}
    return search(SPACE, evaluate, folder / "out", **settings)


@pytest.fixture(scope="session")
def plain_search(tmp_path_factory):
    """30 evaluations without budgets."""
    return search(SPACE, evaluate, tmp_path_factory.mktemp("plain") / "out", **QUICK)


@pytest.fixture(scope="session")
def paper_search(tmp_path_factory):
    """Three rounds of Algorithm 1, without budgets."""
    return search(SPACE, evaluate, tmp_path_factory.mktemp("paper") / "out", **PAPER_QUICK)
