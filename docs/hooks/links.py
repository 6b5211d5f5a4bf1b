"""Links that work on GitHub work on the site too: those out of docs/ lead to pages that show the file."""

import ast
import functools
import os
import re
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")
# Files that have a page of their own.
PAGES = {"fbnetv3/config/defaults.py": "config.md"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sbatch": "bash"}
LONGEST_FENCE = "~" * 12


def on_files(files, config):
    """Add a page for each file outside docs/ that a page links to."""
    wanted = {}
    for file in files.documentation_pages():
        for _, target, _ in LINK.findall(file.content_string):
            if path := outside(file.src_uri, target):
                wanted[path] = None
    for path in sorted(wanted):
        files.append(
            File.generated(config, f"source/{path}.md", content=shown(path), inclusion=InclusionLevel.NOT_IN_NAV)
        )
    return files


def on_page_markdown(markdown, page, config, files):
    def replaced(link):
        text, target, anchor = link.groups()
        path = outside(page.file.src_uri, target)
        if path in PAGES and not text.startswith("`"):
            return f"[{text}]({get_relative_url(PAGES[path], page.file.src_uri)})"
        if path:
            address = get_relative_url(files.get_file_from_path(f"source/{path}.md").url, page.file.url)
            line = line_of(path, text.strip("`")) if path.endswith(".py") else None
            words = f"<code>{text.strip('`')}</code>" if text.startswith("`") else text
            return f'<a href="{address}{f"#__codelineno-0-{line}" if line else ""}">{words}</a>'
        if target.endswith(".ipynb") and "{ download }" not in markdown[link.end() : link.end() + 12]:
            return f"[{text}]({target.removesuffix('.ipynb')}.md{anchor or ''})"
        return link[0]

    return LINK.sub(replaced, markdown)


def outside(page, target):
    """The path, in the repository, of a file outside docs/ that a page links to; None for any other link."""
    if "://" in target:
        return None
    path = Path(os.path.normpath((ROOT if page == "index.md" else (DOCS / page).parent) / target))
    if not path.is_file() or not path.is_relative_to(ROOT) or path.is_relative_to(DOCS):
        return None
    return path.relative_to(ROOT).as_posix()


def shown(path):
    """The page that shows a file."""
    language = LANGUAGES.get(Path(path).suffix, "text")
    return (
        f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# {path}\n\n"
        f'{LONGEST_FENCE}{language} linenums="1"\n{(ROOT / path).read_text().rstrip()}\n{LONGEST_FENCE}\n'
    )


@functools.cache
def definitions(path):
    """Lines of the functions, classes, methods and constants of a Python file, by name."""
    found = {}
    for node in ast.parse((ROOT / path).read_text()).body:
        for name in names_of(node):
            found[name] = node.lineno
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}": inner.lineno for inner in node.body for name in names_of(inner)}
    return found


def names_of(node):
    """What a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    return [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]


def line_of(path, name):
    """The line of a Python file that defines a name; None if there is none."""
    return definitions(path).get(name)
