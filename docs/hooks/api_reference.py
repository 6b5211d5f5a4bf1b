"""A page for each public package, of what its `__init__` offers; mkdocstrings fills it from the docstrings.

Nothing is imported for it, so that detectron2 need not be there.
"""

import ast
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
# Packages by the order in which they claim what several of them offer; and what belongs to a page besides.
PACKAGES = {
    "fbnetv3.arch": (),
    "fbnetv3.modeling": (),
    "fbnetv3.nars": (
        "fbnetv3.nars.algorithm.search_settings.SearchSettings",
        "fbnetv3.nars.predictor.accuracy_predictor.PredictorSettings",
        "fbnetv3.nars.algorithm.evolution.EvolutionSettings",
    ),
    "fbnetv3.data": (),
    "fbnetv3.config": (),
    "fbnetv3.training": (
        "fbnetv3.config.recipe.Recipe",
        "fbnetv3.config.recipe.load_recipe",
        "fbnetv3.config.recipe.save_recipe",
    ),
    "fbnetv3.detection": (),
    "fbnetv3.deploy": (
        "fbnetv3.model_zoo.pretrained.TrainedClassifier",
        "fbnetv3.model_zoo.pretrained.from_config",
        "fbnetv3.model_zoo.pretrained.from_name",
    ),
    "fbnetv3.model_zoo": (),
    "fbnetv3": (),
}


def on_files(files, config):
    claimed = {}
    for package, more in PACKAGES.items():
        files.append(File.generated(config, f"reference/{package}.md", content=page(package, more, claimed)))
    return files


def page(package, more, claimed):
    """A package's page, as Markdown.

    Args:
        package: its name.
        more: full names of objects that belong to its page besides.
        claimed: page and place of each object that others have documented, by every name that it has; what this page
            documents is added.
    """
    init = ROOT.joinpath(*real_name(package).split("."), "__init__.py")
    tree = ast.parse(init.read_text())
    about = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    lines, elsewhere = [f"# {package}", "", about, ""], []
    for name, home in [*offered(tree), *((full.rpartition(".")[2], full) for full in more)]:
        if home in claimed:
            other, place = claimed[home]
            elsewhere.append(f"| `{package}.{name}` | [{other}.{name}]({other}.md#{place}) |")
            continue
        claimed[home] = claimed[f"{package}.{name}"] = package, real_name(home)
        shown = home if home in more else f"{package}.{name}"
        lines += [
            f"::: {real_name(home)}",
            "    options:",
            f'      heading: "{shown}"',
            f'      toc_label: "{name}"',
            "",
        ]
    if elsewhere:
        lines += ["| also here | see |", "| --- | --- |", *elsewhere, ""]
    return "\n".join(lines)


def offered(tree):
    """Public names of a package and where each is defined, in the order of its imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "fbnetv3":
            for alias in node.names:
                if not (alias.asname or alias.name).startswith("_") and alias.name != "MissingPackageError":
                    yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def real_name(name):
    """Where a module lies in a checkout."""
    return name.removeprefix("fbnetv3.") if name.startswith("fbnetv3.model_zoo") else name
