"""Almost valid YAML: valid data with one to three mistakes, in the data or in the text."""

import copy

import yaml
from hypothesis import strategies as st

UNEXPECTED_VALUES = st.one_of(
    st.sampled_from(
        [
            *(None, True, False, "", "x", "1", "1e-3", "a b", "$nothing", "../x"),
            *(-1, 0, 1, 2, 3, 7, 300, -0.5, 0.0, 0.5, 1e-9, 1e3),
            *([], {}, [None], {"a": 1}, [1, 2], ["a", "a"]),
        ]
    ),
    st.integers(-10, 1000),
    st.floats(-10, 1000),
    st.text("abcXYZ_-$. ", max_size=8),
    st.lists(st.one_of(st.integers(-5, 300), st.floats(-2, 2)), max_size=4),
).map(copy.deepcopy)  # mutations change drawn values in place
"""Values of any type, as a slip of the user might leave them."""

MUTATIONS = ["nudge"] * 4 + ["replace"] * 2 + ["remove", "rename", "add", "duplicate", "wrap", "move"]


def nudged(value):
    """Return a strategy for values slightly different from a valid one."""
    if isinstance(value, bool):
        return st.just(not value)
    if isinstance(value, int):
        return st.sampled_from([value + 1, value - 1, value + 2, 2 * value, value // 2, 0, -value])
    if isinstance(value, float):
        return st.sampled_from([value * 2, value / 2, value * 0.999, value + 1, -value, 0.0])
    if isinstance(value, str):
        words = [
            "sgd",
            "relu",
            "none",
            "conv",
            "mbconv",
            "cosine",
            "$kernel",
            "$lr",
            value.upper(),
            f"{value}2",
        ]
        return st.sampled_from(words)
    return st.just(value)


def _all_paths(data, path=()):
    """Yield the path of every value, as keys and indices."""
    yield path
    if isinstance(data, (dict, list)):
        entries = data.items() if isinstance(data, dict) else enumerate(data)
        for key, value in entries:
            yield from _all_paths(value, (*path, key))


def _value_at(data, path):
    for key in path:
        data = data[key]
    return data


@st.composite
def mutated_data(draw, valid):
    """Draw a copy of valid data in which some values are changed, missing, duplicated, renamed, added or moved."""
    data = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        paths = [path for path in _all_paths(data) if path]
        if not paths:
            return draw(UNEXPECTED_VALUES)
        *parent_path, last = draw(st.sampled_from(paths))
        parent = _value_at(data, parent_path)
        mutation = draw(st.sampled_from(MUTATIONS))
        if mutation == "nudge":
            parent[last] = draw(nudged(parent[last]))
        elif mutation == "replace":
            parent[last] = draw(UNEXPECTED_VALUES)
        elif mutation == "remove":
            del parent[last]
        elif mutation == "wrap":
            parent[last] = [parent[last]]
        elif mutation == "move":
            parent[last] = copy.deepcopy(_value_at(data, draw(st.sampled_from(paths))))
        elif isinstance(parent, list):
            parent.insert(
                last, copy.deepcopy(parent[last]) if mutation == "duplicate" else draw(UNEXPECTED_VALUES)
            )
        elif mutation == "rename":
            new_name = draw(
                st.one_of(st.text("abcXYZ_", max_size=6), st.just(f"{last}s"), st.integers(0, 3))
            )
            parent[new_name] = parent.pop(last)
        else:
            new_name = draw(
                st.one_of(st.text("abcXYZ_", max_size=6), st.sampled_from([None, 1, True, "_BASE_"]))
            )
            parent[new_name] = draw(UNEXPECTED_VALUES)
    return data


@st.composite
def mutated_yaml(draw, valid):
    """Draw YAML text of mutated data, sometimes with a mistake in the text too."""
    data = draw(st.one_of(mutated_data(valid), st.just(valid)))
    flow = draw(st.sampled_from([None, True, False]))
    text = yaml.dump(
        data, Dumper=_NoAliasDumper, sort_keys=False, allow_unicode=True, default_flow_style=flow
    )
    if data is not valid and draw(st.integers(0, 3)):
        return text
    lines = text.split("\n")
    index = draw(st.integers(0, max(0, len(lines) - 1)))
    mistake = draw(st.sampled_from(["duplicate", "truncate", "indent", "insert", "character"]))
    if mistake == "duplicate":
        lines.insert(index, lines[index])
    elif mistake == "truncate":
        del lines[index:]
    elif mistake == "indent":
        lines[index] = " " + lines[index]
    elif mistake == "insert":
        lines.insert(index, draw(st.sampled_from(["- 1", "<<: {a: 1}", "---", "...", "\t", "text"])))
    else:
        column = draw(st.integers(0, len(lines[index])))
        character = draw(st.sampled_from(list("[]{}:,&*!|>'\"%@`#- é")))
        lines[index] = lines[index][:column] + character + lines[index][column:]
    return "\n".join(lines)


class _NoAliasDumper(yaml.SafeDumper):
    """Writes repeated values out in full instead of as aliases."""

    def ignore_aliases(self, data):
        return True
