"""OpenFst files: round trips, both text forms, and what a damaged file says."""

import kaldifst
import numpy as np
import pytest
from path_enumeration import enumerate_paths

from seqtrain.fsa import Fsa, FsaError, min_frames

INF = np.inf


def small_fsa():
    arcs = [(1, 0, 2, -0.5), (0, 0, 0, -1.25), (0, 2, 1, 0.1), (1, 2, 2, 0.0), (2, 1, 3, -3.0)]
    return Fsa.from_arcs(arcs, np.array([-INF, 0.0, -INF]), np.array([-INF, -0.75, 0.0]))


def two_starts():
    arcs = [(0, 2, 0, -0.5), (1, 2, 0, -0.25), (2, 2, 1, -1.0), (1, 0, 1, 0.0)]
    return Fsa.from_arcs(arcs, np.array([-1.0, -2.0, -INF]), np.array([0.5, -INF, 0.0]))


def test_wsj_denominator_has_its_documented_size(data_dir):
    fsa = Fsa.read(data_dir / 'wsj_den' / 'den_fsm_wsj.txt')
    assert (fsa.num_states, fsa.num_arcs, fsa.num_pdfs) == (3033, 51022, 84)
    assert np.isfinite(fsa.final).sum() == 942
    assert np.flatnonzero(np.isfinite(fsa.initial)).tolist() == [0]
    first = (fsa.src[0], fsa.dst[0], fsa.pdf[0])
    assert first == (0, 2307, 82)
    np.testing.assert_allclose(fsa.weight[0], -7.2794094, rtol=1e-6)
    assert min_frames(fsa) == 2


@pytest.mark.parametrize('ending', ['txt', 'fst'])
def test_round_trip_is_exact(tmp_path, ending):
    fsa = small_fsa()
    fsa.write(tmp_path / f'a.{ending}')
    again = Fsa.read(tmp_path / f'a.{ending}')
    for frames in range(1, 5):
        assert enumerate_paths(again, frames) == enumerate_paths(fsa, frames)
    assert again.num_states == fsa.num_states


@pytest.mark.parametrize('path', ['none/a.txt', 'none/a.fst', '/dev/full'])
def test_a_file_that_cannot_be_written_is_an_error(tmp_path, path):
    with pytest.raises(OSError, match=path):
        small_fsa().write(tmp_path / path)


@pytest.mark.parametrize('ending', ['txt', 'fst'])
def test_several_initial_states_are_written_as_one(tmp_path, ending):
    fsa = two_starts()
    fsa.write(tmp_path / f'a.{ending}')
    again = Fsa.read(tmp_path / f'a.{ending}')
    assert np.isfinite(again.initial).sum() == 1
    for frames in range(4):
        expected, found = enumerate_paths(fsa, frames), enumerate_paths(again, frames)
        assert found.keys() == expected.keys()
        for labels, weights in expected.items():
            np.testing.assert_allclose(found[labels], weights, atol=1e-6)


def test_binary_is_what_kaldifst_reads(tmp_path):
    small_fsa().write(tmp_path / 'a.fst')
    graph = kaldifst.StdVectorFst.read(str(tmp_path / 'a.fst'))
    assert graph.start == 1
    costs = {arc.ilabel: arc.weight.value for arc in kaldifst.ArcIterator(graph, 0)}
    np.testing.assert_allclose([costs[1], costs[2]], [1.25, -0.1], rtol=1e-6)


@pytest.mark.parametrize(
    'text',
    ['0 1 3\n1 1 2 0.5\n1\n', '0 1 3 3\n1 1 2 2 0.5\n1\n', '\n0 1 3 3 0\n1 1 2 2 0.5\n\n1 0\n'],
    ids=['acceptor', 'transducer', 'blank lines'],
)
def test_text_forms(tmp_path, text):
    path = tmp_path / 'a.txt'
    path.write_text(text)
    fsa = Fsa.read(path)
    assert fsa.pdf.tolist() == [2, 1]
    np.testing.assert_allclose(fsa.weight, [0.0, -0.5])
    np.testing.assert_array_equal(fsa.final, np.float32([-INF, 0.0]))


def test_infinite_cost_means_not_there(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('0 1 1 1 Infinity\n0 1 2 2 1\n1\n')
    assert Fsa.read(path).weight.tolist() == [-INF, -1.0]


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('0 1 1 1 0.5\n1 2 0 0\n2\n', r'a\.txt:2: label 0.*epsilon'),
        ('0 1 1 2 0.5\n1\n', r'a\.txt:1: input label 1 and output label 2 differ'),
        ('0 1 1 1 0.5\n0 1 2\n1\n', r'a\.txt:2: an acceptor arc'),
        ('0 1 x x 1\n1\n', r"a\.txt:1: label 'x' is not an integer"),
        ('0 1 99999999999 1\n1\n', r'a\.txt:1: label 99999999999 does not fit into 32 bits'),
        ('0 1 1 1 cheap\n1\n', r"a\.txt:1: weight 'cheap' is not a number"),
        ('0 1 1 1 nan\n1\n', r'a\.txt:1: weight nan'),
        ('0 1 1 1 -inf\n1\n', r'a\.txt:1: weight -inf'),
        ('0 1 1 1 1 1\n1\n', r'a\.txt:1: 6 fields'),
        ('0 -1 1 1 1\n1\n', r'a\.txt:1: state -1'),
        ('0 999999999 1 1 1\n1\n', r'a\.txt:1: state 999999999 in a file of 2 lines'),
        ('0 1 1 1 1\n1\n1 2\n', r'a\.txt:3: state 1 is made final a second time'),
        ('0 1 1 1 1\n', r'a\.txt: No final state'),
        ('\n', r'a\.txt: empty file'),
    ],
)
def test_bad_text_names_file_and_line(tmp_path, text, message):
    path = tmp_path / 'a.txt'
    path.write_text(text)
    with pytest.raises(FsaError, match=message):
        Fsa.read(path)


def test_bad_binary_is_an_error(tmp_path):
    small_fsa().write(tmp_path / 'a.fst')
    whole = (tmp_path / 'a.fst').read_bytes()
    (tmp_path / 'cut.fst').write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FsaError, match='truncated'):
        Fsa.read(tmp_path / 'cut.fst')
    # The first state's count of arcs.
    (tmp_path / 'count.fst').write_bytes(whole[:70] + b'\xff' * 8 + whole[78:])
    with pytest.raises(FsaError, match=r'count\.fst: damaged'):
        Fsa.read(tmp_path / 'count.fst')
    (tmp_path / 'b.fst').write_text('0 1 1 1\n')
    with pytest.raises(FsaError, match=r'ending \.txt'):
        Fsa.read(tmp_path / 'b.fst')
    with pytest.raises(FileNotFoundError, match=r'nothing\.fst'):
        Fsa.read(tmp_path / 'nothing.fst')


def test_binary_with_epsilon_is_an_error(tmp_path):
    graph = kaldifst.compile('0 1 0 0 1\n1\n')
    graph.write(str(tmp_path / 'a.fst'))
    with pytest.raises(FsaError, match='State 0: label 0'):
        Fsa.read(tmp_path / 'a.fst')
