"""The lattice notebook runs from top to bottom in a fresh kernel."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / 'notebooks' / 'lattices.ipynb', as_version=4)


def test_it_runs(notebook):
    NotebookClient(notebook, timeout=120, kernel_name='python3').execute()
    printed = ''.join(
        output.get('text', '') for cell in notebook.cells for output in cell.get('outputs', [])
    )
    assert 'oracle errors: 0' in printed
    assert 'does not have the word(s) eleven' in printed
    assert 'valid: True' in printed


def test_it_is_stored_without_outputs(notebook):
    assert not any(cell.get('outputs') for cell in notebook.cells)
