"""The search as a whole: what it finds, what becomes of it, what it refuses."""

import json
import time

import numpy as np
import pytest
import yaml

import fbnetv3
from fbnetv3.arch import ARCHS, cost, load_arch
from fbnetv3.config import load_config
from fbnetv3.errors import UserError
from fbnetv3.nars.algorithm.nars_search import search
from fbnetv3.nars.algorithm.search_settings import SettingsError, budget_name
from fbnetv3.nars.algorithm.trial_store import FILE
from fbnetv3.nars.space.search_space import SpaceError, load_space, space_from_dict
from tests.nars.toy import QUICK, ROOT, SPACE, accuracy, evaluate, outcome, spent


def test_it_finds_what_is_good(whole):
    rng = np.random.default_rng(0)
    chance = [accuracy(SPACE.decode(v)) for v in rng.integers(0, SPACE.sizes, (30, len(SPACE)))]
    assert accuracy(SPACE.decode(whole.best.candidate)) > max(chance) - 0.5
    last = [t for t in whole.trials if t.round == 2]
    assert np.median([t.accuracy(whole.stop_epoch) for t in last]) > np.median(
        [t.accuracy(whole.stop_epoch) for t in whole.trials if t.round == 0]
    )


def test_later_rounds_end_early(whole):
    assert 1 < whole.stop_epoch < 6
    assert {t.epochs for t in whole.trials if t.round} == {whole.stop_epoch}
    assert {t.epochs for t in whole.trials if t.round == 0} == {6}
    assert all(len(t.curve) == t.epochs for t in whole.trials)


def test_the_time_left_is_that_of_the_slots_there_are(tmp_path):
    """One trial at a time runs here, whatever `workers` says: four of the second round, six epochs of 10 ms each."""

    def slow(candidate, epochs):
        time.sleep(0.01 * epochs)
        return [accuracy(candidate)] * epochs

    said = []
    search(SPACE, slow, tmp_path / "out", watch=said.append, **{**QUICK, "rounds": 2, "batch": 4, "workers": 8})
    first_round = [progress for progress in said if progress.stage == "trials" and progress.round == 0]
    assert first_round[-1].seconds >= 4 * 6 * 0.01


def test_no_candidate_is_tried_twice(whole):
    assert len({t.candidate.tobytes() for t in whole.trials}) == len(whole.trials) == 30


def test_a_recommendation_for_each_budget(whole):
    assert [found.name for found in whole.found] == ["spent_12", "spent_18"]
    for found, most in zip(whole.found, (12, 18), strict=True):
        assert sum(found.candidate[f"x{i}"] for i in range(4)) <= most
        assert found.columns == {"spent": spent(found.candidate.vector[None])[0]}
        facts = json.loads(found.emitted.provenance.read_text())
        assert spent(found.best_trial.candidate[None])[0] <= most
        assert facts["best_trial"]["number"] == found.best_trial.number
        assert facts["values"] == dict(found.candidate)
        assert facts["predicted"] == found.predicted
        assert facts["trials"] == 30
        assert facts["inherited_trials"][0] == found.best_trial.number
    assert whole.found[1].predicted >= whole.found[0].predicted


def test_workers_do_not_change_what_is_found(whole, tmp_path):
    settings = {**QUICK, "columns": {"spent": spent}, "budgets": [{"spent": 12}, {"spent": [None, 18]}]}
    search(SPACE, evaluate, tmp_path / "out", **{**settings, "executor": "local"}, workers=3)
    assert outcome(tmp_path / "out") == outcome(whole.folder)


def test_another_seed_searches_elsewhere(plain, tmp_path):
    other = search(SPACE, evaluate, tmp_path / "out", **QUICK, seed=1)
    assert {t.candidate.tobytes() for t in other.trials if t.round == 0} != {
        t.candidate.tobytes() for t in plain.trials if t.round == 0
    }


def test_a_finished_search_takes_more_rounds_and_other_budgets(tmp_path):
    first = search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "rounds": 2})
    more = search(SPACE, evaluate, tmp_path / "out", **QUICK, resume=True)
    assert outcome(tmp_path / "out")[0][:20] == [
        (t.number, t.round, t.candidate.tolist(), t.epochs, t.status, t.curve) for t in first.trials
    ]
    assert len(more.trials) == 30


def test_other_budgets_train_nothing(whole, tmp_path):
    settings = {**QUICK, "columns": {"spent": spent}}
    search(SPACE, evaluate, tmp_path / "out", **settings)
    before = outcome(tmp_path / "out")[0]
    (found,) = search(SPACE, evaluate, tmp_path / "out", **settings, budgets=[{"spent": 9}], resume=True).found
    assert found.columns["spent"] <= 9
    assert outcome(tmp_path / "out")[0] == before


def test_a_pool_that_runs_out_ends_the_search(tmp_path):
    small = space_from_dict({"name": "small", "variables": {"a": {"range": [0, 11]}}})
    result = search(small, lambda c, epochs: [c["a"]] * epochs, tmp_path / "out", **{**QUICK, "rounds": 9})
    assert len(result.trials) == 12
    assert result.best.candidate.tolist() == [11]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"constraints": {"nothing": 3}}, "nobody computes the column nothing"),
        ({"constraints": {"spent": [9, 3]}}, "nothing lies between 9 and 3"),
        ({"constraints": {"spent": []}}, "constraints.spent: .* is neither"),
        ({"constraints": {"spent": -1}}, "no candidate of toy meets .*; the nearest found has spent 0"),
        ({"budgets": [{"spent": -1}]}, "no candidate of toy meets .*; the nearest found has spent 0"),
        ({"budgets": {"spent": 3}}, "budgets: is not a list"),
        ({"budgets": [{"spent": 3}, {"spent": 3.0}]}, "budgets: two of them are called spent_3"),
        ({"known": {"B": {"macs": "many", "accuracy": 3}}}, "known.B: needs numbers"),
        ({"scaled": {"../big": {"from": "best", "macs": 1e6}}}, "scaled: '../big' is to name files"),
        ({"scaled": {"big": {"from": "a", "macs": 1e6, "recpie": {}}}}, "scaled.big.recpie: unknown key: did you mean"),
        ({"scaled": {"big": {"from": "a", "macs": 1e6, "recipe": None}}}, "scaled.big.recipe: None is not a mapping"),
        ({"scaled": {"big": {"from": "a", "macs": 1e6, "depth": "x"}}}, "scaled.big.depth: 'x' is not a number above"),
        ({"columns": {"spent": 3}}, "columns.spent: 3 is neither a function nor its name"),
        ({"labels": 3}, "labels: 3 is neither a choice nor a list"),
        ({"rouns": 3}, "rouns: unknown key: did you mean rounds"),
        ({"epochs": 0}, "epochs: 0 is not a whole number of at least 1"),
        ({"epochs": True}, "epochs: True is not a whole number"),
        ({"mode": "fast"}, "mode: 'fast' is not one of joint, architecture, recipe"),
        ({"executor": "cloud"}, "executor: 'cloud' is not one of local"),
        ({"predictor": {"wide": 3}}, "predictor.wide: unknown key"),
        ({"predictor": {"width": 0.5}}, "predictor.width: 0.5 is not of the kind"),
        ({"stop_above": 2}, "stop_above: 2 is not a correlation"),
        ({"time_limit": 3}, "time_limit: the serial executor"),
        ({"scaled": {"big": {"from": "nowhere", "macs": 1e6}}}, "scaled.big: from: is none of the budgets"),
        ({"columns": {"spent": "no.such:thing"}}, "no.such cannot be imported"),
    ],
)
def test_settings_that_make_no_sense(settings, error, tmp_path):
    columns = {"columns": {"spent": spent}}
    with pytest.raises(UserError, match=error):
        search(SPACE, evaluate, tmp_path / "out", **{**QUICK, **columns, **settings})
    assert not (tmp_path / "out" / FILE).exists() or not outcome(tmp_path / "out")[0]


def test_a_column_that_answers_nonsense(tmp_path):
    for column, error in ((lambda c: 3, r"not a number each"), (lambda c: c[:, 0] * np.nan, "is not a number for")):
        with pytest.raises(UserError, match=error):
            search(SPACE, evaluate, tmp_path / "out", **QUICK, columns={"odd": column}, constraints={"odd": 3})


NETWORKS = yaml.safe_load((ROOT / "configs/nars/spaces/cifar10_small.yaml").read_text())


def test_a_space_that_does_not_decode_is_refused_at_once(tmp_path):
    broken = {**NETWORKS, "recipe": {**NETWORKS["recipe"], "optimizer": "adam"}}
    with pytest.raises(UserError, match="optimizer: 'adam' is not one of rmsprop, sgd"):
        search(space_from_dict(broken), lambda c, epochs: [1.0] * epochs, tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def by_size(candidate, epochs):
    recipe = candidate.recipe.lr if candidate.recipe else 0
    arch = np.log(cost(candidate.arch, num_classes=10).macs) if candidate.arch else 0
    return [arch + recipe] * epochs


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    settings = {**QUICK, "constraints": {"macs": [0.8e6, 3e6]}, "num_classes": 10}
    return search(
        space_from_dict(NETWORKS),
        by_size,
        tmp_path_factory.mktemp("networks") / "out",
        **settings,
        budgets=[{"macs": 1e6}, {"macs": "2e6"}],
        scaled={
            "family_g": {"from": "macs_2M", "macs": 4e6, "tolerance": 0.1, "recipe": {"drop_path_rate": 0.2}},
            "family_z": {"from": "macs_1M", "macs": 1e12},
        },
        training={"_BASE_": str(ROOT / "configs/digits/fbnetv3_digits.yaml"), "SOLVER.EPOCHS": 3},
    )


def test_results_become_files_that_train_as_they_are(networks):
    for found, most in zip(networks.found, (1e6, 2e6), strict=True):
        arch = load_arch(found.emitted.arch)
        assert cost(arch, num_classes=10).macs == found.columns["macs"] <= most
        assert "seed 0, 30 trials: predicted" in arch.source
        cfg = load_config(found.emitted.config)
        assert load_arch(cfg.MODEL.ARCH) == arch
        assert cfg.SOLVER.EPOCHS == 3
        assert cfg.DATA.NAME == "digits"
        recipe = found.candidate.recipe
        assert (recipe.optimizer, recipe.initial_lr) == (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.LR)
        assert (recipe.mixup, recipe.ema) == (cfg.INPUT.MIXUP, cfg.EMA.ENABLED)
        assert f"output/{arch.name}" == cfg.OUTPUT_DIR


def test_results_are_registered(networks):
    names = [found.emitted.name for found in networks.found]
    fbnetv3.register_arch_folder(networks.folder / "found" / "archs") if names[0] not in ARCHS else None
    assert set(names) <= set(ARCHS.names())
    assert fbnetv3.create_model(names[0], num_classes=10).num_classes == 10


def test_results_scale_to_a_family(networks):
    emitted = networks.scaled["family_g"]
    arch = load_arch(emitted.arch)
    macs = cost(arch, num_classes=10).macs
    assert macs == pytest.approx(4e6, rel=0.1)
    assert load_config(emitted.config).MODEL.DROP_PATH_RATE == 0.2
    assert json.loads(emitted.provenance.read_text())["columns"]["macs"] == macs
    assert set(networks.scaled) == {"family_g"}  # what cannot be had is told, and costs nothing else


def test_architectures_alone_and_recipes_alone(tmp_path):
    space = space_from_dict(NETWORKS)
    settings = {**QUICK, "rounds": 2, "num_classes": 10}
    alone = search(space, by_size, tmp_path / "a", **settings, mode="architecture", constraints={"macs": 2e6})
    assert alone.found[0].candidate.recipe is None
    assert "RECIPE" not in alone.found[0].emitted.config.read_text()
    recipes = search(space, by_size, tmp_path / "r", **settings, mode="recipe")
    assert recipes.found[0].candidate.arch is None
    assert recipes.found[0].emitted.arch is None
    assert recipes.found[0].candidate.recipe.initial_lr == load_config(recipes.found[0].emitted.config).SOLVER.LR
    assert recipes.pretrained is None
    assert recipes.found[0].candidate["lr"] > 0.03  # by_size likes it high
    with pytest.raises(UserError, match="macs: recipes cost no macs: leave these bounds out"):
        search(space, by_size, tmp_path / "r2", **settings, mode="recipe", constraints={"macs": 2e6})
    with pytest.raises(SpaceError, match="has no variables of the architecture"):
        search(space.only("recipe"), by_size, tmp_path / "n", **settings, mode="architecture")


class Unfit:
    """An evaluator that knows before any trial that it cannot do a thing."""

    def check(self, candidate):
        raise UserError(f"no data for {sorted(candidate)}")

    def __call__(self, candidate, epochs):
        raise AssertionError("there is to be no trial")


def test_an_evaluator_may_refuse_before_the_first_trial(tmp_path):
    with pytest.raises(UserError, match="no data for .*'kind', 'lr'"):
        search(SPACE, Unfit(), tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_rounds_of_the_paper():
    from fbnetv3.nars.algorithm.search_settings import SearchSettings

    space = load_space(ROOT / "configs/nars/spaces/fbnetv3.yaml")
    settings = SearchSettings()
    assert (settings.pool, settings.batch, settings.epochs, settings.stop_above) == (20_000, 48, 150, 0.92)
    assert settings.rounds_in(space) == 5
    assert settings.rounds_in(space.only("recipe")) == 4


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
    assert budget_name(budget) == name


def test_settings_are_checked_in_python_too():
    from fbnetv3.nars.algorithm.search_settings import SearchSettings

    with pytest.raises(SettingsError, match="batch: 1 is not a whole number of at least 2"):
        SearchSettings(batch=1)
