"""OpenFst binaries: round trip with words, what other tools make of a file, damaged ones."""

import kaldifst
import numpy as np
import pytest

from seqtrain.fsa import Fsa
from seqtrain.lattices import (
    LatticeError,
    LatticeGenerator,
    best_path,
    read_openfst,
    write_openfst,
)


@pytest.fixture
def lattice(graph, scores):
    return LatticeGenerator(graph, beam=1e3, lattice_beam=4.0, acoustic_scale=0.5).decode(scores(5))


@pytest.mark.parametrize('words', [None, True])
def test_round_trip(lattice, tmp_path, lattice_paths, words):
    write_openfst(tmp_path / 'lat.fst', lattice)
    again = read_openfst(tmp_path / 'lat.fst', lattice.words if words else None)
    assert again.words == lattice.words
    expected, found = lattice_paths(lattice), lattice_paths(again)
    assert sorted(p[:2] for p in found) == sorted(p[:2] for p in expected)
    assert [p[2] for p in found] == pytest.approx([p[2] for p in expected], abs=1e-5)


@pytest.mark.parametrize('path', ['none/lat.fst', '/dev/full'])
def test_a_file_that_cannot_be_written_is_an_error(lattice, tmp_path, path):
    with pytest.raises(OSError, match=path):
        write_openfst(tmp_path / path, lattice)


def test_without_acoustic_weights_it_can_be_rescored(lattice, scores, tmp_path):
    matrix = scores(5, seed=1)
    write_openfst(tmp_path / 'lat.fst', lattice, acoustic=False)
    again = read_openfst(tmp_path / 'lat.fst').rescore(0.5 * matrix)
    words, pdfs, weight = best_path(lattice.rescore(matrix))
    assert best_path(again)[0] == words
    np.testing.assert_array_equal(best_path(again)[1], pdfs)
    assert best_path(again)[2] == pytest.approx(weight, abs=1e-4)


def test_other_tools_find_the_best_path(lattice, tmp_path):
    write_openfst(tmp_path / 'lat.fst', lattice)
    fst = kaldifst.StdVectorFst.read(str(tmp_path / 'lat.fst'))
    words, pdfs, weight = best_path(lattice)
    _, inputs, outputs, cost = kaldifst.get_linear_symbol_sequence(kaldifst.shortest_path(fst, n=1))
    assert [label - 1 for label in inputs] == pdfs.tolist()
    assert tuple(fst.output_symbols.find(label) for label in outputs) == words
    assert cost.value == pytest.approx(-weight, abs=1e-4)


def test_a_transducer_of_another_tool(tmp_path, lattice_paths):
    text = '1 0 3 1 1.5\n1 2 4 0 0.5\n2 0 0 2 0.25\n2 0 0 1 Infinity\n0 3 1 0\n3 0.125\n'
    kaldifst.compile(text).write(str(tmp_path / 'lat.fst'))
    with pytest.raises(LatticeError, match=r'lat\.fst: no output symbols'):
        read_openfst(tmp_path / 'lat.fst')
    lattice = read_openfst(tmp_path / 'lat.fst', ['<eps>', 'x', 'y'])
    assert lattice_paths(lattice) == [
        ((3, 0), ('y',), pytest.approx(-0.875)),
        ((2, 0), ('x',), pytest.approx(-1.625)),
    ]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('0 1 3 7 1\n1\n', 'a word that is not in the table'),
        ('0 1 3 1 1\n0 1 0 1 1\n1\n', 'paths of different lengths'),
        ('0 1 3 1 1\n', 'No path of the lattice is left'),
        ('0\n', 'a lattice without arcs'),
        ('', 'a lattice without arcs'),
    ],
)
def test_what_is_no_lattice_is_named(tmp_path, text, message):
    kaldifst.compile(text).write(str(tmp_path / 'lat.fst'))
    with pytest.raises(LatticeError, match=rf'lat\.fst: .*{message}'):
        read_openfst(tmp_path / 'lat.fst', ['<eps>', 'x'])


def test_files_that_are_no_fst_are_named(tmp_path):
    (tmp_path / 'lat.fst').write_text('0 1 3 1\n')
    with pytest.raises(LatticeError, match=r'lat\.fst: not an OpenFst binary'):
        read_openfst(tmp_path / 'lat.fst')
    with pytest.raises(FileNotFoundError, match='no such file'):
        read_openfst(tmp_path / 'none.fst')


def test_an_acceptor_of_pdfs_has_no_words_of_the_table(tmp_path):
    arcs = [(0, 1, 2, -0.5), (1, 2, 0, -0.25)]
    initial, final = np.full(3, -np.inf), np.full(3, -np.inf)
    initial[0] = final[2] = 0.0
    Fsa.from_arcs(arcs, initial, final).write(tmp_path / 'fsa.fst')
    with pytest.raises(LatticeError, match='word that is not in the table'):
        read_openfst(tmp_path / 'fsa.fst', ['<eps>'])
