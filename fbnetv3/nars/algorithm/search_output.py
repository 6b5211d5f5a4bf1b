"""Files that a search writes for its recommendations: architectures, recipes, training configs and provenance."""

from __future__ import annotations

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
from fbnetv3.nars.algorithm.search_settings import SCALING_ARGUMENTS
from fbnetv3.nars.space.candidate import Candidate
from fbnetv3.utils.files import make_folder, write_json, write_text
from fbnetv3.utils.nested_keys import flatten, merge, nest
from fbnetv3.utils.yaml_files import BASE_KEY

logger = logging.getLogger(__name__)

_SCALING_RESULTS = ("multiplier", "depth", "width", "resolution", "macs")


@dataclass(frozen=True)
class OutputFiles:
    """Files of a recommendation.

    Attributes:
        name: name of the architecture, under which it is registered.
        provenance: JSON file with the values of the candidate, its prediction and its origin.
        arch: architecture file; None if the space has no architectures.
        recipe: recipe file; None if the space has no recipes.
        config: training config that names both; None if the space has neither.
    """

    name: str
    provenance: Path
    arch: Path | None = None
    recipe: Path | None = None
    config: Path | None = None


class OutputFolder:
    """The folder of a search's recommendations.

    Args:
        path: path of the folder, which is created if it does not exist.
        training_config: config keys, such as `_BASE_`, to begin every training config with.
    """

    def __init__(self, path: Path, training_config: Mapping[str, Any]) -> None:
        self.path = path
        self.training_config = nest(flatten(training_config))

    def write_recommendation(self, name: str, candidate: Candidate, provenance: Mapping[str, Any]) -> OutputFiles:
        """Write a candidate's architecture, recipe, training config and provenance; register the architecture.

        Args:
            name: name of the architecture and of the files.
            candidate: the recommended candidate.
            provenance: its prediction and origin.

        Raises:
            OutputError: the folder cannot be written.
        """
        source = _describe_source(provenance)
        arch = candidate.arch and replace(candidate.arch, name=name, source=source)
        record = {
            "name": name,
            "values": dict(candidate),
            "candidate": candidate.vector.tolist(),
            **provenance,
        }
        return self._write(name, arch, candidate.recipe, record, source)

    def write_scaled_network(
        self,
        name: str,
        candidate: Candidate,
        network: Mapping[str, Any],
        provenance: Mapping[str, Any],
        num_classes: int = 1000,
    ) -> OutputFiles:
        """Scale a recommended network to a MACs target and write its files (Sec. 4.2: A from B, F and G from E).

        Args:
            name: name of the scaled network.
            candidate: the recommended candidate.
            network: `macs`, arguments of `scale_to_macs`, and `recipe`: fields to change, such as
                `{"drop_path_rate": 0.2}`, which the paper gives F and G.
            provenance: provenance of the recommendation.
            num_classes: number of classes of the networks whose MACs are counted.

        Raises:
            UsageError: the candidate has no network, or it cannot be scaled to these MACs.
            OutputError: the folder cannot be written.
        """
        if candidate.arch is None:
            raise UsageError("the space has no architectures to scale")
        arguments: dict[str, Any] = {key: network[key] for key in SCALING_ARGUMENTS if key in network}
        scaled = scale_to_macs(candidate.arch, network["macs"], name=name, num_classes=num_classes, **arguments)
        source = f"scaled to {scaled.macs / 1e6:.1f} M MACs from a result of {_describe_source(provenance)}"
        # The candidate's recipe with some fields changed
        recipe = candidate.recipe
        if recipe is not None:
            recipe = recipe_from_dict({**asdict(recipe), **network.get("recipe", {})})
        factors = {key: getattr(scaled, key) for key in _SCALING_RESULTS}
        record = {
            "name": name,
            "columns": {"macs": scaled.macs},
            "scaled_by": factors,
            "scaled_from": dict(provenance),
        }
        return self._write(name, replace(scaled.arch, source=source), recipe, record, source)

    def _write(
        self, name: str, arch: ArchDef | None, recipe: Recipe | None, record: Mapping[str, Any], source: str
    ) -> OutputFiles:
        # The config refers to the other files by relative paths, so the folder can be moved
        files = {"provenance": self.path / f"{name}.json"}
        config = self._config_with_base()
        make_folder(self.path)
        write_json(files["provenance"], record)
        if recipe is not None:
            files["recipe"] = make_folder(self.path / "recipes") / f"{name}.yaml"
            write_text(files["recipe"], dump_recipe(recipe))
            config = merge(config, {"RECIPE": f"recipes/{name}.yaml"})
        if arch is not None:
            files["arch"] = make_folder(self.path / "archs") / f"{name}.yaml"
            write_text(files["arch"], dump_arch(arch))
            config = merge(config, {"MODEL": {"ARCH": f"archs/{name}.yaml"}})
            _register_arch(files["arch"])
        if config:
            files["config"] = self.path / f"{name}.yaml"
            config = {"OUTPUT_DIR": f"output/{name}", **config}
            write_text(files["config"], f"# {source}\n{yaml.safe_dump(config, sort_keys=False)}")
        return OutputFiles(name, **files)

    def _config_with_base(self) -> dict[str, Any]:
        """Return the training config with `_BASE_` first and relative to this folder."""
        config = dict(self.training_config)
        base = config.pop(BASE_KEY, None)
        if not base:
            return config
        base_path = Path(base).expanduser().resolve()
        return {BASE_KEY: os.path.relpath(base_path, self.path.resolve()), **config}


def _describe_source(provenance: Mapping[str, Any]) -> str:
    return (
        f"NARS in {provenance['space']}, seed {provenance['seed']}, {provenance['trials']} trials: "
        f"predicted {provenance['predicted']:.4g}"
    )


def _register_arch(file: Path) -> None:
    try:
        register_arch(file)
    except UsageError as error:  # an earlier search of this process has registered the name
        logger.warning("%s; it is not registered", error)
