"""The lattice search against brute force and against kaldi-decoder."""

import kaldi_decoder
import kaldifst
import numpy as np
import oracles
import pytest

from seqtrain.fsa import Fsa
from seqtrain.graphs import DecodingGraph, Lexicon, NGramLm, Topology, arpa, decoding_graph
from seqtrain.lattices import LatticeError, native, path_sums
from seqtrain.lattices.search import SearchGraph, compiled, search

WIDE = {'beam': 1e4, 'lattice_beam': 1e4}
BACKENDS = ('numpy',) if native.load() is None else ('numpy', 'native')


def key(paths):
    return sorted((pdfs, words) for pdfs, words, _ in paths)


def test_an_unpruned_lattice_has_every_path_once(graph, scores, graph_paths, lattice_paths):
    matrix = scores(4)
    lattice = search(SearchGraph.of(graph), matrix, **WIDE).validate(graph.num_pdfs)
    expected, found = graph_paths(graph, matrix), lattice_paths(lattice)
    assert len(expected) > 100
    assert key(found) == key(expected)
    np.testing.assert_allclose([p[2] for p in found], [p[2] for p in expected], atol=1e-4)
    assert lattice.num_frames == 4


@pytest.mark.parametrize('lattice_beam', [0.0, 1.0, 3.0])
def test_the_lattice_beam_is_exact(graph, scores, graph_paths, lattice_paths, lattice_beam):
    for seed in range(3):
        matrix = scores(4, seed)
        lattice = search(SearchGraph.of(graph), matrix, beam=1e4, lattice_beam=lattice_beam)
        every = graph_paths(graph, matrix)
        near = [path for path in every if path[2] >= every[0][2] - lattice_beam - 1e-6]
        found = lattice_paths(lattice)
        assert set(key(near)) <= set(key(found))  # nothing within the beam is lost
        assert found[0][2] == pytest.approx(every[0][2], abs=1e-4)
        # And every arc is on a path within it.
        used = {pair for pdfs, _, _ in near for pair in enumerate(pdfs)}
        emitting = lattice.pdf >= 0
        frames = lattice.time[lattice.src[emitting]]
        assert set(zip(frames.tolist(), lattice.pdf[emitting].tolist(), strict=True)) == used


def test_the_acoustic_scale_weighs_the_search(graph, scores, graph_paths, lattice_paths):
    matrix = scores(4)
    lattice = search(SearchGraph.of(graph), matrix, acoustic_scale=0.3, **WIDE)
    expected = [p[2] for p in graph_paths(graph, matrix, scale=0.3)]
    np.testing.assert_allclose([p[2] for p in lattice_paths(lattice)], expected, atol=1e-4)


def test_same_lattice_as_kaldi_decoder(data_dir):
    lexicon = Lexicon.read(data_dir / 'fsdd_unseen' / 'lexicon.txt')
    lines = (data_dir / 'fsdd_unseen' / 'train' / 'text').read_text().splitlines()
    texts = [line.split()[1:] for line in lines]
    topology = Topology.make('hmm3', len(lexicon.phones))
    graph = decoding_graph(lexicon, topology, NGramLm.estimate(texts, 2))
    rng = np.random.default_rng(0)
    matrix = rng.normal(scale=1.5, size=(60, topology.num_pdfs)).astype(np.float32)
    config = kaldi_decoder.LatticeSimpleDecoderConfig(
        beam=13.0, lattice_beam=6.0, determinize_lattice=False
    )
    reference = kaldi_decoder.LatticeSimpleDecoder(graph.fst, config)
    reference.decode(kaldi_decoder.DecodableCtc(matrix))
    found, raw = reference.get_raw_lattice()
    assert found
    lattice = search(SearchGraph.of(graph), matrix, beam=13.0, lattice_beam=6.0)
    assert lattice.num_states == raw.num_states
    assert lattice.depth() > 3
    rows = [line.split() for line in raw.to_str().splitlines()]
    arcs = [  # src dst in out graph,acoustic; what is 0 is left out
        (int(row[2]), int(row[3]), *[sum(map(float, cost.split(','))) for cost in row[4:] or ['0']])
        for row in rows
        if len(row) > 2
    ]
    ours = sorted(zip(lattice.pdf + 1, lattice.word, -lattice.weight, strict=True))
    np.testing.assert_allclose(np.array(ours), sorted(arcs), atol=1e-4)


def test_a_beam_too_narrow_gives_none():
    lexicon = Lexicon.from_dict({'p': 'a a a a a a', 'q': 'b'})
    topology = Topology.make('chain', 3)
    lm = NGramLm.uniform(['p', 'q'])
    graph = SearchGraph.of(decoding_graph(lexicon, topology, lm, silence_probability=0.0))
    matrix = np.zeros((4, 6), np.float32)
    matrix[0, 2] = 12.0
    assert search(graph, matrix, beam=8.0, lattice_beam=5.0) is None
    assert search(graph, matrix, beam=16.0, lattice_beam=5.0) is not None
    assert search(graph, matrix, beam=16.0, lattice_beam=5.0, max_active=1) is None


def test_minus_infinity_and_dead_ends(graph, scores):
    matrix = scores(4)
    matrix[2] = -np.inf
    assert search(SearchGraph.of(graph), matrix, **WIDE) is None
    matrix[2, 3] = 0.0
    lattice = search(SearchGraph.of(graph), matrix, **WIDE)
    assert set(lattice.pdf[(lattice.pdf >= 0) & (lattice.time[lattice.src] == 2)]) == {3}


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_constant_of_a_frame_changes_no_lattice(graph, backend):
    """Raw log-likelihoods of −1000 and less keep the lattice beam as narrow as it is."""
    rng = np.random.default_rng(0)
    # Multiples of 1/8 and a whole number: the shift itself rounds nothing.
    matrix = np.round(8 * rng.normal(size=(300, graph.num_pdfs))).astype(np.float32) / 8
    matrix[100, 1:] = -np.inf
    shift = rng.integers(-2000, -1000, size=(300, 1)).astype(np.float32)
    options = {'beam': 13.0, 'lattice_beam': 2.0, 'backend': backend}
    plain = search(compiled(graph), matrix, **options)
    shifted = search(compiled(graph), matrix + shift, **options)
    for name in ('time', 'graph_state', 'src', 'dst', 'pdf', 'word', 'graph', 'final'):
        np.testing.assert_array_equal(getattr(plain, name), getattr(shifted, name))
    emitting = plain.pdf >= 0
    raised = plain.acoustic[emitting] + shift[plain.time[plain.src[emitting]], 0]
    np.testing.assert_array_equal(raised, shifted.acoustic[emitting])


@pytest.mark.parametrize('backend', BACKENDS)
def test_parallel_arcs_of_an_acceptor_are_summed(backend):
    arcs = [(0, 1, 0, 0.0), (0, 1, 0, 0.0), (0, 1, 1, 0.0), (0, 1, 1, -1.0)]
    fsa = Fsa.from_arcs(arcs, np.array([0.0, -np.inf]), np.array([-np.inf, 0.0]))
    matrix = np.array([[0.5, -0.5]], np.float32)
    lattice = search(oracles.search_graph(fsa), matrix, backend=backend, **WIDE)
    expected = np.logaddexp.reduce([0.5, 0.5, -0.5, -1.5])
    assert path_sums(lattice).total == pytest.approx(expected, abs=1e-6)
    assert lattice.num_arcs == 2


def test_epsilon_cycles_are_refused():
    fst = kaldifst.compile('0 1 1 0 0\n1 2 0 0 0\n2 1 0 0 0\n2\n')
    with pytest.raises(LatticeError, match='cycle of epsilon'):
        SearchGraph.of(DecodingGraph(fst, ('<eps>',), 2))


RISING = """\\data\\
ngram 1=5
ngram 2=4

\\1-grams:
-99 <s> 0.9
-0.6 </s>
-0.6 a 1.2
-0.6 b 0.8
-0.6 c 0.5

\\2-grams:
-0.9 <s> a
-1.5 a b
-1.5 b c
-1.5 c a

\\end\\
"""


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_path_through_rising_back_off_is_not_cut(backend, tmp_path):
    """A back-off state may be worse than what follows it, and fall out where that stays."""
    (tmp_path / 'lm.arpa').write_text(RISING)
    lexicon = Lexicon.from_dict({'a': 'A B', 'b': 'B A', 'c': 'C'})
    topology = Topology.make('chain', len(lexicon.phones))
    graph = SearchGraph.of(decoding_graph(lexicon, topology, arpa.read(tmp_path / 'lm.arpa')))
    assert graph.epsilon_rises
    lost = 0
    for seed in range(40):
        matrix = 3 * np.random.default_rng(seed).normal(size=(10, topology.num_pdfs))
        lattice = search(graph, matrix, beam=8.0, lattice_beam=4.0, max_active=3, backend=backend)
        lost += lattice is None  # dead ends; the start is never what is cut
        if lattice is not None:
            lattice.validate(topology.num_pdfs)
            assert (lattice.time[0], lattice.graph_state[0]) == (0, graph.start)
            assert lattice.num_frames == 10
    assert lost <= 2


@pytest.mark.skipif(native.load() is None, reason='the C++ search is not built')
@pytest.mark.parametrize(
    ('beam', 'lattice_beam', 'max_active'),
    [(1e3, 5.0, 10**6), (8.0, 4.0, 10**6), (5.0, 8.0, 10**6), (20.0, 6.0, 7)],
)
def test_native_search_finds_the_same_lattice(graph, scores, beam, lattice_beam, max_active):
    compiled_graph = compiled(graph)
    for seed in range(5):
        found = [
            search(
                compiled_graph,
                scores(12, seed=seed),
                beam=beam,
                lattice_beam=lattice_beam,
                max_active=max_active,
                acoustic_scale=0.6,
                backend=backend,
            )
            for backend in ('numpy', 'native')
        ]
        if found[0] is None:
            assert found[1] is None
            continue
        slow, fast = found
        for name in ('time', 'graph_state', 'final'):
            np.testing.assert_array_equal(getattr(slow, name), getattr(fast, name))
        columns = ('src', 'dst', 'pdf', 'word', 'graph', 'acoustic')
        rows = [np.unique(np.stack([getattr(one, n) for n in columns], 1), axis=0) for one in found]
        np.testing.assert_array_equal(*rows)
        assert fast.num_arcs == slow.num_arcs
        assert (np.diff(fast.src) >= 0).all()
