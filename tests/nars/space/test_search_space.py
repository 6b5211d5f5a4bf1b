"""Search spaces: Table 2's size, encoding and decoding of candidates, invalid files."""

import numpy as np
import pytest
import yaml

from fbnetv3.arch import compute_cost, get_arch
from fbnetv3.nars.space.search_space import load_space, space_from_dict
from fbnetv3.nars.space.variables import SpaceError
from tests.nars.space.spaces import FBNETV3, SMALL


@pytest.fixture(scope="module")
def space():
    return load_space(FBNETV3)


def small(**changes):
    return space_from_dict({**SMALL, **changes})


def test_table_2_has_the_papers_size(space):
    by_hand = space.num_candidates("architecture") // len(range(224, 273, 8)) // 2
    assert by_hand == 175_878_910_771_200_000
    assert space.num_candidates("recipe") == 18_905_040
    assert space.num_candidates() == 175_878_910_771_200_000 * 7 * 2 * 18_905_040


def test_the_published_b_is_a_candidate_except_for_kernels_and_padding(space):
    """Channels and depths are B's. Table 2 has one kernel per row, while B's first blocks have their own."""
    values = {v.name: v.values[0] for v in space.variables}
    values |= {"resolution": 248, "stem_channels": 16, "s1_channels": 16, "s1_repeat": 2}
    values |= {"s2_kernel": 5, "s2_expansion": 4, "s2_expansion_rest": 2, "s2_channels": 24, "s2_repeat": 4}
    values |= {"s3_kernel": 5, "s3_expansion": 5, "s3_expansion_rest": 3, "s3_channels": 40, "s3_repeat": 5}
    values |= {"s4_expansion": 5, "s4_expansion_rest": 3, "s4a_channels": 72, "s4a_repeat": 5}
    values |= {
        "s4b_channels": 120,
        "s4b_repeat": 6,
        "s5a_channels": 184,
        "s5a_repeat": 6,
        "s5b_channels": 224,
    }
    arch = space.build_arch(space.encode(values), "like_b")
    published = get_arch("fbnetv3_b")
    channels, published_channels = ([b.spec.out_channels for b in a.blocks()] for a in (arch, published))
    assert channels == published_channels
    assert arch.resolution == published.resolution == 248


def test_every_candidate_forms_a_network_and_a_recipe_of_table_2(space):
    rng = np.random.default_rng(0)
    for candidate in [np.zeros(37, int), space.sizes - 1, *rng.integers(0, space.sizes, (30, 37))]:
        arch = space.build_arch(candidate, "x")
        assert compute_cost(arch).macs > 0 and arch.resize == round(arch.resolution * 256 / 224)
        space.build_recipe(candidate).check_table_2_ranges()


def test_rows_that_share_a_variable_share_its_value(space):
    for index in (0, 3):
        candidate = np.zeros(37, int)
        candidate[[v.name for v in space.variables].index("s4_expansion")] = index
        rows = space.build_arch(candidate, "x").stages[4].rows
        assert [row.expansion for row in rows] == [4 + index, 2, 4 + index, 2]


def test_encode_inverts_decode(space):
    rng = np.random.default_rng(1)
    for candidate in rng.integers(0, space.sizes, (20, 37)):
        assert (space.encode(space.decode(candidate)) == candidate).all()
    assert space.decode(np.zeros(37, int))["lr"] == 0.02


def test_features():
    space = small()
    features = space.encode_features(np.array([[0, 0, 0, 0], [1, 1, 0, 2]]))
    assert features.dtype == np.float32
    assert features.tolist() == [[0, 1, 0, 0], [0.5, 0, 1, 1]]
    assert space.encode_features(np.array([[1, 1, 0, 2]]), "recipe").tolist() == [[1]]
    assert space.encode_features(np.zeros((0, 4), int), "architecture").shape == (0, 3)


@pytest.mark.parametrize("seed", range(20))
def test_distinct_candidates_have_distinct_features(space, seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, space.sizes, (1, 37))
    b = a.copy()
    column = rng.integers(37)
    b[0, column] = (b[0, column] + 1) % space.sizes[column]
    assert not np.array_equal(space.encode_features(a), space.encode_features(b))


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (np.zeros((2, 3), int), "integers"),
        (np.zeros((2, 4)), r"integers of shape \(N, 4\), not float64"),
        (np.array([[0, 2, 0, 0]]), r"kernel: index 2 must be in \[0, 1\]"),
        (np.array([[-1, 0, 0, 0]]), "width: index -1 must be in"),
    ],
)
def test_invalid_candidates(candidates, message):
    with pytest.raises(SpaceError, match=message):
        small().encode_features(candidates)


def test_values_outside_the_space():
    space, values = small(), {"width": 8, "kernel": 3, "fixed": "only", "lr": 0.1}
    assert space.encode({**values, "lr": 0.1 + 1e-12}).tolist() == [0, 0, 0, 0]
    for change, message in (
        ({"width": 9}, "width: 9 must be one of 8, 12, 16"),
        ({"depth": 1}, "depth: unknown key"),
    ):
        with pytest.raises(SpaceError, match=message):
            space.encode({**values, **change})
    with pytest.raises(SpaceError, match="lr: is missing"):
        space.encode({"width": 8, "kernel": 3, "fixed": "only"})


def test_a_subspace_has_the_variables_and_template_of_its_part(space):
    recipes = space.subspace("recipe")
    assert recipes.num_candidates() == space.num_candidates("recipe")
    assert recipes.architecture is None and recipes.recipe == space.recipe
    with pytest.raises(SpaceError, match="fbnetv3 has no architecture variables"):
        recipes.subspace("architecture")


ROW = {"block": "conv", "kernel": "$kernel", "channels": "$width"}


def architecture(**row):
    return {"architecture": {"resolution": 32, "stages": [{"rows": [{**ROW, **row}]}]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variables": {}}, "variables: must be a mapping with at least one variable"),
        ({"variables": {"x": [1]}}, r"variables\.x: \[1\] must be a mapping"),
        ({"variables": {"x": {}}}, r"variables\.x: needs either a range or choices"),
        (
            {"variables": {"x": {"range": [1, 2], "choices": [1]}}},
            r"variables\.x: needs either a range or choices",
        ),
        ({"variables": {"x": {"rnage": [1, 2]}}}, r"variables\.x\.rnage: unknown key: did you mean range"),
        ({"variables": {"x": {"range": [2, 1]}}}, r"variables\.x\.range: \[2, 1\] must have low <= high"),
        (
            {"variables": {"x": {"range": [1, 2, 0]}}},
            r"variables\.x\.range: .* must have low <= high, step > 0",
        ),
        (
            {"variables": {"x": {"range": [1, 4, 2]}}},
            r"variables\.x\.range: .* 4 is not reached in steps of 2",
        ),
        ({"variables": {"x": {"range": [1, 10**9]}}}, r"variables\.x\.range: .* at most 100,000 values"),
        (
            {"variables": {"x": {"range": [1, float("nan")]}}},
            r"variables\.x\.range: .* must be \[low, high\]",
        ),
        ({"variables": {"x": {"range": [1, 2], "scale": 0}}}, r"variables\.x\.scale"),
        ({"variables": {"x": {"choices": [1], "scale": 2}}}, r"variables\.x\.scale: unknown key"),
        ({"variables": {"x": {"choices": []}}}, r"variables\.x\.choices: \[\] must be a list of"),
        (
            {"variables": {"x": {"choices": [{"a": 1}]}}},
            r"variables\.x\.choices: .* must be a list of strings, numbers",
        ),
        (
            {"variables": {"x": {"choices": [3, 3.0]}}},
            r"variables\.x\.choices: .* contains duplicate values",
        ),
        (
            {"variables": {"x": {"choices": [1], "part": "other"}}},
            r"variables\.x\.part: 'other' must be one of",
        ),
        ({"name": 3}, "name: 3 must be a string"),
        ({"architecture": []}, r"architecture: \[\] must be a mapping"),
        ({"architecture": {"resolution": 32, "stages": 3}}, r"architecture\.stages: 3 must be a list"),
        ({"recipe": {"lr": "$rate"}}, r"recipe: \$rate is not a variable of the recipe: available: lr"),
        ({"recipe": {"lr": "$width"}}, r"recipe: \$width is not a variable of the recipe"),
        (architecture(channels="$lr"), r"architecture: \$lr is not a variable of the architecture"),
        (
            architecture(chnnels=8),
            r"architecture\.stages\[0\]\.rows\[0\]\.chnnels: unknown key: did you mean channels",
        ),
        (architecture(repeat=0), r"architecture\.stages\[0\]\.rows\[0\]\.repeat: 0 must be in"),
        (architecture(expansion=[1, 2, 3]), r"rows\[0\]\.expansion: \[1, 2, 3\] must be a value or a pair"),
        (architecture(kernel=[3, 5]), r"rows\[0\]\.kernel: \[3, 5\] must be a single value"),
        (architecture(block="covn"), r"rows\[0\]\.block: unknown block 'covn': did you mean conv"),
        (architecture(act="hswsh"), r"rows\[0\]\.act: unknown activation 'hswsh': did you mean hswish"),
        (
            {"variables": {**SMALL["variables"], "act": {"choices": ["relu", "rleu"]}}}
            | architecture(act="$act"),
            r"rows\[0\]\.act: unknown activation 'rleu': did you mean relu",
        ),
    ],
)
def test_invalid_spaces(changes, message):
    with pytest.raises(SpaceError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"channels": "$x"}, r"rows\[0\]\.channels: \$x is continuous: give its range integers, or a step"),
        ({"kernel": "$x"}, r"rows\[0\]\.kernel: \$x is continuous"),
        ({"act": "$x"}, r"rows\[0\]\.act: \$x is continuous"),
        ({"channels": "$deep"}, r"architecture: \$deep has conditions, but channels cannot be left out"),
        ({"expansion": ["$deep", 2]}, r"architecture: \$deep has conditions, so it cannot be in a list"),
        ({"expansion": "$pair"}, r"rows\[0\]\.expansion: \(1, 2\) must be a single value"),
    ],
)
def test_variables_that_do_not_fit_their_fields(row, message):
    variables = {
        **SMALL["variables"],
        "x": {"range": [1.0, 4.0]},
        "deep": {"range": [8, 16, 8], "when": {"kernel": 3}},
        "pair": {"choices": [[1, 2], [3, 4]]},
    }
    with pytest.raises(SpaceError, match=message):
        small(variables=variables, **architecture(**row))
    # In a recipe, all but required fields may have conditions
    recipe = {"optimizer": "sgd", "lr": "$rate"}
    variables["rate"] = {"range": [0.0, 1.0], "part": "recipe", "when": {"kernel": 3}}
    with pytest.raises(SpaceError, match=r"recipe: \$rate has conditions, but lr cannot be left out"):
        small(variables=variables, recipe=recipe)


def test_fields_whose_variables_are_inactive_have_their_defaults():
    variables = {
        "gate": {"choices": ["none", "hsigmoid"]},
        "act": {"choices": ["relu", "hswish"], "when": {"gate": "hsigmoid"}},
        "mix": {"choices": [False, True], "part": "recipe"},
        "mixup": {"range": [0.1, 0.4], "part": "recipe", "when": {"mix": True}},
    }
    row = {"block": "mbconv", "kernel": 3, "expansion": 2, "channels": 8, "se": "$gate", "act": "$act"}
    space = space_from_dict(
        {
            "name": "s",
            "variables": variables,
            "architecture": {"resolution": 32, "stages": [{"rows": [row]}]},
            "recipe": {"optimizer": "sgd", "lr": 0.1, "mixup": "$mixup"},
        }
    )
    for values, act, mixup in (
        ({"gate": "none", "mix": False}, "hswish", 0),
        ({"gate": "hsigmoid", "act": "relu", "mix": True, "mixup": 0.25}, "relu", 0.25),
    ):
        candidate = space.encode(values)
        assert space.build_arch(candidate, "x").stages[0].rows[0].act == act
        assert space.build_recipe(candidate).mixup == mixup


def test_a_space_as_optuna_would_draw_it():
    """Continuous values, a log scale, and categories, in a plain dictionary."""
    space = space_from_dict(
        {
            "name": "svm",
            "variables": {
                "C": {"range": [1e-10, 1e10], "log": True},
                "kernel": {"choices": ("linear", "rbf", None)},
                "gamma": {"range": [1e-3, 1e3], "log": True, "when": {"kernel": "rbf"}},
                "tolerance": {"range": [0.0, 0.1]},
            },
        }
    )
    values = {"C": 1.0, "kernel": "rbf", "gamma": 1e-3, "tolerance": 0.05}
    candidate = space.encode(values)
    assert space.decode(candidate) == values
    assert space.positions(candidate[None])[0].tolist() == [0.5, 0.5, 0, 0.5]
    assert space.encode_features(candidate[None]).tolist() == [[0.5, 0, 1, 0, 0, 0.5]]
    assert space.num_candidates() == 1_000_001**2 * (2 + 1_000_001)
    uniform = space.decode(space.from_unit(np.array([[0.5, 0.99, 0.3, 0.25]]))[0])
    assert uniform == {"C": 1.0, "kernel": None, "tolerance": pytest.approx(0.025, abs=1e-6)}


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "variables": {"x": {"range": [2, 1]}}}))
    with pytest.raises(SpaceError, match=r"space\.yaml: variables\.x\.range"):
        load_space(path)
    with pytest.raises(SpaceError, match=r"nowhere\.yaml: cannot be read"):
        load_space(tmp_path / "nowhere.yaml")


def test_a_space_without_templates_builds_nothing():
    space = small()
    with pytest.raises(SpaceError, match=f"architecture: {space.name} has no architecture template"):
        space.build_arch(np.zeros(4, int), "x")
    with pytest.raises(SpaceError, match=f"recipe: {space.name} has no recipe template"):
        space.build_recipe(np.zeros(4, int))
