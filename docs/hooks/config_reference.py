"""The page of all config keys, made of the comments in the files that define them."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
HEAD = """# Config reference

Every key, its default and what it does. A config sets some of them, `_BASE_` takes over those of another file, and
`KEY VALUE` pairs on the command line come last; see [Training](training.md). The settings of a search are
[in a table of their own](search.md#from-the-command-line).
"""
DETECTION = """## Detectors

Keys that [detection](detection.md) adds to
[detectron2's](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references).
"""


def on_files(files, config):
    files.append(File.generated(config, "config.md", content=page()))
    return files


def page():
    """The whole page, as Markdown."""
    parts = [HEAD]
    for section, about, keys in sections(ROOT / "fbnetv3/config/defaults.py"):
        parts.append(f"## {section or 'The run'}\n\n{about}{table(keys)}")
    parts.append(DETECTION)
    parts += [f"{about}{table(keys)}" for _, about, keys in sections(ROOT / "fbnetv3/detection/detection_config.py")]
    return "\n".join(parts)


def sections(file):
    """Sections of a file of defaults, in its order: each with the comment above it and its keys.

    Returns:
        (section, comment, [(key, default, comment), ...]) each; the first section's name is empty.

    Raises:
        ValueError: a key without a comment.
    """
    found, comment = {}, []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        line = line.strip()
        if line.startswith("# "):
            comment.append(line[2:])
            continue
        if assigned := re.fullmatch(r"(?:_C|cfg)\.([A-Z][\w.]*) = (.+)", line):
            key, default = assigned.groups()
            text = " ".join(comment)
            if re.fullmatch(r"(CN|CfgNode)\(\)", default):
                found[key] = (text + "\n\n" if text else "", [])
            elif not text:
                raise ValueError(f"{file}:{number}: {key} has no comment")
            else:
                found.setdefault(key.rpartition(".")[0], ("", []))[1].append((key, default, text))
        comment = []
    return [(section, about, keys) for section, (about, keys) in found.items() if keys]


def table(keys):
    """Keys as a Markdown table."""
    rows = [f"| `{key}` | `{default}` | {comment.replace('|', chr(92) + '|')} |" for key, default, comment in keys]
    return "\n".join(["| key | default | what it is |", "| --- | --- | --- |", *rows, ""])
