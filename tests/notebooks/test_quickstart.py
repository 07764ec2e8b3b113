"""The notebook runs from top to bottom, in small size, in a fresh kernel."""

import pathlib
import shutil

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / 'notebooks' / 'quickstart.ipynb', as_version=4)


def test_quickstart_runs(notebook, tmp_path, monkeypatch):
    pytest.importorskip('espeakng_loader')
    # Compiling is most of the time, so compiled programs are kept (JAX finds them again only
    # under the same path); the corpus is made anew.
    cache = ROOT / '.jax_cache' / 'notebook'
    shutil.rmtree(cache / 'corpora', ignore_errors=True)
    monkeypatch.setenv('SEQTRAIN_CACHE', str(cache))
    monkeypatch.setenv('SEQTRAIN_NOTEBOOK', 'small')
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    NotebookClient(notebook, timeout=240, kernel_name='python3').execute()
    printed = ''.join(
        output.get('text', '') for cell in notebook.cells for output in cell.get('outputs', [])
    )
    assert '24 utterances' in printed
    assert 'valid: True' in printed
    assert 'WER ' in printed
    (workdir,) = tmp_path.glob('quickstart-*')
    assert (workdir / 'report.html').stat().st_size > 10_000


def test_the_notebook_is_stored_without_outputs_and_names_no_machine(notebook):
    for cell in notebook.cells:
        assert not cell.get('outputs')
        assert '/home/' not in cell.source
        assert cell.cell_type == 'markdown' or cell.execution_count is None
