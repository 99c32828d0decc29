# SPDX-License-Identifier: Apache-2.0
"""Runs the notebook in this folder, or that which is named, and keeps there what a reader sees of it."""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
PATIENCE_S = 300  # for a cell, and for the kernel to start


def main(path: Path) -> None:
    """What its cells write lies in the current folder then."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=PATIENCE_S, startup_timeout=PATIENCE_S, record_timing=False).execute()
    notebook.metadata.language_info = {"name": "python"}  # of whichever version
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data = {"image/png": output.data["image/png"]}  # no other form of the same
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "stream.ipynb")
