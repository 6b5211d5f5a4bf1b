"""NARS: the joint search for architectures and training recipes (Sec. 3).

Nothing is imported before it is used: the processes that evaluate candidates need little of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fbnetv3.nars.algorithm import SearchResult, search
    from fbnetv3.nars.analysis import save_analysis
    from fbnetv3.nars.candidate import Candidate
    from fbnetv3.nars.constraints import Constraint, Constraints
    from fbnetv3.nars.costs import CostModel
    from fbnetv3.nars.evaluators import EVALUATORS
    from fbnetv3.nars.evolution import evolve, pareto_front
    from fbnetv3.nars.predictor import Predictor
    from fbnetv3.nars.report import write_report
    from fbnetv3.nars.sampling import sample_pool
    from fbnetv3.nars.space import Space, load_space, space_from_dict

_HOME = {
    "EVALUATORS": "evaluators",
    "Candidate": "candidate",
    "Constraint": "constraints",
    "Constraints": "constraints",
    "CostModel": "costs",
    "Predictor": "predictor",
    "SearchResult": "algorithm",
    "Space": "space",
    "evolve": "evolution",
    "load_space": "space",
    "pareto_front": "evolution",
    "sample_pool": "sampling",
    "save_analysis": "analysis",
    "search": "algorithm",
    "space_from_dict": "space",
    "write_report": "report",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
