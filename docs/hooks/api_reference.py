"""Generate an API page for each public package from the names in its `__init__`; mkdocstrings adds the docstrings.

No package is imported, so detectron2 need not be installed.
"""

import ast
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
# Packages, and additional objects of their pages. An object exported by several packages is documented by the first.
PACKAGES = {
    "fbnetv3.arch": (),
    "fbnetv3.modeling": (),
    "fbnetv3.nars": (),
    "fbnetv3.data": (),
    "fbnetv3.config": (),
    "fbnetv3.training": (
        "fbnetv3.config.recipe.Recipe",
        "fbnetv3.config.recipe.load_recipe",
        "fbnetv3.config.recipe.save_recipe",
    ),
    "fbnetv3.detection": (),
    "fbnetv3.deploy": (
        "fbnetv3.model_zoo.pretrained.PretrainedClassifier",
        "fbnetv3.model_zoo.pretrained.load_classifier_from_config",
        "fbnetv3.model_zoo.pretrained.load_classifier_from_name",
    ),
    "fbnetv3.model_zoo": (),
    "fbnetv3": (),
}


def on_files(files, config):
    claimed = {}
    for package, more in PACKAGES.items():
        files.append(
            File.generated(config, f"reference/{package}.md", content=page(package, more, claimed))
        )
    return files


def page(package, more, claimed):
    """Render a package's page as Markdown.

    Args:
        package: its name.
        more: full names of additional objects.
        claimed: page and anchor of each object that earlier pages document, by each of its names; this page's objects
            are added.
    """
    init = ROOT.joinpath(*package.split("."), "__init__.py")
    tree = ast.parse(init.read_text())
    summary = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
    lines, elsewhere = [f"# {package}", "", summary, ""], []
    for name, home in [*exported_names(tree), *((full.rpartition(".")[2], full) for full in more)]:
        if home in claimed:
            other, anchor = claimed[home]
            elsewhere.append(f"| `{package}.{name}` | [{other}.{name}]({other}.md#{anchor}) |")
            continue
        claimed[home] = claimed[f"{package}.{name}"] = package, home
        shown = home if home in more else f"{package}.{name}"
        lines += [
            f"::: {home}",
            "    options:",
            f'      heading: "{shown}"',
            f'      toc_label: "{name}"',
            "",
        ]
    if elsewhere:
        lines += ["| also exported | see |", "| --- | --- |", *elsewhere, ""]
    return "\n".join(lines)


def exported_names(tree):
    """Yield the public names of a package and the full name of each, in the order of its imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "fbnetv3":
            for alias in node.names:
                if not (alias.asname or alias.name).startswith("_") and alias.name != "MissingPackageError":
                    yield alias.asname or alias.name, f"{node.module}.{alias.name}"
