"""Decoding graphs: what they accept, their cache, and what they refuse."""

import itertools
import json

import kaldifst
import pytest

from seqtrain.graphs import DecodingGraph, Lexicon, NGramLm, OovError, Topology, decoding_graph


@pytest.fixture(scope='module')
def lexicon():
    return Lexicon.from_dict({'x': ['a', 'a b'], 'y': 'b', 'hom': 'b', 'z': 'b a'})


def arcs(graph):
    return [
        (state, arc.ilabel, arc.olabel, arc.weight.value, arc.nextstate)
        for state in range(graph.fst.num_states)
        for arc in kaldifst.ArcIterator(graph.fst, state)
    ]


def test_labels_are_pdfs_and_words(lexicon):
    topology = Topology.make('hmm3', 3)
    graph = decoding_graph(lexicon, topology, NGramLm.uniform(lexicon.words))
    assert graph.words == ('<eps>', 'hom', 'x', 'y', 'z')
    assert graph.num_pdfs == 9
    assert {arc[1] for arc in arcs(graph)} <= set(range(10))
    assert {arc[2] for arc in arcs(graph)} == set(range(5))


def paths(graph, num_frames):
    """(pdfs, words) of every path of so many frames."""
    partial, found = [(graph.fst.start, (), ())], []
    while partial:
        state, pdfs, words = partial.pop()
        if len(pdfs) == num_frames and graph.fst.final(state).value < float('inf'):
            found.append((pdfs, words))
        for arc in kaldifst.ArcIterator(graph.fst, state):
            after = (*pdfs, arc.ilabel - 1) if arc.ilabel else pdfs
            if len(after) <= num_frames:
                spoken = (*words, graph.words[arc.olabel]) if arc.olabel else words
                partial.append((arc.nextstate, after, spoken))
    return sorted(found)


@pytest.mark.parametrize('silence', [0.0, 0.5])
def test_a_ctc_graph_has_every_path_once(silence):
    """Blanks around an epsilon (the disambiguation behind x) are one path, wherever it stands."""
    lexicon = Lexicon.from_dict({'x': 'a', 'y': 'a b', 'z': 'c'})
    topology = Topology.make('ctc', len(lexicon.phones))
    graph = decoding_graph(
        lexicon, topology, NGramLm.uniform(lexicon.words), silence_probability=silence
    )
    spellings = {'x': (2,), 'y': (2, 3), 'z': (4,)} | ({'sil': (1,)} if silence else {})
    meant = {}
    for length in range(5):
        for spoken in itertools.product(spellings, repeat=length):
            pdfs = sum((spellings[word] for word in spoken), ())
            meant.setdefault(pdfs, []).append(tuple(word for word in spoken if word != 'sil'))
    expected = []
    for pdfs in itertools.product(range(topology.num_pdfs), repeat=4):
        collapsed = tuple(pdf for pdf, _ in itertools.groupby(pdfs) if pdf)
        twice_silence = any(pair == (1, 1) for pair in itertools.pairwise(collapsed))
        expected += [(pdfs, words) for words in meant.get(collapsed, ()) if not twice_silence]
    assert paths(graph, 4) == sorted(expected)


def test_without_silence_there_are_no_silence_pdfs(lexicon):
    topology = Topology.make('chain', 3)
    lm = NGramLm.estimate([['x', 'y'], ['z']], 2, vocabulary=lexicon.words)
    quiet = decoding_graph(lexicon, topology, lm, silence_probability=0.0)
    assert not {1, 2} & {arc[1] for arc in arcs(quiet)}
    assert {1, 2} <= {arc[1] for arc in arcs(decoding_graph(lexicon, topology, lm))}


def test_cache_is_keyed_by_content(lexicon, tmp_path, monkeypatch):
    topology = Topology.make('chain', 3)
    lm = NGramLm.uniform(lexicon.words)
    built = decoding_graph(lexicon, topology, lm, cache_dir=tmp_path)
    assert len(list(tmp_path.glob('*.fst'))) == 1
    assert arcs(built) == arcs(decoding_graph(lexicon, topology, lm))
    monkeypatch.setattr('seqtrain.graphs.hlg._build', None)  # may not build again
    again = decoding_graph(lexicon, topology, lm, cache_dir=tmp_path)
    assert (again.words, again.num_pdfs, arcs(again)) == (built.words, 6, arcs(built))
    monkeypatch.undo()
    decoding_graph(lexicon, topology, NGramLm.uniform(['x']), cache_dir=tmp_path)
    decoding_graph(lexicon, Topology.make('hmm1', 3), lm, cache_dir=tmp_path)
    decoding_graph(lexicon, topology, lm, silence_probability=0.1, cache_dir=tmp_path)
    assert len(list(tmp_path.glob('*.fst'))) == 4
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ['.fst'] * 4 + ['.json'] * 4


@pytest.mark.parametrize('suffix', ['fst', 'json'])
def test_a_cached_graph_that_lacks_a_file_is_built_again(lexicon, tmp_path, suffix):
    topology = Topology.make('chain', 3)
    lm = NGramLm.uniform(lexicon.words)
    built = decoding_graph(lexicon, topology, lm, cache_dir=tmp_path)
    (lost,) = tmp_path.glob(f'*.{suffix}')
    lost.unlink()
    again = decoding_graph(lexicon, topology, lm, cache_dir=tmp_path)
    assert (again.words, arcs(again)) == (built.words, arcs(built))
    assert lost.is_file()
    lost.write_bytes(lost.read_bytes()[:20])
    again = decoding_graph(lexicon, topology, lm, cache_dir=tmp_path)
    assert (again.words, arcs(again)) == (built.words, arcs(built))


def test_damaged_graph_file(lexicon, tmp_path):
    path = tmp_path / 'graph.fst'
    decoding_graph(lexicon, Topology.make('chain', 3), NGramLm.uniform(['x'])).write(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:30])
    with pytest.raises(ValueError, match=r'graph\.fst: not a readable graph'):
        DecodingGraph.read(path)
    path.write_bytes(whole[:70] + b'\xff' * 8 + whole[78:])  # the first state's count of arcs
    with pytest.raises(ValueError, match=r'graph\.fst: not a readable graph'):
        DecodingGraph.read(path)
    for damage in ('{"words": ["<eps>"', '{}', '[]'):
        (tmp_path / 'graph.fst.json').write_text(damage)
        with pytest.raises(ValueError, match=r'graph\.fst\.json: damaged'):
            DecodingGraph.read(path)


@pytest.mark.parametrize(
    ('words', 'num_pdfs', 'message'),
    [
        (('<eps>', 'x'), 2, 'input labels up to 6 for 2 pdfs'),
        (('<eps>',), 6, r'output labels up to 1 for 1 words'),
    ],
)
def test_a_graph_of_another_model_is_refused(lexicon, tmp_path, words, num_pdfs, message):
    graph = decoding_graph(lexicon, Topology.make('chain', 3), NGramLm.uniform(['x']))
    with pytest.raises(ValueError, match=message):
        DecodingGraph(graph.fst, words, num_pdfs)
    graph.write(tmp_path / 'graph.fst')
    table = json.dumps({'words': words, 'num_pdfs': num_pdfs})
    (tmp_path / 'graph.fst.json').write_text(table)
    with pytest.raises(ValueError, match=r'graph\.fst: The decoding graph has.*build it again'):
        DecodingGraph.read(tmp_path / 'graph.fst')


def test_a_graph_without_a_start_is_refused():
    with pytest.raises(ValueError, match='no start state'):
        DecodingGraph(kaldifst.StdVectorFst(), ('<eps>',), 1)


def test_a_graph_that_cannot_be_written_is_an_error(lexicon, tmp_path):
    graph = decoding_graph(lexicon, Topology.make('chain', 3), NGramLm.uniform(['x']))
    (tmp_path / 'graph.fst').mkdir()
    with pytest.raises(OSError, match=r'graph\.fst: could not be written'):
        graph.write(tmp_path / 'graph.fst')


def test_words_without_pronunciation(lexicon, caplog):
    topology = Topology.make('chain', 3)
    lm = NGramLm.estimate([['x', 'q'], ['r', '<unk>']], 2)
    with pytest.raises(OovError, match='q r'):
        decoding_graph(lexicon, topology, lm)
    graph = decoding_graph(lexicon, topology, lm, skip_oov=True)
    assert graph.words == ('<eps>', 'x')
    assert '2 of 4 words of the language model have no pronunciation' in caplog.text
    assert 'recognised (q r ...): 50.0 %' in caplog.text
    with pytest.raises(ValueError, match='No word of the language model'):
        decoding_graph(lexicon, topology, NGramLm.uniform(['q']), skip_oov=True)
    noisy = Lexicon.from_dict({'X': 'a', '<unk>': 'b'})  # words in capitals, the model's are not
    with pytest.raises(ValueError, match='No word of the language model'):
        decoding_graph(noisy, topology, lm, skip_oov=True)


def test_unknown_words_that_have_a_pronunciation_are_kept():
    lexicon = Lexicon.from_dict({'x': 'a', '<unk>': 'b'})
    lm = NGramLm.estimate([['x', '<unk>']], 2)
    graph = decoding_graph(lexicon, Topology.make('chain', 3), lm)
    assert graph.words == ('<eps>', '<unk>', 'x')
    assert {arc[2] for arc in arcs(graph)} == {0, 1, 2}
    without = Lexicon.from_dict({'x': 'a'}, phones=lexicon.phones)
    assert decoding_graph(without, Topology.make('chain', 3), lm).words == ('<eps>', 'x')


def test_bad_silence_probability(lexicon):
    with pytest.raises(ValueError, match='silence_probability=1'):
        decoding_graph(
            lexicon, Topology.make('chain', 3), NGramLm.uniform(['x']), silence_probability=1.0
        )
