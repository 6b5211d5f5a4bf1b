"""Complete searches: their results, their files, and invalid settings."""

import json
import time

import numpy as np
import pytest
import yaml

import fbnetv3
from fbnetv3.arch import ARCHS, cost, load_arch
from fbnetv3.config import load_config
from fbnetv3.errors import FieldError, UserError
from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.nars.settings.budgets import budget_name, parse_bounds
from fbnetv3.nars.settings.search_settings import SearchSettings
from fbnetv3.nars.space.search_space import load_space, space_from_dict
from fbnetv3.nars.space.variables import SpaceError
from fbnetv3.nars.trials.trial_store import FINAL, TRIALS_FILE
from tests.nars.toy import QUICK, ROOT, SPACE, accuracy, evaluate, outcome, spent


def test_a_search_finds_good_candidates(plain_search):
    rng = np.random.default_rng(0)
    random_accuracies = [
        accuracy(SPACE.decode(v)) for v in rng.integers(0, SPACE.sizes, (3000, len(SPACE)))
    ]
    assert accuracy(plain_search.best.values) > max(random_accuracies) - 0.5
    assert max(random_accuracies) < accuracy(
        dict.fromkeys(("x0", "x1", "x2", "x3"), 5) | {"kind": "b", "lr": 3}
    )


def test_the_time_left_depends_on_the_slots_of_the_executor(tmp_path):
    """The serial executor ignores `workers` and has one slot: four more trials take six epochs of 10 ms each."""

    def slow(candidate, epochs):
        time.sleep(0.01 * epochs)
        return [accuracy(candidate)] * epochs

    events = []
    settings = {**QUICK, "evaluations": 8, "workers": 8}
    search(SPACE, slow, tmp_path / "out", on_progress=events.append, **settings)
    after_four = next(progress for progress in events if progress.count("completed") == 4)
    assert after_four.seconds_left >= 4 * 6 * 0.01


def test_progress_tells_what_ended_and_what_is_best(tmp_path):
    events = []
    settings = {**QUICK, "evaluations": 9}
    result = search(SPACE, evaluate, tmp_path / "out", on_progress=events.append, **settings)
    assert [progress.ended.number for progress in events if progress.ended] == list(range(9))
    assert events[-1].stage == "done" and events[-1].best.number == result.best.number
    assert (events[-1].epochs_done, events[-1].epochs_planned) == (54, 54)
    assert list(dict.fromkeys(progress.stage for progress in events)) == ["trials", "evolution", "done"]


def test_no_candidate_is_tried_twice(budgeted_search):
    assert len({t.candidate.tobytes() for t in budgeted_search.trials}) == len(budgeted_search.trials) >= 30


def test_another_seed_tries_other_candidates(plain_search, tmp_path):
    other = search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "evaluations": 9}, seed=1)
    assert not {t.candidate.tobytes() for t in other.trials} & {
        t.candidate.tobytes() for t in plain_search.trials[:9]
    }


def test_minimizing_finds_the_lowest(tmp_path):
    def loss(candidate, epochs):
        return [100 - value for value in evaluate(candidate, epochs)]

    result = search(SPACE, loss, tmp_path / "out", **QUICK, direction="minimize")
    values = [trial.value(6) for trial in result.trials if len(trial.curve) == 6]
    assert result.best.value(6) == min(values) < 12
    (recommendation,) = result.recommendations
    assert recommendation.measured == min(values)


def test_a_finished_search_takes_more_evaluations(tmp_path):
    first = search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "evaluations": 10})
    more = search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "evaluations": 16}, resume=True)
    assert [t.curve for t in more.trials[:10]] == [t.curve for t in first.trials]
    assert sum(t.epochs for t in more.trials) == 16 * 6


def test_other_budgets_run_no_trials(tmp_path):
    settings = {**QUICK, "evaluations": 12, "columns": {"spent": spent}}
    search(SPACE, evaluate, tmp_path / "out", **settings)
    before = outcome(tmp_path / "out")[0]
    result = search(SPACE, evaluate, tmp_path / "out", **settings, budgets=[{"spent": 16}], resume=True)
    (recommendation,) = result.recommendations
    assert recommendation.columns["spent"] <= 16
    assert outcome(tmp_path / "out")[0] == before


@pytest.mark.parametrize("limits", [(9,), (6, 9, 12, 15)])
def test_more_evaluations_go_to_the_budgets_of_a_resumed_search(limits, tmp_path):
    """The last trials of the search before were for other budgets, more or fewer of them."""
    settings = {**QUICK, "evaluations": 14, "columns": {"spent": spent}}
    search(SPACE, evaluate, tmp_path / "out", **settings, budgets=[{"spent": 12}, {"spent": 18}])
    budgets = [{"spent": limit} for limit in limits]
    settings["evaluations"] += len(limits) + 1
    result = search(SPACE, evaluate, tmp_path / "out", **settings, budgets=budgets, resume=True)
    final = {trial.budget for trial in result.trials if trial.phase == FINAL}
    assert final >= {f"spent_{limit}" for limit in limits}


def test_a_space_that_runs_out_ends_the_search(tmp_path):
    small = space_from_dict({"name": "small", "variables": {"a": {"range": [0, 11]}}})
    result = search(small, lambda c, epochs: [c["a"]] * epochs, tmp_path / "out", **QUICK)
    assert len(result.trials) == 12
    assert result.best.candidate.tolist() == [11]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"constraints": {"nothing": 3}}, "unknown column nothing"),
        (
            {"constraints": {"spent": [9, 3]}},
            "constraint on spent: the lower bound 9 must be at most the upper",
        ),
        ({"constraints": {"spent": []}}, "constraints.spent: .* must be"),
        (
            {"constraints": {"spent": -1}},
            "no candidate of toy was found that meets .*; the nearest one has spent 0",
        ),
        (
            {"budgets": [{"spent": -1}]},
            "no candidate of toy was found that meets .*; the nearest one has spent 0",
        ),
        ({"budgets": {"spent": 3}}, "budgets: {.spent.: 3} must be a list"),
        (
            {"budgets": [{"spent": 3}, {"spent": 3.0}]},
            r"budgets\[1\]: has the same name as another budget, spent_3",
        ),
        (
            {"reference_networks": {"B": {"macs": "many", "accuracy": 3}}},
            "reference_networks.B.macs: 'many' must be a number",
        ),
        ({"reference_networks": {"B": {"macs": 3e8}}}, "reference_networks.B.accuracy: is missing"),
        (
            {"scaled_networks": {"../big": {"from": "best", "macs": 1e6}}},
            "scaled_networks: '../big' cannot name a file",
        ),
        (
            {"scaled_networks": {"big": {"from": "a", "macs": 1e6, "recpie": {}}}},
            "scaled_networks.big.recpie: unknown key: did you mean",
        ),
        (
            {"scaled_networks": {"big": {"from": "a", "macs": 1e6, "recipe": None}}},
            "scaled_networks.big.recipe: None must be a mapping",
        ),
        (
            {"scaled_networks": {"big": {"from": "a", "macs": 1e6, "depth": "x"}}},
            "scaled_networks.big.depth: 'x' must be a number",
        ),
        ({"columns": {"spent": 3}}, "columns.spent '3' must have the form package.module:function"),
        ({"pretraining_labels": 3}, "pretraining_labels: 3 must be a name or a list"),
        ({"evaluationz": 3}, "evaluationz: unknown key: did you mean evaluations"),
        ({"epochs": 0}, "epochs: 0 must be at least 1"),
        ({"epochs": True}, "epochs: True must be an integer"),
        ({"evaluations": 0}, "evaluations: 0 must be at least 1"),
        ({"window": 0}, "window: 0 must be at least 1"),
        ({"final_share": 1.5}, r"final_share: 1.5 must be in \[0, 1\]"),
        ({"early_stopping": 1}, "early_stopping: 1 must be true or false"),
        ({"max_trials": 1}, "max_trials: 1 must be at least 2"),
        ({"max_seconds": 0}, "max_seconds: 0 must be at least 0.001"),
        ({"direction": "up"}, "direction: 'up' must be one of maximize, minimize"),
        ({"first_candidates": [{"x0": 1}]}, r"first_candidates\[0\]"),
        ({"pretraining_labels": "papper"}, "pretraining_labels: unknown choice 'papper'"),
        ({"mode": "fast"}, "mode: 'fast' must be one of joint, architecture, recipe"),
        ({"executor": "cloud"}, "executor: 'cloud' must be one of local, ray, serial"),
        ({"predictor": {"wide": 3}}, "predictor.wide: unknown key"),
        ({"predictor": {"width": 0.5}}, "predictor.width: 0.5 must be an integer"),
        ({"early_stopping_correlation": 2}, r"early_stopping_correlation: 2 must be in \[-1, 1\]"),
        ({"time_limit": 3}, "time_limit: the serial executor"),
        (
            {"scaled_networks": {"big": {"from": "nowhere", "macs": 1e6}}},
            "scaled_networks.big.from: 'nowhere' must be one of best",
        ),
        ({"columns": {"spent": "no.such:thing"}}, "columns.spent 'no.such' cannot be imported"),
    ],
)
def test_invalid_settings(settings, error, tmp_path):
    columns = {"columns": {"spent": spent}}
    with pytest.raises(UserError, match=error):
        search(SPACE, evaluate, tmp_path / "out", **{**QUICK, **columns, **settings})
    assert not (tmp_path / "out" / TRIALS_FILE).exists() or not outcome(tmp_path / "out")[0]


def test_invalid_values_of_a_column(tmp_path):
    for column, error in (
        (lambda c: 3, "a number for each candidate, not int64"),
        (lambda c: c[:, 0] * np.nan, "not NaN"),
    ):
        with pytest.raises(UserError, match=error):
            search(
                SPACE, evaluate, tmp_path / "out", **QUICK, columns={"odd": column}, constraints={"odd": 3}
            )


NETWORKS = yaml.safe_load((ROOT / "configs/nars/spaces/cifar10_small.yaml").read_text())


def test_a_space_that_does_not_decode_is_refused_at_once(tmp_path):
    broken = {**NETWORKS, "recipe": {**NETWORKS["recipe"], "optimizer": "adam"}}
    with pytest.raises(UserError, match="optimizer: unknown optimizer 'adam'"):
        search(space_from_dict(broken), lambda c, epochs: [1.0] * epochs, tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def by_size(candidate, epochs):
    recipe = candidate.recipe.lr if candidate.recipe else 0
    arch = np.log(cost(candidate.arch, num_classes=10).macs) if candidate.arch else 0
    return [arch + recipe] * epochs


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    settings = {**QUICK, "evaluations": 20, "constraints": {"macs": [0.8e6, 3e6]}, "num_classes": 10}
    return search(
        space_from_dict(NETWORKS),
        by_size,
        tmp_path_factory.mktemp("networks") / "out",
        **settings,
        budgets=[{"macs": 1e6}, {"macs": "2e6"}],
        scaled_networks={
            "family_g": {
                "from": "macs_2M",
                "macs": 4e6,
                "tolerance": 0.1,
                "recipe": {"drop_path_rate": 0.2},
            },
            "family_z": {"from": "macs_1M", "macs": 1e12},
        },
        training_config={"_BASE_": [str(ROOT / "configs/digits/fbnetv3_digits.yaml")], "SOLVER.EPOCHS": 3},
    )


def test_recommendations_become_files_that_train_as_they_are(networks):
    for recommendation, limit in zip(networks.recommendations, (1e6, 2e6), strict=True):
        arch = load_arch(recommendation.files.arch)
        assert cost(arch, num_classes=10).macs == recommendation.columns["macs"] <= limit
        assert f"seed 0, {len(networks.trials)} trials: measured" in arch.source
        cfg = load_config(recommendation.files.config)
        assert load_arch(cfg.MODEL.ARCH) == arch
        assert cfg.SOLVER.EPOCHS == 3
        assert cfg.DATA.NAME == "digits"
        recipe = recommendation.candidate.recipe
        assert (recipe.optimizer, recipe.training_lr) == (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.LR)
        assert (recipe.mixup, recipe.ema) == (cfg.INPUT.MIXUP, cfg.EMA.ENABLED)
        assert f"output/{arch.name}" == cfg.OUTPUT_DIR


def test_recommended_architectures_are_registered(networks):
    names = [recommendation.files.name for recommendation in networks.recommendations]
    if names[0] not in ARCHS:
        fbnetv3.register_arch_folder(networks.folder / "recommendations" / "archs")
    assert set(names) <= set(ARCHS.names())
    assert fbnetv3.create_model(names[0], num_classes=10).num_classes == 10


def test_recommendations_scale_to_a_family(networks):
    files = networks.scaled_networks["family_g"]
    macs = cost(load_arch(files.arch), num_classes=10).macs
    assert macs == pytest.approx(4e6, rel=0.1)
    assert load_config(files.config).MODEL.DROP_PATH_RATE == 0.2
    assert json.loads(files.provenance.read_text())["columns"]["macs"] == macs
    # A target that cannot be met is skipped with a warning
    assert set(networks.scaled_networks) == {"family_g"}


def test_architectures_alone_and_recipes_alone(tmp_path):
    space = space_from_dict(NETWORKS)
    settings = {**QUICK, "evaluations": 14, "num_classes": 10}
    constraints = {"macs": 2e6}
    result = search(
        space, by_size, tmp_path / "a", **settings, mode="architecture", constraints=constraints
    )
    (recommendation,) = result.recommendations
    assert recommendation.candidate.recipe is None
    assert "RECIPE" not in recommendation.files.config.read_text()

    result = search(space, by_size, tmp_path / "r", **settings, mode="recipe")
    (recommendation,) = result.recommendations
    assert recommendation.candidate.arch is None
    assert recommendation.files.arch is None
    assert recommendation.candidate.recipe.training_lr == load_config(recommendation.files.config).SOLVER.LR
    assert recommendation.candidate["lr"] > 0.03  # by_size likes it high
    assert result.pretraining is None
    with pytest.raises(UserError, match="constraints.macs: .* has no architectures; remove the bound"):
        search(space, by_size, tmp_path / "r2", **settings, mode="recipe", constraints=constraints)
    with pytest.raises(SpaceError, match="has no architecture variables"):
        search(space.subspace("recipe"), by_size, tmp_path / "n", **settings, mode="architecture")


class FailsEveryTrial:
    """An evaluator that reports before the first trial that all would fail."""

    def check(self, candidate):
        raise UserError(f"no data for {sorted(candidate)}")

    def __call__(self, candidate, epochs):
        raise AssertionError("no trial should run")


def test_an_evaluator_may_refuse_before_the_first_trial(tmp_path):
    with pytest.raises(UserError, match="no data for .*'kind', 'lr'"):
        search(SPACE, FailsEveryTrial(), tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_rounds_of_the_paper():
    space = load_space(ROOT / "configs/nars/spaces/fbnetv3.yaml")
    settings = SearchSettings()
    assert (
        settings.pool_size,
        settings.round_size,
        settings.epochs,
        settings.early_stopping_correlation,
    ) == (
        20_000,
        48,
        150,
        0.92,
    )
    assert settings.num_rounds(space) == 5
    assert settings.num_rounds(space.subspace("recipe")) == 4


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        ({}, "best"),
        ({"macs": 450e6}, "macs_450M"),
        ({"macs": [450e6, None]}, "macs_from_450M"),
        ({"macs": [4e8, 8e8], "params": 5e6}, "macs_400M_to_800M_params_5M"),
    ],
)
def test_names_of_budgets(budget, name):
    assert budget_name(parse_bounds(budget, "budgets")) == name


def test_settings_and_keywords_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match="pass either settings or keywords, not both: seed"):
        search(SPACE, evaluate, tmp_path / "out", SearchSettings(), seed=3)


def test_settings_are_checked_when_built():
    with pytest.raises(FieldError, match="round_size: 1 must be at least 2"):
        SearchSettings(round_size=1)


def test_imports_register_what_settings_name(tmp_path, monkeypatch):
    (tmp_path / "extension_of_searches.py").write_text(
        "from fbnetv3.nars.execution.executors import EXECUTORS\n"
        "from fbnetv3.nars.execution.local_executor import SerialExecutor\n"
        "from fbnetv3.nars.evaluators.evaluator_registry import EVALUATORS\n\n"
        "EXECUTORS.register(SerialExecutor, name='one_by_one')\n\n\n"
        "@EVALUATORS.register(name='first_variable')\n"
        "def evaluate(candidate, epochs):\n"
        "    return [candidate['x0']] * epochs\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    settings = {**QUICK, "evaluations": 12, "imports": ["extension_of_searches"], "executor": "one_by_one"}
    result = search(SPACE, "first_variable", tmp_path / "out", **settings)
    assert result.best.value(6) == 7
