"""Start a search in a folder, or resume it if the folder has trials of the same search."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import fbnetv3
from fbnetv3.nars.algorithm.search_plan import SearchPlan
from fbnetv3.nars.evaluators.evaluator_registry import Evaluator, unwrap_partial
from fbnetv3.nars.trials.trial_store import (
    ANALYSIS_FILE,
    CONTINUES,
    FINISHED,
    STOPPED_BY_FAILURES,
    TrialStore,
    TrialStoreError,
)
from fbnetv3.utils.nested_keys import first_difference

_SOURCE = "evaluator_source"  # key of the metadata
_PACKAGES = ("numpy", "scipy", "torch", "torchvision")  # whose versions are recorded


def start_or_resume(
    plan: SearchPlan,
    store: TrialStore,
    evaluator: str | Evaluator | None,
    continues: bool,
    accept_changes: bool = False,
    requeue: bool = True,
) -> None:
    """Record what is searched in a new store; in one with trials of the same search, prepare to resume it.

    `continues` says whether evaluators continue trials. With `requeue`, interrupted trials are run again.

    Raises:
        TrialStoreError: the store has trials of a different search, or the source code of the evaluator has changed and
            `accept_changes` is false.
    """
    fingerprint = plan.fingerprint(evaluator)
    source = source_digest(evaluator)
    if not store.segments():  # new, or interrupted before the first trial
        values = {"settings": fingerprint, "fbnetv3": fbnetv3.__version__, "started": time.time()}
        store.update_metadata({**values, "versions": _versions()})
    else:
        _check_same_search(store, fingerprint, None if accept_changes else source)
        if requeue:
            store.requeue(include_failed=bool(store.metadata().get(STOPPED_BY_FAILURES)))
        store.update_metadata({STOPPED_BY_FAILURES: False, FINISHED: None})
        (store.folder / ANALYSIS_FILE).unlink(missing_ok=True)  # outdated by the trials to come
    store.update_metadata({_SOURCE: source, CONTINUES: continues, **plan.describe(evaluator)})


def _check_same_search(store: TrialStore, fingerprint: Mapping[str, Any], source: str | None) -> None:
    metadata = store.metadata()
    if difference := first_difference(metadata.get("settings", {}), fingerprint):
        saved, current = json.dumps(difference.saved), json.dumps(difference.current)
        raise TrialStoreError(
            f"{store.file}: belongs to a search with a different {difference.key} ({saved}, now {current}); "
            "use the settings of that search, or choose a different folder"
        )
    saved_source = metadata.get(_SOURCE)
    if source is not None and saved_source is not None and source != saved_source:
        raise TrialStoreError(
            f"{store.file}: the source code of the evaluator has changed since its trials; restore it, choose a "
            "different folder, or accept the change if it does not affect the values (--accept, or accept_changes=True)"
        )


def source_digest(evaluator: str | Evaluator | None) -> str | None:
    """Return a SHA-256 of an evaluator's source code in hex; None for names, and if there is no source."""
    evaluator = unwrap_partial(evaluator)
    if evaluator is None or isinstance(evaluator, str):
        return None
    is_object = not (inspect.isroutine(evaluator) or inspect.isclass(evaluator))
    try:
        source = inspect.getsource(type(evaluator) if is_object else evaluator)
    except (OSError, TypeError):
        return None
    return hashlib.sha256(source.encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
