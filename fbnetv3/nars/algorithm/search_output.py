"""What a search leaves for its users: architectures, training configs for `tools/train_net.py`, and provenance."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fbnetv3.arch import ArchDef, dump_arch, register_arch, scale_to_macs
from fbnetv3.config.recipe import Recipe, dump_recipe, recipe_from_dict
from fbnetv3.errors import UsageError
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.utils.files import atomic_write, make_folder

logger = logging.getLogger(__name__)

_BASE = "_BASE_"


@dataclass(frozen=True)
class Emitted:
    """Files of a recommendation.

    Attributes:
        name: the architecture's, under which it is registered.
        provenance: JSON: the candidate's values, what is predicted of it, and where it comes from.
        arch: the architecture; None where the space has none.
        recipe: the recipe; None where the space has none.
        config: the training config, which names both; None where there is neither.
    """

    name: str
    provenance: Path
    arch: Path | None = None
    recipe: Path | None = None
    config: Path | None = None


def emit(
    name: str,
    candidate: Candidate,
    folder: Path,
    training: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Emitted:
    """Write a candidate's architecture, recipe, training config and provenance, and register the architecture.

    Args:
        name: of the architecture, and of the files.
        candidate: what to write.
        folder: where to.
        training: config keys that the training config begins with, `_BASE_` among them.
        provenance: what is known about it.

    Raises:
        OutputError: the folder cannot be written.
    """
    arch = candidate.arch and replace(candidate.arch, name=name, source=_source(provenance))
    facts = {"name": name, "values": dict(candidate), "candidate": candidate.vector.tolist(), **provenance}
    return _write(name, arch, candidate.recipe, folder, training, facts, _source(provenance))


def emit_scaled(
    name: str,
    origin: Candidate,
    macs: float,
    folder: Path,
    training: Mapping[str, Any],
    provenance: Mapping[str, Any],
    recipe: Mapping[str, Any],
    scaling: Mapping[str, Any],
    num_classes: int = 1000,
) -> Emitted:
    """The same for a network that compound scaling makes of a candidate's (Sec. 4.2: A of B, F and G of E).

    Args:
        name: of the scaled network.
        origin: the candidate; its recipe is kept.
        macs: of the scaled network.
        folder, training, provenance: as for `emit`.
        recipe: fields that change, such as `{"drop_path_rate": 0.2}`, which the paper gives F and G.
        scaling: `depth`, `width`, `resolution` and `tolerance` of `scale_to_macs`.
        num_classes: outputs of the networks whose MACs are counted.

    Raises:
        UsageError: the candidate has no network, or nothing of these MACs can be made of it.
        OutputError: the folder cannot be written.
    """
    if origin.arch is None:
        raise UsageError(f"scaled {name}: the space has no architectures")
    scaled = scale_to_macs(origin.arch, macs, name=name, num_classes=num_classes, **scaling)
    about = f"scaled to {scaled.macs / 1e6:.1f} M MACs from a result of {_source(provenance)}"
    arch = replace(scaled.defn, source=about)
    factors = {key: getattr(scaled, key) for key in ("multiplier", "depth", "width", "resolution", "macs")}
    trained = origin.recipe and recipe_from_dict({**asdict(origin.recipe), **recipe})
    facts = {"name": name, "columns": {"macs": scaled.macs}, "scaled_by": factors, "scaled_from": dict(provenance)}
    return _write(name, arch, trained, folder, training, facts, about)


def _write(
    name: str,
    arch: ArchDef | None,
    recipe: Recipe | None,
    folder: Path,
    training: Mapping[str, Any],
    facts: Mapping[str, Any],
    about: str,
) -> Emitted:
    for part in ("archs", "recipes"):
        make_folder(folder / part)
    files = {"provenance": folder / f"{name}.json"}
    _write_text(files["provenance"], json.dumps(facts, indent=1) + "\n")
    config = _nested(training)
    if base := config.pop(_BASE, None):
        config = {_BASE: os.path.relpath(Path(base).expanduser().resolve(), folder.resolve()), **config}
    if recipe is not None:
        files["recipe"] = folder / "recipes" / f"{name}.yaml"
        _write_text(files["recipe"], dump_recipe(recipe))
        config = _merged(config, {"RECIPE": f"recipes/{name}.yaml"})
    if arch is not None:
        files["arch"] = folder / "archs" / f"{name}.yaml"
        _write_text(files["arch"], dump_arch(arch))
        config = _merged(config, {"MODEL": {"ARCH": f"archs/{name}.yaml"}})
        _register(files["arch"])
    if config:
        files["config"] = folder / f"{name}.yaml"
        config = {"OUTPUT_DIR": f"output/{name}", **config}
        _write_text(files["config"], f"# {about}\n" + yaml.safe_dump(config, sort_keys=False))
    return Emitted(name, **files)


def _source(provenance: Mapping[str, Any]) -> str:
    return (
        f"NARS in {provenance['space']}, seed {provenance['seed']}, {provenance['trials']} trials: "
        f"predicted {provenance['predicted']:.4g}"
    )


def _register(file: Path) -> None:
    try:
        register_arch(file)
    except UsageError as error:  # of another search of this process
        logger.warning("%s; it is not registered", error)


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as f:
        f.write(text.encode())


def _nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Keys such as SOLVER.LR as sections."""
    found: dict[str, Any] = {}
    for key, value in keys.items():
        *sections, leaf = key.split(".")
        inner = {leaf: _nested(value) if isinstance(value, Mapping) else value}
        for section in reversed(sections):
            inner = {section: inner}
        found = _merged(found, inner)
    return found


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of both; where both have a key, the second's."""
    found = dict(first)
    for key, value in second.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = _merged(found[key], value) if both else value
    return found
