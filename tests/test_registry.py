"""Registries: lazy entries, taken names, suggestions."""

import sys

import pytest

from fbnetv3.errors import UnknownNameError, UsageError
from fbnetv3.registry import Registry
from tests.conftest import REGISTRIES


def test_register_as_a_decorator_or_a_call():
    registry = Registry("thing")

    @registry.register(name="decorated")
    def function():
        pass

    @registry.register()
    class Named:
        pass

    registry.register(3, name="number")
    assert registry.names() == ["Named", "decorated", "number"]
    assert registry.get("decorated") is function
    assert registry.origin("number").rpartition(":")[0].endswith("test_registry.py")


def test_get_imports_a_lazy_entry():
    registry = Registry("thing")
    registry.register("collections:OrderedDict", name="lazy")
    registry.register(len, name="direct")
    assert registry.entry("lazy") == "collections:OrderedDict"
    assert registry.get("lazy").__name__ == "OrderedDict"
    assert registry.get("direct") is len


def test_looking_up_a_lazy_entry_leaves_the_search_path_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry = Registry("thing")
    registry.register("collections:OrderedDict", name="lazy")
    registry.get("lazy")
    assert str(tmp_path) not in sys.path


def test_a_lazy_entry_without_a_name():
    with pytest.raises(
        UsageError, match=r"thing 'collections:OrderedDict' from .*test_registry.py:\d+ has no name"
    ):
        Registry("thing").register("collections:OrderedDict")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("no_such_module:f", "thing 'no_such_module' cannot be imported"),
        ("collections:OrderdDict", "collections has no OrderdDict: did you mean OrderedDict"),
        ("collections", "must have the form package.module:function"),
        ("math:pi", "is not callable"),
    ],
)
def test_a_lazy_entry_that_does_not_exist(entry, message):
    registry = Registry("thing")
    registry.register(entry, name="lazy")
    with pytest.raises(UsageError, match=message):
        registry.get("lazy")


def test_unknown_names():
    registry = Registry("thing")
    with pytest.raises(UnknownNameError, match="^unknown thing 'x': there are none"):
        registry.get("x")
    registry.add("first", 1, "here")
    registry.add("second", 2, "here")
    with pytest.raises(UnknownNameError, match="^unknown thing 'frist': did you mean first"):
        registry.get("frist")
    with pytest.raises(UnknownNameError, match="^unknown thing 7: available: first, second"):
        registry.get(7)


def test_a_taken_name_says_where_the_entry_comes_from():
    registry = Registry("thing")
    registry.add("builtin", 1, "its file")
    with pytest.raises(UsageError, match="thing 'builtin' from here is already registered by its file"):
        registry.add("builtin", 2, "here")
    registry.remove("builtin")
    registry.add("builtin", 2, "here")
    assert dict(registry) == {"builtin": 2}


def test_every_registry_is_restored_after_each_test():
    known = {id(registry) for registry in REGISTRIES}
    package = [
        value
        for name, module in sorted(sys.modules.items())
        if name.startswith("fbnetv3")
        for value in vars(module).values()
        if isinstance(value, Registry)
    ]
    assert {id(registry) for registry in package} == known
