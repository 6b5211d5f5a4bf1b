"""Almost valid YAML: valid data with one to three things wrong, as data or as text."""

import copy
import datetime

import yaml
from hypothesis import strategies as st

NASTY = st.one_of(
    st.sampled_from(
        [
            *(None, True, False, "", " ", "$", "$nothing", "x" * 3000, "\u202e"),
            *("１", "naïve", "a\nb", "../x", "~"),
            *(0, -1, 1, 2, 3, 7, 2**31, 2**63, -(2**63), 10**30, 10**400),
            *(0.0, -0.0, 0.5, 1.0, 1e-320, 1e-9, 1e9, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
            *([], {}, [[]], [None], {"a": 1}, {None: None}, [1, 2], ["a", "a"], [float("nan")] * 2, "1e-3", "1e999"),
            datetime.date(2020, 1, 1),
            b"\x00\xff",
        ]
    ),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.one_of(st.integers(-5, 300), st.floats(-2, 2)), max_size=4),
).map(copy.deepcopy)  # what is drawn may be changed


WAYS = ["nudge"] * 4 + ["replace"] * 2 + ["remove", "rename", "add", "double", "wrap", "other"]


def nudged(value):
    """Values that differ a little, and now and then a lot, from one that makes sense."""
    if isinstance(value, bool):
        return st.just(not value)
    if isinstance(value, int):
        return st.sampled_from([value + 1, value - 1, value + 2, 2 * value, value // 2, 0, -value, value * 1000])
    if isinstance(value, float):
        return st.sampled_from([value * 2, value / 2, value * 0.999, value + 1, -value, 0.0, value * 1e6, value * 1e-6])
    if isinstance(value, str):
        words = ["sgd", "relu", "none", "conv", "mbconv", "cosine", "$kernel", "$lr", value.upper(), f"{value}2"]
        return st.sampled_from(words)
    return st.just(value)


def _places(data, path=()):
    """Paths to every value."""
    yield path
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield from _places(value, (*path, key))


@st.composite
def mutated_data(draw, valid):
    """A copy of some data in which a few values are others, missing, doubled, renamed or added."""
    data = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        paths = [path for path in _places(data) if path]
        if not paths:
            return draw(NASTY)
        *way, last = draw(st.sampled_from(paths))
        parent = data
        for key in way:
            parent = parent[key]
        what = draw(st.sampled_from(WAYS))
        if what == "nudge":
            parent[last] = draw(nudged(parent[last]))
        elif what == "replace":
            parent[last] = draw(NASTY)
        elif what == "remove":
            del parent[last]
        elif what == "wrap":
            parent[last] = [parent[last]]
        elif what == "other":  # a value of another place
            value = data
            for key in draw(st.sampled_from(paths)):
                if not isinstance(value, (dict, list)) or (isinstance(value, dict) and key not in value):
                    break
                value = value[key] if isinstance(value, dict) or key < len(value) else value
            parent[last] = copy.deepcopy(value)
        elif isinstance(parent, list):
            parent.insert(last, copy.deepcopy(parent[last]) if what == "double" else draw(NASTY))
        elif what == "rename":
            parent[draw(st.one_of(st.text(max_size=6), st.just(f"{last}s"), st.integers(0, 3)))] = parent.pop(last)
        else:
            parent[draw(st.one_of(st.text(max_size=6), st.sampled_from([None, 1, True, "_BASE_", "<<"])))] = draw(NASTY)
    return data


@st.composite
def mutated_yaml(draw, valid):
    """YAML text of such data, in which now and then a piece of the text is wrong too."""
    data = draw(st.one_of(mutated_data(valid), st.just(valid)))
    flow = draw(st.sampled_from([None, True, False]))
    text = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow)
    if data is not valid and draw(st.integers(0, 3)):
        return text
    lines = text.split("\n")
    place = draw(st.integers(0, max(0, len(lines) - 1)))
    what = draw(st.sampled_from(["double", "cut", "indent", "insert", "character", "tag"]))
    if what == "double":
        lines.insert(place, lines[place])
    elif what == "cut":
        del lines[place:]
    elif what == "indent":
        lines[place] = " " + lines[place]
    elif what == "insert":
        lines.insert(place, draw(st.sampled_from(["- 1", "x: &a [*a]", "<<: {a: 1}", "---", "...", "%YAML 9.9", "\t"])))
    elif what == "tag":
        tag = draw(st.sampled_from(["!!int", "!!bool", "!!float", "!!timestamp", "!!map", "!!set", "!!binary", "!x"]))
        lines[place] = lines[place].replace(": ", f": {tag} ", 1)
    else:
        at = draw(st.integers(0, len(lines[place])))
        sign = draw(st.sampled_from(list("[]{}:,&*!|>'\"%@`#- \x7f\u2028é")))
        lines[place] = lines[place][:at] + sign + lines[place][at:]
    return "\n".join(lines)


class _Dumper(yaml.SafeDumper):
    """Writes a value out each time, as people do."""

    def ignore_aliases(self, data):
        return True
