"""Run the notebooks and store what they show: `python docs/notebooks.py [NAME…]`, after every change to their cells."""

from __future__ import annotations

import base64
import hashlib
import io
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
WIDGET = "application/vnd.jupyter.widget-view+json"  # progress bars and controls, which need a kernel


def checksum(notebook: nbformat.NotebookNode) -> str:
    """Of the code that the stored outputs are of."""
    code = [cell["source"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()


def smaller(png: str) -> str:
    """The same picture in 128 colours, which plots hardly need more than."""
    file = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(
        file, format="png", optimize=True
    )
    return base64.b64encode(file.getvalue()).decode()


def store(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, record_timing=False, resources={"metadata": {"path": FOLDER}}).execute()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            shown = [
                out for out in cell["outputs"] if out.get("name") != "stderr" and WIDGET not in out.get("data", {})
            ]
            cell["outputs"] = shown
            for data in [out["data"] for out in shown if "image/png" in out.get("data", {})]:
                data["image/png"] = smaller(data["image/png"])
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook["metadata"] = {"kernelspec": kernel, "language_info": {"name": "python"}, "ran": checksum(notebook)}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for found in sorted(FOLDER.glob("*.ipynb")):
        if found.stem in sys.argv[1:] or not sys.argv[1:]:
            print(found.stem)
            store(found)
