"""README, docs and the notebook as tests read them: their text, and the code and commands in it."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tour.ipynb"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), NOTEBOOK]


def text_of(page):
    """A page's text; a notebook's outside its cells of code."""
    if page.suffix != ".ipynb":
        return page.read_text()
    return "\n".join("".join(cell["source"]) for cell in cells_of(page, "markdown"))


def cells_of(notebook, kind):
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


def blocks(page, language):
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)


def commands(page):
    """The shell commands of a page, in order, each in one line."""
    lines = [
        line.strip() for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()
    ]
    return [" ".join(line.split()) for line in lines if line]
