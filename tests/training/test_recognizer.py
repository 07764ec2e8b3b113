"""What a recogniser is made of: graphs from the cache, model files that come back as they were."""

import kaldifst
import pytest

from seqtrain.graphs import Lexicon, NGramLm, Topology, arpa, decoding_graph
from seqtrain.training import assembly, decode, experiment, recognizer
from seqtrain.training.workdir import WorkdirError

LEXICON = Lexicon.from_dict({'yes': ['Y EH S', 'Y AE'], 'no': 'N OW'})
TOPOLOGY = Topology.make('chain', len(LEXICON.phones))
TEXTS = ('yes no', 'no')


def test_graphs_are_kept_and_not_built_again(tmp_path, monkeypatch):
    word = recognizer.word_graph(TEXTS, LEXICON, TOPOLOGY, 2, cache_dir=tmp_path)
    recognizer.phone_graph(TEXTS, LEXICON, TOPOLOGY, cache_dir=tmp_path)
    assert len(list(tmp_path.glob('*.fst'))) == 2
    monkeypatch.setattr('seqtrain.graphs.hlg._build', None)  # may not build again
    again = recognizer.word_graph(TEXTS, LEXICON, TOPOLOGY, 2, cache_dir=tmp_path)
    assert again.words == word.words == ('<eps>', 'no', 'yes')
    assert recognizer.phone_graph(TEXTS, LEXICON, TOPOLOGY, cache_dir=tmp_path).num_pdfs == 2 * 7


def test_graphs_without_silences():
    quiet, usual = (
        recognizer.word_graph(TEXTS, LEXICON, TOPOLOGY, 1, silence_probability=p)
        for p in (0.0, 0.5)
    )
    assert not {1, 2} & _pdfs(quiet)  # silence's pdfs, plus 1
    assert {1, 2} <= _pdfs(usual)


def _pdfs(graph):
    return {ilabel for _, ilabel, *_ in _arcs(graph)}


def _arcs(graph):
    return [
        (state, arc.ilabel, arc.olabel, arc.weight.value, arc.nextstate)
        for state in range(graph.fst.num_states)
        for arc in kaldifst.ArcIterator(graph.fst, state)
    ]


def test_a_given_language_model_may_have_words_without_pronunciation(tmp_path):
    model = NGramLm.estimate([['yes', 'perhaps'], ['no']], 2)
    arpa.write(model, tmp_path / 'lm.arpa')
    graph = recognizer.word_graph(TEXTS, LEXICON, TOPOLOGY, 1, str(tmp_path / 'lm.arpa'))
    assert graph.words == ('<eps>', 'no', 'yes')


def test_the_language_model_is_smoothed_as_told():
    made = {
        smoothing: recognizer.word_graph(TEXTS, LEXICON, TOPOLOGY, 3, smoothing=smoothing)
        for smoothing in ('witten-bell', 'kneser-ney')
    }
    expected = decoding_graph(
        LEXICON,
        TOPOLOGY,
        NGramLm.estimate([t.split() for t in TEXTS], 3, smoothing='kneser-ney'),
    )
    arcs = {name: _arcs(graph) for name, graph in made.items()}
    assert arcs['kneser-ney'] == _arcs(expected) != arcs['witten-bell']


def test_a_run_that_stands_in_cross_entropy_is_decoded_at_its_scale(
    make_config, kaldi_copy, tmp_path, run_until_power_cut
):
    config = make_config()
    data = kaldi_copy(assembly.load_split(config.data, 'test'), tmp_path / 'data')
    run_until_power_cut(config, tmp_path / 'run', updates=6)
    cut = decode.run(tmp_path / 'run', str(data))
    experiment.run(config, tmp_path / 'run', quiet=True)
    whole = decode.run(tmp_path / 'run', str(data))
    used = [cut['acoustic_scale'], whole['acoustic_scale']]
    assert used == [config.decode.ce_acoustic_scale, config.decode.acoustic_scale]


def test_model_files_come_back(tmp_path):
    graphs = {'word': recognizer.word_graph(TEXTS, LEXICON, TOPOLOGY, 0)}
    files = recognizer.ModelFiles(40, 14, 8000, ('word',), LEXICON.phones)
    files.write(tmp_path, graphs, LEXICON)
    again = recognizer.ModelFiles.read(tmp_path)
    assert again == files
    assert again.lexicon(tmp_path / 'lexicon.txt') == LEXICON
    assert again.graph(tmp_path, 'word').words == graphs['word'].words
    with pytest.raises(WorkdirError, match='not there yet'):
        recognizer.ModelFiles.read(tmp_path / 'none')
