"""The search as a whole: what it finds, that it survives whatever happens, what it refuses."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import fbnetv3
from fbnetv3.arch import ARCHS, cost, load_arch
from fbnetv3.config import load_config
from fbnetv3.errors import UsageError, UserError
from fbnetv3.nars.algorithm import search
from fbnetv3.nars.analysis import save_analysis
from fbnetv3.nars.live import describe
from fbnetv3.nars.report import write_report
from fbnetv3.nars.rounds import SearchError
from fbnetv3.nars.settings import SettingsError, budget_name
from fbnetv3.nars.space import SpaceError, load_space, space_from_dict
from fbnetv3.nars.trials import DONE, FAILED, FILE, TrialsError, TrialStore

ROOT = Path(__file__).resolve().parents[2]
SPACE = space_from_dict(
    {
        "name": "toy",
        "variables": {f"x{i}": {"range": [0, 7]} for i in range(4)}
        | {"kind": {"choices": ["a", "b", "c"]}, "lr": {"range": [1, 9], "part": "recipe"}},
    }
)
FAST = {"members": 4, "width": 32, "pretrain_epochs": 5, "frozen_epochs": 20, "tuned_epochs": 20}
QUICK = {"epochs": 6, "rounds": 3, "batch": 10, "pool": 400, "predictor": FAST, "executor": "serial"}


def accuracy(candidate):
    bumps = sum((candidate[f"x{i}"] - 5) ** 2 for i in range(4)) / 10
    return 90 - bumps - (candidate["lr"] - 3) ** 2 / 5 + {"a": 0, "b": 2, "c": 1}[candidate["kind"]]


def evaluate(candidate, epochs):
    """Deterministic curves that cross in the first epochs."""
    wild = np.random.default_rng(candidate.vector.tolist()).normal(0, [9, 3, 0.5, 0, 0, 0])
    return [accuracy(candidate) * (1 - 0.5**epoch) + wild[epoch - 1] for epoch in range(1, epochs + 1)]


def spent(columns):
    return columns[:, :4].sum(1)


def outcome(folder):
    """All that decides what a search finds, without times."""
    store = TrialStore(Path(folder))
    trials = [(t.number, t.round, t.candidate.tolist(), t.epochs, t.status, t.curve) for t in store.all()]
    store.close()
    found = [json.loads(path.read_text()) for path in sorted(Path(folder).glob("found/*.json"))]
    return trials, found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    settings = {**QUICK, "columns": {"spent": spent}, "budgets": [{"spent": 12}, {"spent": [None, 18]}]}
    return search(SPACE, evaluate, folder / "out", **settings)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return search(SPACE, evaluate, tmp_path_factory.mktemp("plain") / "out", **QUICK)


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


SCRIPT = """
import json, os, sys, time
from pathlib import Path
from fbnetv3.nars.algorithm import search
from tests.nars.test_algorithm import QUICK, SPACE, evaluate

folder = sys.argv[1]

def counted(candidate, epochs):
    with open(folder + "/calls", "a") as f:
        f.write(f"{candidate.number}\\n")
    time.sleep(0.03)
    return evaluate(candidate, epochs)

search(SPACE, counted, folder + "/out", **{**QUICK, "executor": "local"}, workers=2, resume="--resume" in sys.argv)
print("finished")
"""


def test_killed_anywhere_it_ends_as_the_unkilled_search_does(plain, tmp_path):
    """Killed again and again at random moments; no trial that had ended is run again."""
    chance, kills, resume = np.random.default_rng(0), 0, []
    while True:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), *resume]
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        resume = ["--resume"]
        try:
            # from the middle of the imports to the last round; in the end it is left alone
            assert process.wait(chance.uniform(1.0, 8.0) if kills < 5 else None) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert process.stdout.read() == "finished\n"
        break
    assert outcome(tmp_path / "out") == outcome(plain.folder)
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) <= 30 + 2 * kills  # only what was running when it was killed
    assert {int(call) for call in calls} == set(range(30))


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_interrupted_it_says_what_to_do(tmp_path, number, code, word):
    config = tmp_path / "search.yaml"
    (tmp_path / "slow.py").write_text(
        "import time\n\ndef evaluate(candidate, epochs):\n    time.sleep(60)\n    return [1.0] * epochs\n"
    )
    config.write_text(
        yaml.safe_dump(
            {
                "space": {"name": "s", "variables": {"a": {"range": [0, 99]}}},
                "evaluator": "slow:evaluate",
                "epochs": 1,
                "output": "out",
                "predictor": FAST,
            }
        )
    )
    tool = [sys.executable, str(ROOT / "tools" / "search_net.py"), "--config", str(config)]
    process = subprocess.Popen(tool, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(log.read_text() for log in tmp_path.glob("out/logs/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == f"{word}; add --resume to go on; nothing that has ended is lost\n"


def sometimes(candidate, epochs):
    if candidate.number == 4 or (candidate.number == 7 and candidate.attempt == 0):
        raise RuntimeError("unlucky")
    return evaluate(candidate, epochs)


def test_failed_trials_are_tried_again_then_recorded(tmp_path):
    result = search(SPACE, sometimes, tmp_path / "out", **QUICK)
    by_number = {t.number: t for t in result.trials}
    assert (by_number[4].status, by_number[4].attempts) == (FAILED, 2)
    assert by_number[4].error.startswith("RuntimeError: unlucky")
    assert (by_number[7].status, by_number[7].attempts) == (DONE, 2)
    assert len(result.trials) == 30


def never(candidate, epochs):
    return [float("nan")] * epochs if candidate.number % 2 else [0.5]


def test_too_many_failures_stop_it_and_can_be_mended(tmp_path):
    settings = {**QUICK, "max_failures": 2, "retries": 0}
    with pytest.raises(SearchError) as caught:
        search(SPACE, never, tmp_path / "out", **settings)
    text = str(caught.value)
    assert text.startswith("3 trials have failed, more than max_failures 2; trial 0: the evaluator gave 1 accuracies")
    assert "trial 1: the accuracy after epoch 1 is nan" in text
    assert "resume" in text
    with pytest.raises(TrialsError, match="another evaluator"):
        search(SPACE, evaluate, tmp_path / "out", **settings, resume=True)
    never.__code__ = evaluate.__code__  # the cause is mended
    result = search(SPACE, never, tmp_path / "out", **settings, resume=True)
    assert {t.status for t in result.trials} == {DONE}


def fails_late(candidate, epochs):
    if Path(f"{candidate.folder}/../../mended").exists():
        return evaluate(candidate, epochs)
    if candidate.number in (2, 5) or candidate.number >= 10:
        raise RuntimeError("not mended")
    return evaluate(candidate, epochs)


def test_what_failed_early_stays_failed_when_later_failures_are_mended(tmp_path):
    """Later rounds were chosen without it, and by an epoch that was chosen without it."""
    settings = {**QUICK, "max_failures": 3, "retries": 0}
    with pytest.raises(SearchError, match="4 trials have failed"):
        search(SPACE, fails_late, tmp_path / "out", **settings)
    (tmp_path / "out" / "mended").touch()
    result = search(SPACE, fails_late, tmp_path / "out", **settings, resume=True)
    assert [t.number for t in result.trials if t.status == FAILED] == [2, 5]
    assert {t.epochs for t in result.trials if t.round} == {result.stop_epoch}


def test_a_search_that_goes_on_is_not_called_finished(tmp_path):
    settings = {**QUICK, "rounds": 1}
    result = search(SPACE, sometimes_dead, tmp_path / "out", **settings)
    assert result.stop_epoch == 6  # nothing ended early, and whole trainings are there to compare
    save_analysis(result)
    with pytest.raises(SearchError):
        search(SPACE, sometimes_dead, tmp_path / "out", **{**settings, "rounds": 2, "max_failures": 0}, resume=True)
    assert "stopped by failures" in describe(tmp_path / "out")
    assert "The search has not come to its end" in write_report(tmp_path / "out").read_text()
    fewer = search(SPACE, sometimes_dead, tmp_path / "again", **{**QUICK, "max_failures": 30, "rounds": 2})
    assert len(search(SPACE, sometimes_dead, fewer.folder, **settings, max_failures=30, resume=True).trials) == 20


def sometimes_dead(candidate, epochs):
    return evaluate(candidate, epochs if candidate.number < 12 else 0)


def test_a_start_that_failed_does_not_block_the_folder(tmp_path):
    with pytest.raises(UserError, match="labels: 'papper' is no choice"):
        search(SPACE, evaluate, tmp_path / "out", **QUICK, labels="papper")
    search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "rounds": 1})


def test_a_folder_with_a_search_is_not_overwritten(whole):
    with pytest.raises(UsageError, match="holds a search already; resume it, or choose another folder"):
        search(SPACE, evaluate, whole.folder, **QUICK)


def test_trials_of_another_search_are_not_mixed_in(tmp_path):
    search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "rounds": 1})
    with pytest.raises(TrialsError, match="another epochs: 6, not 9"):
        search(SPACE, evaluate, tmp_path / "out", **{**QUICK, "epochs": 9}, resume=True)
    other = space_from_dict({"name": "toy", "variables": {"x0": {"range": [0, 7]}}})
    with pytest.raises(TrialsError, match=r"another space: .*toy"):
        search(other, evaluate, tmp_path / "out", **QUICK, resume=True)


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


def test_rounds_of_the_paper():
    from fbnetv3.nars.settings import SearchSettings

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
    from fbnetv3.nars.settings import SearchSettings

    with pytest.raises(SettingsError, match="batch: 1 is not a whole number of at least 2"):
        SearchSettings(batch=1)
