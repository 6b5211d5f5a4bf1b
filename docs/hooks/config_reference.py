"""Generate the page of all config keys, from the declarations of the keys in the package."""

import re
from pathlib import Path

from mkdocs.structure.files import File

from fbnetv3.config.defaults import KEYS

ROOT = Path(__file__).resolve().parents[2]
INTRODUCTION = """# Config reference

All keys with their defaults. A config file sets some of them, inherits others from its `_BASE_`, and `KEY VALUE` pairs
on the command line override both; see [Training](training.md). The settings of a search have
[a table of their own](search.md#from-the-command-line).
"""
CLASSIFIER_COLUMNS = ("key", "default", "allowed", "meaning")
DETECTION = """## Detectors

Keys that [detection](detection.md) adds to
[detectron2's](https://detectron2.readthedocs.io/en/latest/modules/config.html#yaml-config-references).
"""


def on_files(files, config):
    files.append(File.generated(config, "config.md", content=page()))
    return files


def page():
    """Return the page as Markdown."""
    parts = [INTRODUCTION]
    for section, keys in classifier_sections().items():
        parts.append(f"## {section or 'The run'}\n\n{table(keys, CLASSIFIER_COLUMNS)}")
    parts.append(DETECTION)
    detection_config = ROOT / "fbnetv3/detection/detection_config.py"
    parts += [f"{introduction}{table(keys)}" for _, introduction, keys in sections(detection_config)]
    return "\n".join(parts)


def classifier_sections():
    """Return the keys of training configs by section, as (key, default, allowed values, meaning)."""
    by_section = {}
    for section, _, keys in sections(ROOT / "fbnetv3/config/defaults.py"):
        for name, _, text in keys:
            default = KEYS[name].default
            shown = f'"{default}"' if isinstance(default, str) else str(default)
            by_section.setdefault(section, []).append((name, shown, KEYS[name].describe(), text))
    return by_section


def sections(file):
    """Return the sections of a file of defaults, in order, with the comments above sections and keys.

    Returns:
        (section, comment, [(key, default, comment), ...]) each; the first section's name is empty.

    Raises:
        ValueError: a key has no comment.
    """
    by_name, comment = {}, []
    for number, line in enumerate(file.read_text().splitlines(), 1):
        if line.lstrip().startswith("# "):
            comment.append(line.strip()[2:])
            continue
        # Lines that are indented further, or assign to a key again, declare no key
        if assignment := re.fullmatch(r" {0,4}(?:cfg\.|declare\(\")([A-Z][\w.]*)(?: = |\", )(.+)", line):
            key, default = assignment.groups()
            text = " ".join(comment)
            if re.fullmatch(r"(CN|CfgNode)\(\)", default):
                by_name[key] = (text + "\n\n" if text else "", [])
            elif not text:
                raise ValueError(f"{file}:{number}: {key} has no comment")
            else:
                keys = by_name.setdefault(key.rpartition(".")[0], ("", []))[1]
                if key not in [other for other, *_ in keys]:
                    keys.append((key, default, text))
        comment = []
    return [(section, introduction, keys) for section, (introduction, keys) in by_name.items() if keys]


def table(keys, columns=("key", "default", "meaning")):
    """Return keys as a Markdown table."""
    lines = [row(columns), row(["---"] * len(columns))]
    for key, default, *texts in keys:
        lines.append(row([f"`{key}`", f"`{default}`", *(text.replace("|", "\\|") for text in texts)]))
    return "\n".join([*lines, ""])


def row(cells):
    return f"| {' | '.join(cells)} |"
