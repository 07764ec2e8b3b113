"""Who may import whom: the layout of the package, held by walking the imports."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / 'seqtrain'

# Each layer and the layers of ours that it may import.
ALLOWED = {
    'types': set(),
    'textfile': set(),
    'extras': set(),
    'fsa': {'types', 'textfile', 'extras'},
    'graphs': {'types', 'textfile', 'extras', 'fsa'},
    'ops': {'types', 'fsa'},
    'losses': {'types', 'ops'},
    'models': {'types'},
    'data': {'types', 'textfile', 'extras'},
    'exchange': set(),
    'decoding': {'types', 'textfile', 'extras', 'fsa', 'graphs'},
    'lattices': {'types', 'textfile', 'extras', 'fsa', 'graphs', 'ops', 'losses', 'decoding'},
    'report': {'extras'},
}
BELOW_TRAINING = sorted(ALLOWED)


def imported_names(file: pathlib.Path) -> set[str]:
    """Dotted names of all modules and symbols that a file imports, wherever the import stands."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f'{file}: relative import'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def files_of(layer: str) -> list[pathlib.Path]:
    folder = PACKAGE / layer
    return sorted(folder.rglob('*.py')) if folder.is_dir() else [PACKAGE / f'{layer}.py']


@pytest.mark.parametrize('layer', BELOW_TRAINING)
def test_a_layer_imports_only_what_is_below_it(layer):
    ours = {
        name.split('.')[1]
        for file in files_of(layer)
        for name in imported_names(file)
        if name.startswith('seqtrain.')
    }
    assert ours - {layer} <= ALLOWED[layer]


@pytest.mark.parametrize('layer', BELOW_TRAINING)
def test_only_training_sees_a_config_dict(layer):
    for file in files_of(layer):
        assert not any('ml_collections' in name for name in imported_names(file)), file


def test_every_folder_has_its_place_in_the_table():
    folders = {p.name for p in PACKAGE.iterdir() if (p / '__init__.py').exists()}
    assert folders - set(ALLOWED) <= {'training'}


def test_nothing_needs_tensorflow():
    for file in PACKAGE.rglob('*.py'):
        assert not any(name.split('.')[0] == 'tensorflow' for name in imported_names(file)), file
