"""The whole search (Algorithm 1): pretraining, constrained iterative optimisation, evolution for each budget."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

import fbnetv3
from fbnetv3.errors import UsageError, suggest
from fbnetv3.nars.algorithm.evolution import Evolved, evolve
from fbnetv3.nars.algorithm.rounds import Progress, Rounds, Watch, ranked
from fbnetv3.nars.algorithm.search_output import Emitted, emit, emit_scaled
from fbnetv3.nars.algorithm.search_settings import (
    JOINT,
    SCALING,
    SearchSettings,
    budget_name,
    check_file_name,
    settings_from_dict,
)
from fbnetv3.nars.algorithm.trial_store import (
    ANALYSIS,
    FINISHED,
    STOPPED,
    Trial,
    TrialsError,
    TrialStore,
    locked,
)
from fbnetv3.nars.evaluators.evaluator_registry import Evaluate, build_evaluator, name_of
from fbnetv3.nars.execution.executors import open_executor
from fbnetv3.nars.predictor.accuracy_predictor import Predictor, PretrainReport
from fbnetv3.nars.predictor.architecture_statistics import free_labels
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.nars.space.latency_model import LATENCY
from fbnetv3.nars.space.sampling import sample_pool
from fbnetv3.nars.space.search_space import ARCHITECTURE, Space, load_space
from fbnetv3.utils.files import file_sha256

logger = logging.getLogger(__name__)

# Settings that may change when a search goes on: they decide where and how long it runs, and what is made of it.
_FREE = frozenset(
    (
        *("rounds", "budgets", "scaled", "evolution", "executor", "workers", "address", "resources", "time_limit"),
        *("retries", "max_failures", "training", "known"),
    )
)
# Candidates of the pool that are built before the search begins.
_CHECKED = 200


@dataclass(frozen=True)
class Found:
    """What a search recommends for a budget.

    Attributes:
        name: of the budget, such as macs_450M.
        candidate: its network and recipe.
        predicted: its predicted accuracy.
        columns: "macs" and so on, what is known of its cost.
        best_trial: the best trial inside the budget, which stage 2 alone would have given (Table 7), or None.
        evolved: the last generation that it is the best of.
        emitted: where its files lie.
        provenance: what it comes from.
    """

    name: str
    candidate: Candidate
    predicted: float
    columns: Mapping[str, float]
    best_trial: Trial | None
    evolved: Evolved = field(repr=False)
    emitted: Emitted = field(repr=False)
    provenance: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class SearchResult:
    """What a search came to.

    Attributes:
        space: what was searched, of the mode's part alone.
        settings: how.
        folder: where its files lie.
        pool: candidates that it chose from, integers (N, variables).
        trials: all of them.
        stop_epoch: how far those after the first round were evaluated; accuracies are compared at this epoch.
        pretrained: how well the predictor learned the free labels; None where there was nothing to pretrain.
        predictor: trained on all trials; scores any candidate.
        found: a recommendation for each budget.
        scaled: files of the networks scaled from them, by name.
    """

    space: Space
    settings: SearchSettings
    folder: Path
    pool: np.ndarray
    trials: tuple[Trial, ...]
    stop_epoch: int
    pretrained: PretrainReport | None
    predictor: Predictor
    found: tuple[Found, ...] = ()
    scaled: Mapping[str, Emitted] = field(default_factory=dict)

    @property
    def best(self) -> Trial:
        """The trial with the highest accuracy."""
        return ranked(self.trials, self.stop_epoch)[0]


def search(
    space: Space | str | os.PathLike,
    evaluator: str | Evaluate,
    output: str | os.PathLike,
    *,
    resume: bool = False,
    watch: Watch | None = None,
    **settings: Any,
) -> SearchResult:
    """Search a space for architectures, recipes, or both together (Algorithm 1).

    Args:
        space: a `Space`, or its YAML file.
        evaluator: gives the accuracy of a candidate after each epoch: a callable `evaluate(candidate, epochs)`, a
            registered name, or `package.module:function`.
        output: folder for trials, recommendations and report.
        resume: go on with the search that the folder holds. It trains nothing twice, and ends as it would have ended.
            More rounds, and other budgets, may be asked for then.
        watch: called with the `Progress` whenever something has happened.
        settings: see `SearchSettings`.

    Returns:
        The trials, the predictor and a recommendation for each budget.

    Raises:
        UserError: settings that make no sense, constraints that nothing meets, a folder that is in use, trials of
            another search, too many failures. What has been measured is kept.
    """
    space = space if isinstance(space, Space) else load_space(space)
    return run_search(space, evaluator, output, settings_from_dict(settings), resume=resume, watch=watch)


def run_search(
    space: Space,
    evaluator: str | Evaluate,
    output: str | os.PathLike,
    settings: SearchSettings,
    *,
    resume: bool = False,
    watch: Watch | None = None,
) -> SearchResult:
    """The same as `search`, from a `Space` and `SearchSettings`."""
    watch = watch or (lambda progress: None)
    plan = _Plan(space, settings)
    evaluate = build_evaluator(evaluator, settings.evaluator_args)
    if settings.executor != "ray" and hasattr(evaluate, "check"):  # a cluster's data need not be here
        evaluate.check(Candidate(plan.space, plan.pool[0], full_epochs=settings.epochs))
    folder = Path(output).expanduser().resolve()
    with locked(folder), contextlib.closing(TrialStore(folder, create=True)) as store:
        _check_same_search(store, _describe(plan.space, evaluator, settings), resume)
        rounds = max(settings.rounds_in(plan.space), store.rounds())
        if resume and not store.rounds():
            watch(Progress("pretraining", message=f"{folder} holds no trials yet: the search begins"))
        watch(Progress("pretraining", rounds=rounds))
        predictor, pretrained = plan.pretrained()
        stage = Rounds(settings, rounds, plan.pool, store, predictor, watch)
        with open_executor(
            settings.executor,
            plan.space,
            evaluate,
            workers=settings.workers,
            time_limit=settings.time_limit,
            logs=folder / "logs",
            address=settings.address,
            resources=dict(settings.resources),
        ) as executor:
            stage.run(executor)
        watch(Progress("evolution", rounds, rounds, best=stage.best(), error=stage.error))
        result = SearchResult(
            plan.space, settings, folder, plan.pool, tuple(store.all()), stage.stop_epoch(), pretrained, predictor
        )
        result = _with_recommendations(result, plan)
        store.set_about({FINISHED: time.time()})
        watch(Progress("done", rounds, rounds, best=stage.best(), error=stage.error))
        return result


class _Plan:
    """What a search works with: the space of its mode, constraints, budgets and pool. All of it is checked here.

    Raises:
        UserError: settings that make no sense together, or bounds that nothing meets.
    """

    def __init__(self, space: Space, settings: SearchSettings) -> None:
        self.settings = settings
        self.space = space if settings.mode == JOINT else space.only(settings.mode)
        check_file_name(space.name, "space.name")
        self.constraints = settings.constraints_in(self.space)
        self.budgets = {
            budget_name(budget): self.constraints.with_bounds(*settings.bounds_in(self.space, budget, "budgets"))
            for budget in settings.budgets or ({},)
        }
        for name in settings.scaled:
            if settings.scaled[name]["from"] not in self.budgets:
                known = suggest(str(settings.scaled[name]["from"]), self.budgets)
                raise UsageError(f"scaled.{name}: from: is none of the budgets: {known}")
        for constraints in self.budgets.values():
            constraints.check_attainable(settings.seed)
        self.pool = sample_pool(self.constraints, settings.pool, settings.seed)
        _check_decodes(self.space, self.pool)

    def pretrained(self) -> tuple[Predictor, PretrainReport | None]:
        """A predictor that knows the free labels (Sec. 3.2), where the space has architectures."""
        predictor = Predictor(self.space, self.settings.predictor, self.settings.seed)
        if not len(self.space.columns_of(ARCHITECTURE)):
            return predictor, None
        labels = free_labels(self.constraints, self.pool, self.settings.labels)
        return predictor, predictor.pretrain(self.pool, labels) if labels else None


def _check_decodes(space: Space, pool: np.ndarray) -> None:
    """Build network and recipe of candidates of the pool, one for each value of each variable as far as there are.

    Raises:
        SpaceError, ArchError, RecipeError: one of them makes none.
    """
    chosen = {row.tobytes(): row for row in pool[:2]}
    for column in range(len(space)):
        for first in np.unique(pool[:, column], return_index=True)[1]:
            chosen.setdefault(pool[first].tobytes(), pool[first])
    for vector in list(chosen.values())[:_CHECKED]:
        candidate = Candidate(space, vector)
        _ = candidate.arch, candidate.recipe


def _with_recommendations(result: SearchResult, plan: _Plan) -> SearchResult:
    """Stage 3 (Sec. 3.4): a recommendation for each budget, and the files of each, and of what is scaled from them."""
    s, folder = result.settings, result.folder / "found"
    training = training_of(s)
    done = ranked(result.trials, result.stop_epoch)
    inherited = np.array([trial.candidate for trial in done])
    found, scaled = {}, {}
    for name, constraints in plan.budgets.items():
        evolved = evolve(result.predictor, constraints, inherited, s.evolution, s.seed)
        candidate = Candidate(result.space, evolved.candidates[0], seed=s.seed, full_epochs=s.epochs)
        known = constraints.values(evolved.candidates[:1], *constraints.known)
        columns = {column: float(values[0]) for column, values in known.items()}
        inside = [trial for trial, met in zip(done, constraints.met(inherited), strict=True) if met]
        best = inside[0] if inside else None
        predicted = float(evolved.scores[0])
        provenance = {
            "space": result.space.name,
            "space_sha256": _digest(result.space),
            "fbnetv3": fbnetv3.__version__,
            "seed": s.seed,
            "constraints": [str(constraint) for constraint in constraints.constraints],
            "predicted": predicted,
            "predicted_after_epoch": result.stop_epoch,
            "columns": columns,
            "best_trial": best
            and {
                "number": best.number,
                "accuracy": best.accuracy(result.stop_epoch),
                "values": result.space.decode(best.candidate),
            },
            "trials": len(result.trials),
            "inherited_trials": [trial.number for trial in inside[: s.evolution.inherited]],
        }
        emitted = emit(f"{result.space.name}_{name}", candidate, folder, training, provenance)
        found[name] = Found(name, candidate, predicted, columns, best, evolved, emitted, provenance)
    for name, how in s.scaled.items():
        origin = found[how["from"]]
        scaling = {key: float(how[key]) for key in SCALING if key in how}
        arguments = (folder, training, origin.provenance, how.get("recipe", {}), scaling)
        try:
            scaled[name] = emit_scaled(name, origin.candidate, float(how["macs"]), *arguments, s.num_classes)
        except UsageError as error:  # after all those trials, the rest of the result must not be lost to it
            logger.warning("scaled.%s is left out: %s", name, error)
    return replace(result, found=tuple(found.values()), scaled=scaled)


def training_of(settings: SearchSettings) -> dict[str, Any]:
    """Config keys that an emitted training config begins with: those of the trials where nothing else is given."""
    if settings.training:
        return dict(settings.training)
    arguments = settings.evaluator_args
    base = {"_BASE_": arguments["config"]} if isinstance(arguments.get("config"), str) else {}
    overrides = arguments.get("overrides")
    base |= {"SOLVER.EPOCHS": settings.epochs} if base else {}
    return base | (dict(overrides) if isinstance(overrides, Mapping) else {})


def _describe(space: Space, evaluator: str | Evaluate, settings: SearchSettings) -> dict[str, Any]:
    """What decides what a search finds, to compare with what a folder holds."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in _FREE}
    values["predictor"] = asdict(settings.predictor)
    values["columns"] = {
        name: column if isinstance(column, str) else name for name, column in values["columns"].items()
    }
    # a latency table decides what is tried only where candidates are bounded by it, or the predictor learns from it
    learned = () if isinstance(settings.labels, str) else settings.labels
    uses_table = LATENCY in (*settings.constraints, *learned)
    table = settings.latency if uses_table else None
    values["latency"] = file_sha256(Path(table).expanduser())[:12] if table else None
    values |= {"space": f"{space.name} ({_digest(space)[:12]})", "evaluator": name_of(evaluator)}
    # an object is compared by its kind: its text may hold an address
    return json.loads(json.dumps({"settings": values, "fbnetv3": fbnetv3.__version__}, default=lambda o: str(type(o))))


def _digest(space: Space) -> str:
    return hashlib.sha256(json.dumps(asdict(space), sort_keys=True, default=str).encode()).hexdigest()


def _check_same_search(store: TrialStore, about: Mapping[str, Any], resume: bool) -> None:
    """Refuse to mix two searches; take up what an earlier part of this one has left.

    Raises:
        UsageError: the folder holds a search that is not to be resumed.
        TrialsError: it holds another search.
    """
    there = store.about()
    if not store.rounds():  # new, or ended before it proposed anything
        store.set_about({**about, "started": time.time()})
        return
    if not resume:
        raise UsageError(f"{store.folder}: holds a search already; resume it, or choose another folder")
    for key, value in about["settings"].items():
        kept = there.get("settings", {}).get(key)
        if kept != value:
            raise TrialsError(
                f"{store.file}: is of a search with another {key}: {json.dumps(kept)}, not {json.dumps(value)}; "
                "use the settings of that search, or another folder"
            )
    store.release(failed=bool(there.get(STOPPED)))
    store.set_about({STOPPED: False, FINISHED: None})
    (store.folder / ANALYSIS).unlink(missing_ok=True)  # it is not that of the trials to come
