"""Execute docs/tour.ipynb in a temporary folder and save it with its outputs."""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("tour.ipynb")


def main():
    os.environ["PYTHONPATH"] = str(NOTEBOOK.parents[1])  # the kernel imports this checkout
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False)
        client.execute(cwd=folder)
    notebook.metadata.pop("language_info", None)  # describes this machine
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
