"""Recommendations of a search as its report shows them: values, files, and why each was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fbnetv3.nars.report.charts.variable_charts import format_value
from fbnetv3.nars.report.progress_table import format_prediction
from fbnetv3.nars.report.saved_search import SavedSearch


def recommendation_rows(search: SavedSearch) -> list[dict[str, Any]]:
    """Return what the page shows of each recommendation and each network scaled from one."""
    return [_describe(search, item) for item in search.recommendations]


def _describe(search: SavedSearch, item: Mapping[str, Any]) -> dict[str, Any]:
    texts = {
        kind: (search.folder / path).read_text()
        for kind, path in item["files"].items()
        if kind in ("config", "recipe", "arch")
    }
    row = {
        "name": item["name"],
        "budget": item["name"].removeprefix(f"{search.name}_"),
        "columns": item.get("columns", {}),
        "values": {name: format_value(value) for name, value in item.get("values", {}).items()},
        "files": item["files"],
        "texts": texts,
    }
    if "predicted" not in item:
        origin = item.get("scaled_from", {}).get("constraints") or ["no bounds"]
        reason = (
            f"Scaled from the recommendation for {' and '.join(origin)}; neither trained nor predicted."
        )
        return row | {"measured": None, "predicted": "", "epochs": "", "trial": None, "reason": reason}
    trial = item["trial"]
    return row | {
        "measured": None if item["measured"] is None else f"{item['measured']:.5g}",
        "predicted": format_prediction(item["predicted"], item["predicted_std"]),
        "epochs": item["epoch"],
        "trial": None if trial is None else trial["number"],
        "reason": " ".join(
            [explain_choice(item, search.is_paper), *map(_explain_broken, item.get("broken", ()))]
        ),
    }


def explain_choice(item: Mapping[str, Any], is_paper: bool) -> str:
    """Return why a candidate was recommended, given its provenance, in a sentence or two."""
    trial, measured, predicted = item["trial"], item["best_measured"], item["best_predicted"]
    if trial is None:
        reason = "The candidate that is predicted to be best within the budget; it has not been trained."
        if not is_paper:
            reason = f"No trial is within the budget. {reason}"
        elif measured is not None:
            reason += f" The best trial within the budget is {_name_trial(measured)}."
        return reason
    if trial["number"] == measured["number"]:
        reason = f"Trial {trial['number']} has the best measured value within the budget."
    else:
        reason = (
            f"Trial {trial['number']} has the best value after correction for noise; the measured value of "
            f"{_name_trial(measured)} is better, but less certain."
        )
    if predicted is None:
        return reason
    if predicted["number"] == trial["number"]:
        return f"{reason} It was also predicted to be the best before it was trained."
    return f"{reason} The best of those proposed last for the budget is {_name_trial(predicted)}."


def _explain_broken(bound: str) -> str:
    return f"Computed again, it is outside the budget: {bound}."


def _name_trial(trial: Mapping[str, Any]) -> str:
    return f"trial {trial['number']} ({trial['value']:.5g})"
