"""The beam search against brute force over words, pronunciations, silences and segmentations."""

import itertools
import math

import numpy as np
import pytest
from path_enumeration import enumerate_paths

from seqtrain.decoding import Decoder
from seqtrain.fsa import Fsa
from seqtrain.graphs import Lexicon, NGramLm, Topology, decoding_graph, expand

KINDS = ['chain', 'ctc', 'hmm1', 'hmm3']
SENTENCES = [s.split() for s in ['x y', 'z x', 'hom z', 'y y x', 'hom y']]


@pytest.fixture(scope='module')
def lexicon():
    # Homophones (y, hom), a prefix (a of a b), two pronunciations.
    return Lexicon.from_dict({'x': ['a', 'a b'], 'y': 'b', 'hom': 'b', 'z': 'b a'})


def linear(phones):
    n = len(phones)
    initial, final = np.full(n + 1, -np.inf), np.full(n + 1, -np.inf)
    initial[0] = final[-1] = 0.0
    return Fsa.from_arcs([(i, i + 1, p, 0.0) for i, p in enumerate(phones)], initial, final)


def best_by_brute_force(scores, lexicon, topology, model, silence):
    """Best (score, words) over everything the graph should accept, up to four words."""
    best_phones = {}
    best = (-math.inf, ())
    for count in range(5):
        for words in itertools.product(model.words, repeat=count):
            grammar = best_lm_path(model, ('<s>',), words)
            for variants in itertools.product(*map(lexicon.variants, words)):
                for silences in itertools.product(
                    [False, True] if silence else [False], repeat=count + 1
                ):
                    phones = list(
                        itertools.chain(
                            [0] * silences[0],
                            *((*v, *[0] * s) for v, s in zip(variants, silences[1:], strict=True)),
                        )
                    )
                    key = tuple(phones)
                    if key not in best_phones:
                        best_phones[key] = best_segmentation(scores, phones, topology)
                    odds = [math.log(silence if s else 1 - silence) for s in silences]
                    total = best_phones[key] + sum(odds) + grammar
                    best = max(best, (total, words))
    return best


def best_lm_path(model, history, words):
    """Best way through the model's n-grams and back-off arcs, as a search graph allows them.

    A graph may back off although the longer n-gram is there; then it has forgotten the history.
    """
    history = history[max(0, len(history) - model.order + 1) :]
    best = -math.inf
    word, rest = (words[0], words[1:]) if words else ('</s>', ())
    if (*history, word) in model.logprobs:
        after = best_lm_path(model, (*history, word), rest) if words else 0.0
        best = model.logprobs[(*history, word)] + after
    if history:
        backed_off = model.backoffs.get(history, 0.0) + best_lm_path(model, history[1:], words)
        best = max(best, backed_off)
    return best


def best_segmentation(scores, phones, topology):
    if not phones or len(phones) * topology.num_states > len(scores):
        return -math.inf
    paths = enumerate_paths(expand(linear(phones), topology), len(scores))
    frames = np.arange(len(scores))
    return max((w[-1] + scores[frames, list(p)].sum() for p, w in paths.items()), default=-np.inf)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('silence', [0.5, 0.0])
def test_best_path_is_the_brute_force_best(lexicon, kind, silence):
    topology = Topology.make(kind, 3)
    frames = 8 if kind == 'hmm3' else 4
    rng = np.random.default_rng(7)
    for order, smoothing in [(1, 'witten-bell'), (2, 'witten-bell'), (3, 'kneser-ney')]:
        model = NGramLm.estimate(SENTENCES, order, smoothing=smoothing)
        graph = decoding_graph(lexicon, topology, model, silence_probability=silence)
        for _ in range(2):
            scores = rng.normal(scale=2.0, size=(frames, topology.num_pdfs)).astype(np.float32)
            found = Decoder(graph, beam=100.0).decode(scores)
            score, words = best_by_brute_force(scores, lexicon, topology, model, silence)
            assert found.ok
            assert found.score == pytest.approx(score, abs=1e-3)
            assert found.words == words


def one_word(kind='chain'):
    lexicon = Lexicon.from_dict({'w': 'a b'})
    topology = Topology.make(kind, 3)
    return decoding_graph(lexicon, topology, NGramLm.uniform(['w']), silence_probability=0.0)


def test_pdfs_of_the_best_path():
    scores = np.zeros((6, 6), np.float32)
    for frame, pdf in enumerate([2, 3, 3, 4, 5, 5]):
        scores[frame, pdf] = 5.0
    found = Decoder(one_word()).decode(scores)
    assert found.words == ('w',)
    assert found.pdfs.tolist() == [2, 3, 3, 4, 5, 5]
    expected = 30.0 + 6 * math.log(0.5) + 2 * math.log(0.5)  # HMM, then "w" and "</s>"
    assert found.score == pytest.approx(expected, abs=1e-3)


def test_acoustic_scale_scales_the_matrix_only():
    scores = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    graph = one_word()
    half = Decoder(graph, acoustic_scale=0.5).decode(scores)
    assert half.score == pytest.approx(Decoder(graph).decode(0.5 * scores).score, abs=1e-4)


def test_too_few_frames_is_not_ok():
    found = Decoder(one_word()).decode(np.zeros((1, 6), np.float32))
    assert (found.ok, found.reason) == (False, 'no final state within the beam')


@pytest.mark.parametrize(
    ('scores', 'reason'),
    [
        (np.zeros((0, 6)), 'no frames'),
        (np.full((5, 6), np.nan), 'non-finite scores'),
        (np.full((5, 6), np.inf), 'non-finite scores'),
        (np.full((5, 6), -np.inf), 'no path with finite scores'),
    ],
)
def test_hopeless_matrices_are_not_ok(scores, reason):
    found = Decoder(one_word()).decode(scores)
    assert (found.ok, found.words, found.reason) == (False, (), reason)
    assert found.score == -np.inf


def test_minus_infinity_forbids_a_pdf():
    scores = np.zeros((4, 6), np.float32)
    scores[:, 3] = -np.inf
    found = Decoder(one_word()).decode(scores)
    assert found.ok
    assert 3 not in found.pdfs


@pytest.mark.parametrize('offset', [-2e5, 2e5])
def test_an_offset_per_frame_changes_nothing_but_the_score(offset):
    scores = np.zeros((600, 6), np.float32)
    scores[:, 3] = -np.inf
    decoder = Decoder(one_word())
    found, moved = decoder.decode(scores), decoder.decode(scores + np.float32(offset))
    assert moved.ok
    np.testing.assert_array_equal(moved.pdfs, found.pdfs)
    assert moved.score - 600 * offset == pytest.approx(found.score, abs=1e-3)


def test_beam_is_widened_once():
    # Frame 0 prefers words too long to end in four frames; "q" is 12 worse and falls off the beam
    # as soon as more than kaldi-decoder's least number of states (20) is alive.
    long_words = {f'p{i}': f'a c{i} a a a a' for i in range(30)}
    lexicon = Lexicon.from_dict({**long_words, 'q': 'b'})
    topology = Topology.make('chain', len(lexicon.phones))
    lm = NGramLm.uniform(lexicon.words)
    graph = decoding_graph(lexicon, topology, lm, silence_probability=0.0)
    scores = np.zeros((4, topology.num_pdfs), np.float32)
    scores[0, topology.forward[lexicon.phone_ids['a']][0]] = 12.0
    found = Decoder(graph, beam=8.0).decode(scores)
    assert (found.ok, found.words[:1]) == (True, ('q',))
    hopeless = Decoder(graph, beam=4.0).decode(scores)  # twice the beam is not enough
    assert (hopeless.ok, hopeless.reason) == (False, 'no final state within the beam')


def test_matrix_of_another_model():
    with pytest.raises(ValueError, match=r'shape \(5, 7\) for a graph of 6 pdfs'):
        Decoder(one_word()).decode(np.zeros((5, 7)))
    with pytest.raises(ValueError, match='beam=0'):
        Decoder(one_word(), beam=0)


def test_real_task_decodes_its_own_alignments(data_dir):
    # Scores that favour a sentence's own frames must give the sentence back, bigram or not.
    lexicon = Lexicon.read(data_dir / 'fsdd_unseen' / 'lexicon.txt')
    lines = (data_dir / 'fsdd_unseen' / 'train' / 'text').read_text().splitlines()
    texts = [line.split()[1:] for line in lines]
    topology = Topology.make('chain', len(lexicon.phones))
    graph = decoding_graph(lexicon, topology, NGramLm.estimate(texts, 2))
    decoder = Decoder(graph, beam=20.0)
    for words in texts[:20]:
        phones = [0, *itertools.chain(*(lexicon.variants(w)[0] for w in words)), 0]
        pdfs = np.concatenate([[2 * p, 2 * p + 1, 2 * p + 1] for p in phones])
        scores = np.zeros((len(pdfs), topology.num_pdfs), np.float32)
        scores[np.arange(len(pdfs)), pdfs] = 6.0
        found = decoder.decode(scores)
        assert found.ok
        assert list(found.words) == words
        np.testing.assert_array_equal(found.pdfs, pdfs)
