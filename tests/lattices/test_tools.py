"""N-best lists, oracle errors, confidences, LM rescoring: against all paths written out."""

import dataclasses
import itertools

import jiwer
import numpy as np
import pytest

from seqtrain.graphs import Lexicon, NGramLm, Topology, decoding_graph
from seqtrain.lattices import (
    Lattice,
    LatticeError,
    LatticeGenerator,
    best_path,
    confidences,
    n_best,
    oracle_errors,
    path_sums,
    prune,
    rescore_lm,
    tools,
)

WORDS = ('<eps>', 'p', 'q')


def sausage(*paths):
    """A lattice of two frames: (word of either frame, 0 for none, log-weight) of every path."""
    count = len(paths)
    middle, last = np.arange(1, count + 1), np.full(count, count + 1)
    zeros = np.zeros(count, int)
    words, weights = [path[0] for path in paths], [path[1] for path in paths]
    return Lattice(
        time=np.r_[0, np.ones(count), 2],
        src=np.r_[zeros, middle],
        dst=np.r_[middle, last],
        pdf=np.zeros(2 * count),
        word=np.array(words).T.reshape(-1),
        graph=np.r_[weights, zeros],
        acoustic=np.zeros(2 * count),
        final=np.r_[np.full(count + 1, -np.inf), 0.0],
        words=WORDS,
    ).validate()


@pytest.fixture
def lattice(graph, scores):
    return LatticeGenerator(graph, beam=1e3, lattice_beam=7.0).decode(scores(5))


def best_by_words(paths):
    best = {}
    for _, words, weight in paths:
        best[words] = max(best.get(words, -np.inf), weight)
    return sorted(best.items(), key=lambda entry: -entry[1])


def test_n_best(lattice, lattice_paths):
    expected = best_by_words(lattice_paths(lattice))
    found = n_best(lattice, 5)
    assert [words for words, _ in found] == [words for words, _ in expected[:5]]
    np.testing.assert_allclose([w for _, w in found], [w for _, w in expected[:5]], atol=1e-4)
    assert len(n_best(lattice, 10_000)) == len(expected)
    with pytest.raises(ValueError, match='at least one'):
        n_best(lattice, 0)


@pytest.mark.parametrize('seed', range(5))
def test_n_best_keeps_the_order_of_close_paths(seed, lattice_paths):
    """Two states behind each of eight words, so that a word sequence has many paths."""
    rng = np.random.default_rng(seed)
    states = [[0], *([2 * k - 1, 2 * k] for k in range(1, 9))]
    arcs = [
        (src, dst, word)
        for before, after in itertools.pairwise(states)
        for src, dst, word in itertools.product(before, after, (1, 2))
    ]
    src, dst, word = np.array(arcs).T
    lattice = Lattice(
        time=np.repeat(np.arange(9), [1, *[2] * 8]),
        src=src,
        dst=dst,
        pdf=dst % 2,
        word=word,
        graph=0.3 * rng.normal(size=len(arcs)) - 0.3 * (word == 2),
        acoustic=np.zeros(len(arcs)),
        final=np.r_[np.full(15, -np.inf), 0.0, 0.0],
        words=WORDS,
    ).validate()
    lattice = prune(lattice, 0.6)
    expected = best_by_words(lattice_paths(lattice))[:5]
    found = n_best(lattice, 5)
    assert [words for words, _ in found] == [words for words, _ in expected]
    np.testing.assert_allclose([w for _, w in found], [w for _, w in expected], atol=1e-4)


def test_n_best_of_noise_takes_a_narrow_part():
    """Determinising this lattice as a whole takes hundreds of megabytes."""
    names = ['SIL', 'a', 'b', 'c', 'd']
    words = {'A': 'a b', 'B': 'b a', 'C': 'c d', 'D': 'd', 'E': 'a c'}
    lexicon = Lexicon.from_dict(words, phones=names)
    lm = NGramLm.estimate(['A B C', 'D E', 'A D', 'B C E'], 2, vocabulary=list(words))
    graph = decoding_graph(lexicon, Topology.make('hmm1', len(names)), lm)
    scores = np.random.default_rng(0).normal(0, 2, (110, 5)).astype(np.float32)
    lattice = LatticeGenerator(graph, beam=20, lattice_beam=3.0).decode(scores)
    assert lattice.num_arcs > 800
    found = n_best(lattice, 5)
    assert len({words for words, _ in found}) == 5
    assert found[0][0] == best_path(lattice)[0]
    again = n_best(prune(lattice, found[0][1] - found[-1][1] + 0.2), 5)
    assert [words for words, _ in found] == [words for words, _ in again]
    np.testing.assert_allclose([w for _, w in found], [w for _, w in again], atol=1e-4)


@pytest.mark.parametrize('n', [1, 2, 3])
@pytest.mark.parametrize('others', [[], [((1, 0), -1.75)]])
def test_n_best_of_a_best_path_without_words(n, others):
    expected = [((), -0.75), (('p',), -1.75)][: min(n, 1 + len(others))]
    assert n_best(sausage(((0, 0), -0.75), *others), n) == expected


def test_a_path_of_infinite_cost_is_none(monkeypatch):
    lattice = sausage(((1, 0), -np.inf), ((2, 0), -0.5))
    made, determinised = tools.word_fst, []
    monkeypatch.setattr(tools, 'word_fst', lambda one: determinised.append(one) or made(one))
    assert n_best(lattice, 3) == [(('q',), -0.5)]
    assert len(determinised) == 1  # a wider beam has nothing more
    assert oracle_errors(lattice, 'p') == 1
    assert [(c.word, c.confidence) for c in confidences(lattice)] == [('q', 1.0)]


def test_posteriors_by_the_scores_alone():
    lattice = sausage(((1, 0), -0.5), ((2, 0), -2.0), ((0, 0), -np.inf))
    lattice = dataclasses.replace(lattice, acoustic=np.float32([-1, -2, -3, 0, 0, 0]))
    sums = path_sums(lattice, lm_scale=0.0)
    assert sums.total == pytest.approx(np.logaddexp(-1, -2))
    np.testing.assert_allclose(sums.posteriors()[:3], [0.731059, 0.268941, 0], atol=1e-6)


def test_oracle_errors(lattice, lattice_paths):
    spoken = {words for _, words, _ in lattice_paths(lattice)} - {()}
    for reference in ['x y', 'z z z z', 'y never hom', 'x']:
        counts = [jiwer.process_words(reference, ' '.join(words)) for words in spoken]
        expected = min(c.insertions + c.deletions + c.substitutions for c in counts)
        assert oracle_errors(lattice, reference) == expected
    best = n_best(lattice, 1)[0][0]
    assert oracle_errors(lattice, best) == 0


def spoken(lattice):
    """All paths: [((word, frame), ...)] and their probabilities."""
    partial, found = {0: [((), 0.0)]}, []
    for state in range(lattice.num_states):
        here = partial.get(state, [])
        found += [(said, weight + lattice.final[state]) for said, weight in here]
        for arc in np.flatnonzero(lattice.src == state):
            label = lattice.word[arc]
            word = ((lattice.words[label], int(lattice.time[state])),) if label else ()
            partial.setdefault(int(lattice.dst[arc]), []).extend(
                (said + word, weight + float(lattice.weight[arc])) for said, weight in here
            )
    weights = np.array([weight for _, weight in found], np.float64)
    return [said for said, _ in found], np.exp(weights - np.logaddexp.reduce(weights))


@pytest.mark.parametrize('seed', range(4))
def test_confidences_by_enumeration(graph, scores, seed):
    matrix = scores(5, seed=seed, scale=1.0)
    lattice = LatticeGenerator(graph, beam=1e3, lattice_beam=4.0).decode(matrix)
    paths, probability = spoken(lattice)
    found = confidences(lattice)
    assert tuple((c.word, c.frame) for c in found) == paths[np.argmax(probability)]
    frames = sorted({c.frame for c in found})
    middles = [-np.inf, *((a + b) / 2 for a, b in itertools.pairwise(frames)), np.inf]
    for c in found:
        low, high = next(pair for pair in itertools.pairwise(middles) if c.frame < pair[1])
        agree = [any(w == c.word and low <= t < high for w, t in said) for said in paths]
        assert c.confidence == pytest.approx(probability[agree].sum(), abs=1e-5)


def test_a_word_that_is_said_twice_is_one_path():
    (word,) = confidences(
        sausage(((1, 0), np.log(0.4)), ((1, 1), np.log(0.3)), ((2, 0), np.log(0.3)))
    )
    assert (word.word, word.frame) == ('p', 0)
    assert word.confidence == pytest.approx(0.7, abs=1e-6)


def test_words_of_one_frame_share_their_time():
    lattice = Lattice(
        time=[0, 0, 1, 1],
        src=[0, 0, 1, 2],
        dst=[1, 1, 2, 3],
        pdf=[-1, -1, 0, -1],
        word=[1, 2, 2, 0],
        graph=np.log([0.6, 0.4, 1.0, 1.0]),
        acoustic=np.zeros(4),
        final=[-np.inf, -np.inf, -np.inf, 0.0],
        words=WORDS,
    ).validate()
    assert [(c.word, round(c.confidence, 6)) for c in confidences(lattice)] == [
        ('p', 0.6),
        ('q', 1.0),
    ]


def test_confidence_of_a_word_alone_is_its_probability():
    lexicon = Lexicon.from_dict({'p': 'a', 'q': 'b'})
    lm = NGramLm.estimate([['p'], ['q']], 2, smoothing='none')
    graph = decoding_graph(lexicon, Topology.make('chain', 3), lm, silence_probability=0.0)
    scores = np.zeros((3, 6), np.float32)
    scores[:, 2:4] = 0.5  # "p" is ahead by 1.5
    (word,) = confidences(LatticeGenerator(graph, beam=50, lattice_beam=50).decode(scores))
    assert word.word == 'p'
    assert word.confidence == pytest.approx(1 / (1 + np.exp(-1.5)), abs=1e-4)


def test_rescoring_with_another_lm(graph, scores, word_lm, lattice_paths):
    # With a wide lattice, the conditional probabilities are the weights of its best paths.
    lattice = LatticeGenerator(graph, beam=1e3, lattice_beam=1e3).decode(scores(4))
    for order in (1, 2, 3):
        new = NGramLm.estimate([['y', 'x', 'z'], ['hom', 'hom']], order, vocabulary=word_lm.words)
        rescored = rescore_lm(lattice, word_lm, new)
        before = dict(best_by_words(lattice_paths(lattice)))
        after = dict(best_by_words(lattice_paths(rescored.validate())))
        assert after.keys() == before.keys()
        for words, weight in after.items():
            change = new.score(words) - word_lm.score(words)
            assert weight == pytest.approx(before[words] + change, abs=2e-3)
    back = rescore_lm(rescored, new, word_lm)
    assert path_sums(back).total == pytest.approx(path_sums(lattice).total, abs=1e-3)


@pytest.mark.parametrize('lm_scale', [0.0, -1.0, np.nan, np.inf])
def test_factors_that_are_not_above_0_are_refused(lattice, word_lm, lm_scale):
    new = NGramLm.estimate([['x']], 2, smoothing='none')  # 0 · −inf would be NaN
    with pytest.raises(ValueError, match=r'lm_scale=.*; give a factor above 0'):
        rescore_lm(lattice, word_lm, new, lm_scale=lm_scale)


def test_the_end_may_be_impossible_where_no_path_ends(lattice_paths):
    lexicon = Lexicon.from_dict({'p': 'a', 'q': 'b'})
    old = NGramLm.estimate([['p', 'q']], 2, smoothing='none')  # no </s> after p
    graph = decoding_graph(lexicon, Topology.make('chain', 3), old, silence_probability=0.0)
    lattice = LatticeGenerator(graph, beam=50, lattice_beam=50).decode(np.zeros((4, 6), np.float32))
    new = NGramLm.uniform(['p', 'q'])
    change = new.score(['p', 'q']) - old.score(['p', 'q'])
    after = rescore_lm(lattice, old, new).validate()
    assert path_sums(after).total == pytest.approx(path_sums(lattice).total + change, abs=1e-5)
    with pytest.raises(LatticeError, match="rules '<s> p' out"):
        rescore_lm(lattice, NGramLm.estimate([['q']], 2, smoothing='none'), new)


def test_a_best_path_of_silence_alone():
    lattice = Lattice(
        time=np.arange(3),
        src=np.array([0, 1]),
        dst=np.array([1, 2]),
        pdf=np.array([0, 1]),
        word=np.zeros(2, int),
        graph=np.zeros(2),
        acoustic=np.zeros(2),
        final=np.array([-np.inf, -np.inf, 0.0]),
        words=('<eps>', 'p'),
        acoustic_scale=1.0,
    )
    assert confidences(lattice.validate()) == []


def test_an_lm_that_excludes_everything(lattice, word_lm):
    with pytest.raises(LatticeError, match='probability 0'):
        rescore_lm(lattice, word_lm, NGramLm.estimate([['other']], 2, smoothing='none'))
