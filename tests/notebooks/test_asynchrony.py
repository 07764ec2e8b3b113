"""The notebook on asynchrony runs from top to bottom, in small size, in a fresh kernel."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / 'notebooks' / 'asynchrony.ipynb', as_version=4)


def test_it_runs(notebook, monkeypatch):
    monkeypatch.setenv('SEQTRAIN_NOTEBOOK', 'small')
    NotebookClient(notebook, timeout=120, kernel_name='python3').execute()
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    assert 'same bits: True' in ''.join(output.get('text', '') for output in outputs)
    assert sum('image/png' in output.get('data', {}) for output in outputs) == 4


def test_it_is_stored_without_outputs(notebook):
    assert not any(cell.get('outputs') for cell in notebook.cells)
