"""The accuracy predictor: it learns, from free labels too, and its seed decides everything."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from fbnetv3.arch import cost_of
from fbnetv3.errors import UsageError
from fbnetv3.nars.predictor.accuracy_predictor import Predictor, PredictorSettings
from fbnetv3.nars.predictor.architecture_statistics import free_labels
from fbnetv3.nars.space.constraints import Constraint, Constraints
from fbnetv3.nars.space.cost_model import COLUMNS, CostModel
from fbnetv3.nars.space.sampling import sample_pool
from fbnetv3.nars.space.search_space import load_space, space_from_dict
from tests.nars.test_space import FBNETV3, SMALL

FEW = PredictorSettings(members=4, width=32, pretrain_epochs=2, frozen_epochs=3, tuned_epochs=3)


@pytest.fixture(scope="module")
def space():
    return load_space(FBNETV3)


@pytest.fixture(scope="module")
def constraints(space):
    return Constraints(space, [Constraint("macs", 400e6, 800e6)])


@pytest.fixture(scope="module")
def pool(constraints):
    return sample_pool(constraints, 3000)


def smooth(space, candidates, names):
    """A known accuracy: each of the named variables has a best value, two of them work together."""
    x = candidates / np.maximum(space.sizes - 1, 1)
    index = [[v.name for v in space.variables].index(name) for name in names]
    return 70 - sum((x[:, i] - 0.7) ** 2 for i in index) + x[:, index[0]] * x[:, index[1]]


ARCH = ("resolution", "s4b_channels", "s5a_channels", "s3_repeat")
RECIPE = ("lr", "mixup", "drop_rate")


def trained(space, pool, seed=0, labels=None, settings=FEW):
    predictor = Predictor(space, settings, seed)
    if labels:
        predictor.pretrain(pool, labels)
    predictor.fit(pool[:40], smooth(space, pool[:40], ("lr", "mixup")))
    return predictor(pool[:100])


@pytest.mark.parametrize("pretrained", [False, True])
def test_equal_for_equal_seeds_only(space, constraints, pool, pretrained):
    labels = constraints.values(pool, "macs", "params") if pretrained else None
    first = trained(space, pool, 0, labels)
    torch.manual_seed(123)
    assert (first == trained(space, pool, 0, labels)).all()
    assert not (first == trained(space, pool, 1, labels)).any()


def test_torchs_own_randomness_is_left_alone(space, constraints, pool):
    before = torch.get_rng_state()
    trained(space, pool, 0, constraints.values(pool, "macs"))
    assert torch.equal(before, torch.get_rng_state())


def test_fitting_again_forgets_what_was_fitted_before(space, pool):
    """Each round trains on all trials from the pretrained encoder, so that a resumed search goes the same way."""
    predictor = Predictor(space, FEW)
    predictor.fit(pool[100:150], np.arange(50.0))
    predictor.fit(pool[:40], smooth(space, pool[:40], ("lr", "mixup")))
    assert (predictor(pool[:100]) == trained(space, pool)).all()


def test_pretraining_learns_macs_and_parameters_of_table_2(space, constraints, pool):
    settings = PredictorSettings(members=4, pretrain_epochs=30, pretrain_lr=1e-2)
    report = Predictor(space, settings).pretrain(pool, free_labels(constraints, pool))
    assert report.names == ("macs", "params")
    assert report.labels.shape == report.predicted.shape == (600, 2)
    assert report.r2[0] > 0.9 and report.r2[1] > 0.99
    error = ((report.labels - report.predicted) ** 2).mean(0) / report.labels.var(0, ddof=1)
    assert report.r2 == pytest.approx(1 - error, abs=1e-5)


def test_pretraining_helps_where_accuracy_is_what_was_pretrained(space, constraints, pool):
    """With twenty trials, an accuracy that is the logarithm of the MACs is known from the labels, else hardly."""
    accuracies = np.log(constraints.values(pool, "macs")["macs"])
    errors = []
    for labels in (None, free_labels(constraints, pool)):
        predictor = Predictor(space, PredictorSettings(members=4, pretrain_epochs=20))
        if labels:
            predictor.pretrain(pool, labels)
        predictor.fit(pool[:20], accuracies[:20])
        errors.append(np.mean((predictor(pool[20:]) - accuracies[20:]) ** 2))
    assert errors[1] < errors[0] / 2


@pytest.mark.parametrize(("part", "names"), [(None, ARCH + RECIPE), ("architecture", ARCH), ("recipe", RECIPE)])
def test_ranks_what_it_has_not_seen(space, part, names):
    """Architectures, recipes, or both."""
    space = space.only(part) if part else space
    candidates = np.random.default_rng(0).integers(0, space.sizes, (600, len(space)))
    accuracies = smooth(space, candidates, names)
    predictor = Predictor(space, PredictorSettings(members=4, width=64))
    predictor.fit(candidates[:200], accuracies[:200])
    assert spearmanr(predictor(candidates[200:]), accuracies[200:])[0] > 0.85


def test_noise_is_not_taken_for_knowledge(space, pool):
    """Accuracies that nothing explains are predicted by their mean, more or less: the parts get small weights."""
    accuracies = 70 + np.random.default_rng(0).normal(0, 1, 60)
    predictor = Predictor(space, PredictorSettings(members=4))
    predictor.fit(pool[:60], accuracies)
    scores = predictor(pool[100:1100])
    assert scores.std() < 0.5
    assert abs(scores.mean() - accuracies.mean()) < 0.5


def test_failed_trainings_do_not_drown_what_tells_good_ones_apart(space):
    """A third of the trainings collapses; of the others, accuracies differ by a few points."""
    candidates = np.random.default_rng(0).integers(0, space.sizes, (600, len(space)))
    value = dict(zip([v.name for v in space.variables], (candidates / np.maximum(space.sizes - 1, 1)).T, strict=True))
    good = 70 + 4 * (value["mixup"] + value["drop_rate"])
    collapsed = value["lr"] > 0.65
    accuracies = np.where(collapsed, 10 + np.random.default_rng(1).uniform(0, 20, 600), good)
    assert 0.2 < collapsed.mean() < 0.5
    predictor = Predictor(space, PredictorSettings(members=4))
    predictor.fit(candidates[:60], accuracies[:60])
    scores, unseen = predictor(candidates[60:]), ~collapsed[60:]
    assert spearmanr(scores[unseen], good[60:][unseen])[0] > 0.4
    assert np.median(scores[~unseen]) < 62 < np.median(scores[unseen])
    assert scores.min() >= accuracies[:60].min()


def test_two_trials_are_enough_to_begin(space, pool):
    predictor = Predictor(space, FEW)
    predictor.fit(pool[:2], np.array([70.0, 71.0]))
    assert np.isfinite(predictor(pool[:50])).all()
    assert predictor(pool[:0]).shape == (0,)


def test_scores_are_on_the_scale_of_the_accuracies(space, pool):
    scores = []
    for scale, shift in ((1, 0), (100, -7)):
        predictor = Predictor(space, FEW)
        predictor.fit(pool[:40], scale * smooth(space, pool[:40], ("lr", "mixup")) + shift)
        scores.append(predictor(pool[:50]))
    assert scores[1] == pytest.approx(100 * scores[0] - 7, rel=1e-3)


def test_equal_accuracies_are_learned(space, pool):
    predictor = Predictor(space, FEW)
    predictor.fit(pool[:5], np.full(5, 70.0))
    assert predictor(pool[:50]) == pytest.approx(np.full(50, 70.0))


@pytest.mark.parametrize(
    ("accuracies", "message"),
    [
        ([1.0], "1 accuracies of 3 candidates"),
        ([1.0, 2.0, float("nan")], "at least 2 finite ones"),
        ([1.0, 2.0, float("inf")], "at least 2 finite ones"),
    ],
)
def test_accuracies_that_make_no_sense(space, pool, accuracies, message):
    with pytest.raises(UsageError, match=message):
        Predictor(space, FEW).fit(pool[:3], np.array(accuracies))


def test_scoring_before_training(space, pool):
    with pytest.raises(UsageError, match="the predictor has not been trained yet"):
        Predictor(space, FEW)(pool[:3])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "pretraining: there are no labels"),
        ({"mine": np.zeros(3)}, r"label mine: 100 finite numbers are wanted, not float64 \(3,\)"),
        ({"mine": np.full(100, np.nan)}, "label mine: 100 finite numbers are wanted"),
        ({"mine": np.array(["a"] * 100)}, "label mine: 100 finite numbers are wanted, not <U1"),
    ],
)
def test_labels_that_make_no_sense(space, pool, labels, message):
    with pytest.raises(UsageError, match=message):
        Predictor(space, FEW).pretrain(pool[:100], labels)


def test_pretraining_needs_architectures_and_enough_of_them(space, pool):
    with pytest.raises(UsageError, match="has no variables of the architecture"):
        Predictor(space.only("recipe"), FEW).pretrain(pool[:100, space.columns_of("recipe")], {"x": np.arange(100)})
    with pytest.raises(UsageError, match="a pool of 4, 0.2 of it held out, is too small"):
        Predictor(space, FEW).pretrain(pool[:4], {"x": np.arange(4)})


@pytest.mark.parametrize("name", ["members", "width", "pretrain_batch", "batch", "steps"])
def test_sizes_that_make_no_sense(name):
    with pytest.raises(UsageError, match=f"predictor: {name} 0 is less than 1"):
        PredictorSettings(**{name: 0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pretrain_epochs": -1}, "pretrain_epochs -1 is less than 0"),
        ({"lr": -1.0}, "lr -1.0 is no number of at least 0"),
        ({"tuned_lr": float("nan")}, "tuned_lr nan is no number"),
        ({"members": 5}, "members 5 is not an even number of at least 4"),
        ({"members": 2}, "members 2 is not an even number of at least 4"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UsageError, match=f"predictor: {message}"):
        PredictorSettings(**settings)


def test_costs_of_stages_are_the_whole_networks_but_for_its_head(space, pool):
    for num_classes in (0, 10):
        model = CostModel(space, num_classes)
        stages, whole = model.per_stage(pool[:50]), model(pool[:50])
        for column in COLUMNS:
            assert stages[column].shape == (50, 7)
            head = whole[column] - stages[column].sum(1)
            expected = {"macs": 1984 * 11, "params": 1984 * 10 + 10, "activations": 1984 + 10}[column]
            assert (head == 0).all() if not num_classes else len(set(head)) >= 1 and head.min() >= expected - 1984
    assert (stages["blocks"].sum(1) == [len(list(space.arch(c, "x").blocks())) for c in pool[:50]]).all()


def test_a_stage_costs_what_the_network_up_to_it_costs_more(space, pool):
    candidate = pool[:1]
    defn = space.arch(candidate[0], "x")
    stages = CostModel(space, 0).per_stage(candidate)
    by_stage = [0] * len(defn.stages)
    assert sum(stages["macs"][0]) == cost_of(defn, num_classes=0).macs
    assert len(by_stage) == stages["macs"].shape[1]


def test_free_labels_of_networks(space, constraints, pool):
    assert list(free_labels(constraints, pool)) == ["macs", "params"]
    assert list(free_labels(constraints, pool, ["activations"])) == ["activations"]
    rich = free_labels(constraints, pool, "rich")
    assert {"macs", "params", "activations", "log macs", "stage 3 macs", "stage 5 blocks"} <= set(rich)
    assert "stage 1 blocks" not in rich, "it is 1 for all"
    assert all(values.shape == (3000,) and np.isfinite(values).all() for values in rich.values())
    assert rich["log macs"] == pytest.approx(np.log(rich["macs"]))


def test_free_labels_of_a_space_without_networks_are_its_own_columns():
    space = space_from_dict(SMALL)
    pool = np.array([[0, 0, 0, 0], [1, 1, 0, 2], [2, 0, 0, 1]])
    columns = {"sum": lambda c: c.sum(1), "sure": lambda c: np.ones(len(c)), "positive": lambda c: 1 + c[:, 0]}
    constraints = Constraints(space, columns=columns)
    assert list(free_labels(constraints, pool)) == ["sum", "positive"]
    assert list(free_labels(constraints, pool, "rich")) == ["sum", "positive", "log positive"]
    assert free_labels(Constraints(space), pool) == {}


@pytest.mark.parametrize(
    ("which", "message"),
    [("rish", "'rish' is no choice: did you mean rich"), (["mac"], "column mac: did you mean macs")],
)
def test_free_labels_that_are_unknown(constraints, pool, which, message):
    with pytest.raises(UsageError, match=message):
        free_labels(constraints, pool, which)


def test_costs_do_not_depend_on_what_was_costed_before(space, pool):
    """Sides of feature maps are numbered anew for each batch: what is known of one must not pass for another's."""
    model = CostModel(space)
    expected = model(pool[:60])["macs"]
    found = [int(model(candidate[None])["macs"][0]) for candidate in pool[:60]]
    assert found == expected.tolist() == [cost_of(space.arch(c, "x")).macs for c in pool[:60]]
