"""The notebooks run from top to bottom, and are kept without outputs."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KERNEL = ROOT / "notebooks" / "02_write_your_own_hook.ipynb"
name = {"ids": lambda path: path.stem}


@pytest.mark.parametrize("path", NOTEBOOKS, **name)
def test_a_notebook_is_valid_cleared_and_begins_with_its_title(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# ")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path != KERNEL], **name)
def test_every_cell_runs(path):
    """In this process, cell by cell: the same code that a kernel would be sent."""
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{path.name}, cell {number}", "exec"), names)  # noqa: S102


@pytest.mark.slow
def test_a_kernel_runs_one_as_a_person_does(tmp_path):
    notebook = nbformat.read(KERNEL, as_version=4)
    NotebookClient(notebook, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
