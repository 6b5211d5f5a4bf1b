"""Search spaces: Table 2 to the digit, candidates there and back, files that make no sense."""

import numpy as np
import pytest
import yaml

from fbnetv3.arch import configs_folder, cost_of, get_arch
from fbnetv3.nars.space.search_space import SpaceError, load_space, space_from_dict

FBNETV3 = configs_folder() / "nars" / "spaces" / "fbnetv3.yaml"


@pytest.fixture(scope="module")
def space():
    return load_space(FBNETV3)


SMALL = {
    "name": "small",
    "variables": {
        "width": {"range": [8, 16, 4]},
        "kernel": {"choices": [3, 5]},
        "fixed": {"choices": ["only"]},
        "lr": {"range": [1, 3], "scale": 0.1, "part": "recipe"},
    },
}


def small(**changes):
    return space_from_dict({**SMALL, **changes})


def test_table_2_has_the_papers_size(space):
    by_hand = space.size("architecture") // len(range(224, 273, 8)) // 2
    assert by_hand == 175_878_910_771_200_000
    assert space.size("recipe") == 18_905_040
    assert space.size() == 175_878_910_771_200_000 * 7 * 2 * 18_905_040


def test_the_published_b_is_a_candidate_but_for_its_kernels_and_padding(space):
    """Its channels and depths; one kernel a row is what Table 2 has, where B's first blocks have one of their own."""
    values = {v.name: v.values[0] for v in space.variables}
    values |= {"resolution": 248, "stem_channels": 16, "s1_channels": 16, "s1_repeat": 2}
    values |= {"s2_kernel": 5, "s2_expansion": 4, "s2_expansion_rest": 2, "s2_channels": 24, "s2_repeat": 4}
    values |= {"s3_kernel": 5, "s3_expansion": 5, "s3_expansion_rest": 3, "s3_channels": 40, "s3_repeat": 5}
    values |= {"s4_expansion": 5, "s4_expansion_rest": 3, "s4a_channels": 72, "s4a_repeat": 5}
    values |= {"s4b_channels": 120, "s4b_repeat": 6, "s5a_channels": 184, "s5a_repeat": 6, "s5b_channels": 224}
    arch = space.arch(space.candidate(values), "like_b")
    published = get_arch("fbnetv3_b")
    shape = [[b.spec.out_channels for b in defn.blocks()] for defn in (arch, published)]
    assert shape[0] == shape[1]
    assert arch.resolution == published.resolution == 248


def test_every_candidate_makes_a_network_and_a_recipe_of_table_2(space):
    rng = np.random.default_rng(0)
    for candidate in [np.zeros(37, int), space.sizes - 1, *rng.integers(0, space.sizes, (30, 37))]:
        arch = space.arch(candidate, "x")
        assert cost_of(arch).macs > 0 and arch.resize == round(arch.resolution * 256 / 224)
        space.make_recipe(candidate).check_table_2()


def test_what_is_tied_is_one_variable(space):
    for index in (0, 3):
        candidate = np.zeros(37, int)
        candidate[[v.name for v in space.variables].index("s4_expansion")] = index
        rows = space.arch(candidate, "x").stages[4].rows
        assert [row.expansion for row in rows] == [4 + index, 2, 4 + index, 2]


def test_there_and_back(space):
    rng = np.random.default_rng(1)
    for candidate in rng.integers(0, space.sizes, (20, 37)):
        assert (space.candidate(space.decode(candidate)) == candidate).all()
    assert space.decode(np.zeros(37, int))["lr"] == 0.02


def test_encoding():
    space = small()
    found = space.encode(np.array([[0, 0, 0, 0], [1, 1, 0, 2]]))
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 1, 0, 0], [0.5, 0, 1, 1]]
    assert space.encode(np.array([[1, 1, 0, 2]]), "recipe").tolist() == [[1]]
    assert space.encode(np.zeros((0, 4), int), "architecture").shape == (0, 3)


@pytest.mark.parametrize("seed", range(20))
def test_distinct_candidates_have_distinct_codes(space, seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, space.sizes, (1, 37))
    b = a.copy()
    column = rng.integers(37)
    b[0, column] = (b[0, column] + 1) % space.sizes[column]
    assert not np.array_equal(space.encode(a), space.encode(b))


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (np.zeros((2, 3), int), "integers"),
        (np.zeros((2, 4)), "integers, not float64"),
        (np.array([[0, 2, 0, 0]]), "kernel: 2 is none of its 2 values"),
        (np.array([[-1, 0, 0, 0]]), "width: -1 is none"),
    ],
)
def test_what_is_no_candidate(candidates, message):
    with pytest.raises(SpaceError, match=message):
        small().encode(candidates)


def test_values_that_a_space_does_not_have():
    space, values = small(), {"width": 8, "kernel": 3, "fixed": "only", "lr": 0.1}
    assert space.candidate({**values, "lr": 0.1 + 1e-12}).tolist() == [0, 0, 0, 0]
    for change, message in (({"width": 9}, "width: 9 is none"), ({"depth": 1}, "depth: unknown key")):
        with pytest.raises(SpaceError, match=message):
            space.candidate({**values, **change})
    with pytest.raises(SpaceError, match="lr: missing"):
        space.candidate({"width": 8, "kernel": 3, "fixed": "only"})


def test_a_space_without_networks_says_so():
    for call in (lambda s: s.arch(np.zeros(4, int), "x"), lambda s: s.make_recipe(np.zeros(4, int))):
        with pytest.raises(SpaceError, match="the space has no template"):
            call(small())


ROW = {"block": "conv", "kernel": "$kernel", "channels": "$width"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variables": {}}, "variables: is not a mapping"),
        ({"variables": {"x": [1]}}, r"variables\.x: is not a mapping"),
        ({"variables": {"x": {}}}, r"variables\.x: needs a range or choices"),
        (
            {"variables": {"x": {"range": [1, 2], "choices": [1]}}},
            r"variables\.x: needs a range or choices, and not both",
        ),
        ({"variables": {"x": {"rnage": [1, 2]}}}, r"variables\.x\.rnage: unknown key: did you mean range"),
        ({"variables": {"x": {"range": [2, 1]}}}, r"variables\.x\.range: \[2, 1\] has no values"),
        ({"variables": {"x": {"range": [1, 2, 0]}}}, r"variables\.x\.range: .* has no values"),
        ({"variables": {"x": {"range": [1, 4, 2]}}}, r"variables\.x\.range: .* 4 is not reached in steps of 2"),
        ({"variables": {"x": {"range": [1, 1e9]}}}, r"variables\.x\.range: .* has more than"),
        ({"variables": {"x": {"range": [1, float("nan")]}}}, r"variables\.x\.range: .* is not \[lowest, highest\]"),
        ({"variables": {"x": {"range": [1, 2], "scale": 0}}}, r"variables\.x\.scale"),
        ({"variables": {"x": {"choices": []}}}, r"variables\.x\.choices: \[\] is not a list of values"),
        ({"variables": {"x": {"choices": [[1]]}}}, r"variables\.x\.choices: .* holds what is neither"),
        ({"variables": {"x": {"choices": [3, 3.0]}}}, r"variables\.x\.choices: .* has a value twice"),
        ({"variables": {"x": {"choices": [1], "part": "other"}}}, r"variables\.x\.part: 'other' is neither"),
        ({"name": 3}, "name: 3 is not text"),
        ({"architecture": []}, "architecture: is not a mapping with stages"),
        ({"recipe": {"lr": "$rate"}}, r"recipe\.lr: \$rate is not a variable"),
        ({"recipe": {"lr": "$width"}}, r"recipe\.lr: \$width belongs to the architecture"),
        (
            {"architecture": {"resolution": 32, "stages": [{"rows": [{**ROW, "channels": "$lr"}]}]}},
            r"architecture\.stages\[0\]\.rows\[0\]\.channels: \$lr belongs to the recipe",
        ),
    ],
)
def test_a_space_that_makes_no_sense(changes, message):
    with pytest.raises(SpaceError, match=message):
        small(**changes)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "variables": {"x": {"range": [2, 1]}}}))
    with pytest.raises(SpaceError, match=r"space\.yaml: variables\.x\.range"):
        load_space(path)
    with pytest.raises(SpaceError, match=r"nowhere\.yaml: cannot be read"):
        load_space(tmp_path / "nowhere.yaml")
