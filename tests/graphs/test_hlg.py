"""Decoding graphs: what they accept, their cache, and what they refuse."""

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


def test_words_without_pronunciation(lexicon):
    topology = Topology.make('chain', 3)
    lm = NGramLm.estimate([['x', 'q'], ['r', '<unk>']], 2)
    with pytest.raises(OovError, match='q r'):
        decoding_graph(lexicon, topology, lm)
    graph = decoding_graph(lexicon, topology, lm, skip_oov=True)
    assert graph.words == ('<eps>', 'x')
    with pytest.raises(ValueError, match='No word of the language model'):
        decoding_graph(lexicon, topology, NGramLm.uniform(['q']), skip_oov=True)


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
