"""Make links to files outside docs/ work on the site, as they do on GitHub, by adding a page for each file."""

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
# Files with a generated page, which links use unless their text is the file name.
PAGES = {"fbnetv3/config/defaults.py": "config.md"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sbatch": "bash"}
LONGEST_FENCE = "~" * 12


def on_files(files, config):
    """Add a page for each file outside docs/ that a page links to."""
    linked = {}
    for file in files.documentation_pages():
        for _, target, _ in LINK.findall(file.content_string):
            if path := outside_path(file.src_uri, target):
                linked[path] = None
    for path in sorted(linked):
        files.append(
            File.generated(
                config, f"source/{path}.md", content=source_page(path), inclusion=InclusionLevel.NOT_IN_NAV
            )
        )
    return files


def on_page_markdown(markdown, page, config, files):
    def rewrite(link):
        text, target, anchor = link.groups()
        path = outside_path(page.file.src_uri, target)
        if path in PAGES and not text.strip("`").endswith(".py"):
            return f"[{text}]({get_relative_url(PAGES[path], page.file.src_uri)})"
        if path:
            url = get_relative_url(files.get_file_from_path(f"source/{path}.md").url, page.file.url)
            line = line_of(path, text.strip("`")) if path.endswith(".py") else None
            label = f"<code>{text.strip('`')}</code>" if text.startswith("`") else text
            return f'<a href="{url}{f"#__codelineno-0-{line}" if line else ""}">{label}</a>'
        if target.endswith(".ipynb") and "{ download }" not in markdown[link.end() : link.end() + 12]:
            return f"[{text}]({target.removesuffix('.ipynb')}.md{anchor or ''})"
        return link[0]

    return LINK.sub(rewrite, markdown)


def outside_path(page, target):
    """Return the repository path of a link target outside docs/, or None for any other link."""
    if "://" in target:
        return None
    path = Path(os.path.normpath((ROOT if page == "index.md" else (DOCS / page).parent) / target))
    if not path.is_file() or not path.is_relative_to(ROOT) or path.is_relative_to(DOCS):
        return None
    return path.relative_to(ROOT).as_posix()


def source_page(path):
    """Render a source file as a page."""
    language = LANGUAGES.get(Path(path).suffix, "text")
    return (
        f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# {path}\n\n"
        f'{LONGEST_FENCE}{language} linenums="1"\n{(ROOT / path).read_text().rstrip()}\n{LONGEST_FENCE}\n'
    )


@functools.cache
def definitions(path):
    """Map the functions, classes, methods and constants of a Python file to their lines."""
    lines = {}
    for node in ast.parse((ROOT / path).read_text()).body:
        for name in names_of(node):
            lines[name] = node.lineno
        if isinstance(node, ast.ClassDef):
            lines |= {
                f"{node.name}.{name}": inner.lineno for inner in node.body for name in names_of(inner)
            }
    return lines


def names_of(node):
    """Return the names that a statement defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id] if isinstance(node.target, ast.Name) else []
    return [target.id for target in getattr(node, "targets", []) if isinstance(target, ast.Name)]


def line_of(path, name):
    """Return the line of a Python file that defines a name, or None."""
    return definitions(path).get(name)
