"""Render notebooks as pages, with their saved outputs."""

import base64
import json
from pathlib import Path

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]


def on_files(files, config):
    for notebook in sorted((ROOT / "docs").glob("*.ipynb")):
        text, pictures = page(notebook)
        files.append(File.generated(config, f"{notebook.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, name, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def page(file):
    """Return a notebook as Markdown, and its images by name."""
    parts, pictures = [], {}
    for cell in json.loads(file.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        printed = ""
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                printed += "".join(output["text"])
                continue
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{file.stem}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![Output of the cell above]({name})")
            elif "text/plain" in data:
                printed += "".join(data["text/plain"]) + "\n"
        if printed:
            parts.append(f"``` {{ .text .output }}\n{printed.rstrip()}\n```")
    first, *rest = parts
    note = f"*This page is a [notebook]({file.name}){{ download }}: download it and run it yourself.*"
    return "\n\n".join([first, note, *rest]) + "\n", pictures
