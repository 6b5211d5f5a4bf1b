"""Settings of searches: paths in their YAML files, and how they are shown."""

import yaml

from fbnetv3.nars.settings.search_config import load_search_config
from fbnetv3.nars.settings.search_settings import SearchSettings


def test_files_next_to_a_config_are_found(tmp_path):
    """Anywhere in the evaluator's arguments; other names stay as they are."""
    (tmp_path / "table.json").write_text("{}")
    arguments = {"file": "table.json", "others": ["table.json", {"x": "missing.json"}], "name": "table"}
    space = {"name": "s", "variables": {"a": {"range": [0, 9]}}}
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump({"space": space, "evaluator": "table", "evaluator_args": arguments}))
    table = str(tmp_path / "table.json")
    assert load_search_config(file).settings.evaluator_args == {
        "file": table,
        "others": [table, {"x": "missing.json"}],
        "name": "table",
    }


def test_settings_are_shown_as_far_as_they_are_not_the_defaults():
    assert repr(SearchSettings()) == "SearchSettings()"
    settings = SearchSettings(epochs=4, budgets=[{"macs": 5}], window=4)
    assert repr(settings) == "SearchSettings(budgets=[{'macs': 5}], epochs=4)"
