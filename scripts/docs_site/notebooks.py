"""Notebooks: Python files in ``docs/notebooks`` as executed ``.ipynb`` files and as pages.

A source is a Python file of cells: ``# %%`` begins code, ``# %% [markdown]`` text whose lines are
comments. ``python -m scripts.docs_site.notebooks`` executes all and writes the files beside them.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat

from noisyml.storage.files import write_atomically

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
_CELL = re.compile(r"^# %%( \[markdown\])?\n", flags=re.MULTILINE)
#: Seconds that a cell may take.
_PATIENCE = 120


def sources() -> list[Path]:
    """The Python files."""
    return sorted(FOLDER.glob("*.py"))


def files() -> list[Path]:
    """The notebooks."""
    return sorted(FOLDER.glob("*.ipynb"))


def from_source(text: str) -> Any:
    """A notebook without outputs.

    Args:
        text: of a source; what stands before its first cell is left out.
    """
    pieces = _CELL.split(text)[1:]
    cells = []
    for number, (kind, body) in enumerate(zip(pieces[::2], pieces[1::2], strict=True)):
        if kind:
            words = re.sub(r"^# ?", "", body.strip("\n"), flags=re.MULTILINE)
            cell = nbformat.v4.new_markdown_cell(words)
        else:
            cell = nbformat.v4.new_code_cell(body.strip("\n"))
        cell["id"] = f"cell-{number}"
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})


def executed(notebook: Any) -> Any:
    """A notebook with the outputs of a run in an empty folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    from nbclient import NotebookClient

    with TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=_PATIENCE, resources={"metadata": {"path": folder}}
        )
        notebook = client.execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_log(output)]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    return notebook


def _is_log(output: Any) -> bool:
    """True for what is said on the way, which has times and folders in it."""
    lines = output.get("text", "").splitlines()
    told = all(re.match(r"\[\d{4}-", line) for line in lines if line)
    return output.get("name") == "stderr" or (output.get("name") == "stdout" and told)


def page(file: Path) -> str:
    """A notebook as a page: text, code and what it gave."""
    notebook = nbformat.read(file, as_version=4)
    parts = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for place, output in enumerate(cell.outputs):
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f"![output]({_picture(file, number, place)})")
            elif "text/html" in data:
                parts.append(_table(data["text/html"]))
            else:
                text = output.get("text") or data.get("text/plain", "")
                parts.append(f"```text\n{text.rstrip()}\n```")
    parts.append(f"The notebook: `docs/notebooks/{file.name}`.")
    return "\n\n".join(parts) + "\n"


def _table(html: str) -> str:
    """The table of a data frame, without the style around it."""
    found = re.search(r"<table.*</table>", html, flags=re.DOTALL)
    plain = re.sub(r"<table[^>]*>", "<table>", found[0] if found else html)
    return f'<div class="frame">\n{plain}\n</div>'


def _picture(file: Path, cell: int, output: int) -> str:
    return f"{file.stem}-{cell}-{output}.png"


def write_pictures(folder: Path) -> None:
    """Write the pictures of all notebooks beside their pages."""
    for file in files():
        for number, cell in enumerate(nbformat.read(file, as_version=4).cells):
            for place, output in enumerate(cell.get("outputs", [])):
                if "image/png" in output.get("data", {}):
                    content = base64.b64decode(output["data"]["image/png"])
                    write_atomically(folder / _picture(file, number, place), content)


def main() -> None:
    """Execute every source and write its notebook."""
    for source in sources():
        notebook = executed(from_source(source.read_text(encoding="utf-8")))
        write_atomically(source.with_suffix(".ipynb"), nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    main()
