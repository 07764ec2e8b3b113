"""The package as a whole: its parts by name, and its types for others' checkers."""

import pathlib
import subprocess
import sys
import tarfile

import pytest

import seqtrain

FOLDER = pathlib.Path(seqtrain.__file__).parent


def test_every_part_can_be_named_without_an_import_of_its_own():
    parts = {path.parent.name for path in FOLDER.glob('*/__init__.py')}
    assert parts <= set(dir(seqtrain))
    for name in parts:
        assert getattr(seqtrain, name).__name__ == f'seqtrain.{name}'
    with pytest.raises(AttributeError, match="no attribute 'loses'"):
        _ = seqtrain.loses


def test_a_part_is_imported_when_it_is_named():
    code = "import sys, seqtrain; assert 'jax' not in sys.modules; seqtrain.losses.lf_mmi"
    subprocess.run([sys.executable, '-c', code], check=True)


def test_the_types_are_for_others_too():
    assert (FOLDER / 'py.typed').is_file()
    assert "'py.typed'" in (FOLDER.parent / 'setup.py').read_text()


@pytest.mark.slow
def test_a_source_archive_holds_what_the_repository_holds(tmp_path):
    if not (FOLDER.parent / '.git').exists():
        pytest.skip('no repository to compare with')
    command = [sys.executable, 'setup.py', '-q', 'egg_info', f'--egg-base={tmp_path}']
    command += ['sdist', f'--dist-dir={tmp_path}']
    subprocess.run(command, cwd=FOLDER.parent, check=True, capture_output=True)
    (archive,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(archive) as content:
        names = {name.partition('/')[2] for name in content.getnames()}
    listed = subprocess.run(
        ['git', 'ls-files'], cwd=FOLDER.parent, capture_output=True, text=True, check=True
    )
    hidden = {'.gitignore'}
    assert set(listed.stdout.split()) - hidden <= names
