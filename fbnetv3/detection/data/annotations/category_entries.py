"""Clean the categories of an annotation file: their order, and equal names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fbnetv3.detection.data.annotations.annotation_ids import IdIndex, repeated_ids, sort_by_id
from fbnetv3.detection.data.annotations.annotation_problems import AnnotationProblems


def clean_categories(
    entries: Sequence[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
    problems: AnnotationProblems,
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return the categories in the order of their ids, and those that are left out.

    Of categories with equal names, the one that annotations refer to is kept; the others are left out if they have no
    annotations. (Roboflow's exports begin with such a category.)
    """
    for category_id in repeated_ids(entries):
        problems.add("repeated_id", f"{category_id} of categories")
    ordered = sort_by_id(entries)
    by_name = defaultdict(list)
    for entry in ordered:
        by_name[entry["name"]].append(entry)
    if len(by_name) == len(ordered):
        return ordered, []

    # Equal names: which of them are used?
    index = IdIndex([entry["id"] for entry in ordered])
    used = {index.find(annotation.get("category_id"))[0] for annotation in annotations}
    used_ids = [ordered[position]["id"] for position in used if position is not None]
    left_out = []
    for name, namesakes in by_name.items():
        needed = [entry for entry in namesakes if entry["id"] in used_ids] or namesakes[:1]
        if len(needed) > 1:
            ids = ", ".join(str(entry["id"]) for entry in needed)
            problems.add("equal_names", f"{ids} ({name})")
        else:
            left_out += [entry for entry in namesakes if entry is not needed[0]]
    left_out_numbers = {id(entry) for entry in left_out}
    return [entry for entry in ordered if id(entry) not in left_out_numbers], left_out
