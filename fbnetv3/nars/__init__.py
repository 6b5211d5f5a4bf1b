"""NARS: joint search for architectures and training recipes (Sec. 3).

Attributes are imported on first use, as worker processes need only a few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fbnetv3.utils.imports import lazy_attributes

if TYPE_CHECKING:
    from fbnetv3.nars.algorithm.ask_tell import Search
    from fbnetv3.nars.algorithm.nars_search import search
    from fbnetv3.nars.algorithm.search_result import SearchResult
    from fbnetv3.nars.evaluators.evaluator_registry import EVALUATORS, continues_trials
    from fbnetv3.nars.evolution.evolution import EvolutionSettings, evolve, pareto_front
    from fbnetv3.nars.execution.executors import EXECUTORS
    from fbnetv3.nars.predictor.accuracy_predictor import AccuracyPredictor, PredictorSettings
    from fbnetv3.nars.report.html_report import write_report
    from fbnetv3.nars.report.saved_search import SavedSearch, load
    from fbnetv3.nars.report.search_analysis import save_analysis
    from fbnetv3.nars.settings.search_settings import SearchSettings
    from fbnetv3.nars.space.candidate import Candidate
    from fbnetv3.nars.space.constraints import Constraint, Constraints
    from fbnetv3.nars.space.cost_model import CostModel
    from fbnetv3.nars.space.sampling import sample_pool
    from fbnetv3.nars.space.search_space import Space, load_space, space_from_dict

_ATTRIBUTES = {
    "Candidate": "fbnetv3.nars.space.candidate",
    "Constraint": "fbnetv3.nars.space.constraints",
    "Constraints": "fbnetv3.nars.space.constraints",
    "CostModel": "fbnetv3.nars.space.cost_model",
    "EVALUATORS": "fbnetv3.nars.evaluators.evaluator_registry",
    "EXECUTORS": "fbnetv3.nars.execution.executors",
    "AccuracyPredictor": "fbnetv3.nars.predictor.accuracy_predictor",
    "EvolutionSettings": "fbnetv3.nars.evolution.evolution",
    "PredictorSettings": "fbnetv3.nars.predictor.accuracy_predictor",
    "SavedSearch": "fbnetv3.nars.report.saved_search",
    "Search": "fbnetv3.nars.algorithm.ask_tell",
    "SearchResult": "fbnetv3.nars.algorithm.search_result",
    "SearchSettings": "fbnetv3.nars.settings.search_settings",
    "Space": "fbnetv3.nars.space.search_space",
    "continues_trials": "fbnetv3.nars.evaluators.evaluator_registry",
    "evolve": "fbnetv3.nars.evolution.evolution",
    "load": "fbnetv3.nars.report.saved_search",
    "load_space": "fbnetv3.nars.space.search_space",
    "pareto_front": "fbnetv3.nars.evolution.evolution",
    "sample_pool": "fbnetv3.nars.space.sampling",
    "save_analysis": "fbnetv3.nars.report.search_analysis",
    "search": "fbnetv3.nars.algorithm.nars_search",
    "space_from_dict": "fbnetv3.nars.space.search_space",
    "write_report": "fbnetv3.nars.report.html_report",
}

__all__ = [*_ATTRIBUTES]

__getattr__ = lazy_attributes(__name__, _ATTRIBUTES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
