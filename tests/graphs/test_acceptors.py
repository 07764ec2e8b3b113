"""Phone LM acceptors, numerators and denominators, against sums written out by hand."""

import itertools
import math

import numpy as np
import pytest
from path_enumeration import enumerate_paths, log_sum

from seqtrain.fsa import Fsa
from seqtrain.graphs import (
    Lexicon,
    NGramLm,
    NoPathError,
    OovError,
    PhoneLm,
    Topology,
    decoding_graph,
    denominator,
    numerator,
    training_phones,
)
from seqtrain.graphs.ngram import EOS

KINDS = ['chain', 'ctc', 'hmm1', 'hmm3']


@pytest.fixture(scope='module')
def lexicon():
    return Lexicon.from_dict({'x': ['a', 'a b'], 'y': 'b', 'z': 'b a'})


@pytest.fixture(scope='module')
def sequences(lexicon):
    return training_phones(['x y', 'z x', 'y', 'x y z'], lexicon, samples=4)


def models(lexicon, sequences):
    names = lexicon.phones
    return [
        PhoneLm.estimate(sequences, names, order=2),
        PhoneLm.estimate(sequences, names, order=3),
        PhoneLm.estimate(sequences, names, order=4, extra_contexts=5),
        PhoneLm.backed_off(sequences, names, order=2),
        PhoneLm.backed_off(sequences, names, order=3),
        PhoneLm.estimate(sequences, names, order=3, smoothing='kneser-ney'),
    ]


def test_phone_lm_acceptor_has_the_models_probabilities(lexicon, sequences):
    for lm in models(lexicon, sequences):
        acceptor = lm.acceptor()
        for length in range(1, 5):
            paths = enumerate_paths(acceptor, length)
            for phones in itertools.product(range(3), repeat=length):
                score = lm.ngram.score([lm.phones[p] for p in phones])
                if score == -math.inf:
                    assert phones not in paths
                else:
                    assert paths[phones] == [pytest.approx(score, abs=1e-5)]  # exactly one path


def test_phone_lm_acceptor_is_normalised(lexicon, sequences):
    for lm in models(lexicon, sequences):
        acceptor = lm.acceptor()
        mass = np.exp(acceptor.final.astype(np.float64))
        np.add.at(mass, acceptor.src, np.exp(acceptor.weight.astype(np.float64)))
        np.testing.assert_allclose(mass, 1.0, atol=1e-6)


def test_backed_off_excludes_nothing(lexicon):
    unseen = 'z z y'
    sequences = [(0, 1), (1, 2), (2,)]
    topology = Topology.make('chain', 3)
    with pytest.raises(NoPathError, match=r"'z z y'.*backed_off"):
        numerator(unseen, lexicon, topology, PhoneLm.estimate(sequences, lexicon.phones))
    numerator(unseen, lexicon, topology, PhoneLm.backed_off(sequences, lexicon.phones))


def test_numerator_by_hand():
    # One word "a", bigram LM: paths over 3 frames with chain pdfs (SIL 0 1, a 2 3).
    lexicon = Lexicon.from_dict({'w': 'a'})
    lm = PhoneLm.estimate([(1,), (0, 1), (0, 1, 0)], lexicon.phones, order=2)

    def p(history, symbol):
        return lm.ngram.logprob((history,), symbol)

    # Counts by hand: <s> SIL 2, <s> a 1; SIL a 2, SIL </s> 1; a </s> 2, a SIL 1.
    assert p('<s>', 'a') == pytest.approx(math.log(1 / 3))
    assert p('a', 'SIL') == pytest.approx(math.log(1 / 3))
    frames = 3 * math.log(0.5)
    alone = math.log(1 / 3 * 2 / 3) + frames
    before = math.log(2 / 3 * 2 / 3 * 2 / 3) + frames
    after = math.log(1 / 3 * 1 / 3 * 1 / 3) + frames
    both = math.log(2 / 3 * 2 / 3 * 1 / 3 * 1 / 3) + frames
    expected = {
        (2, 3, 3): alone,
        (0, 2, 3): before,
        (0, 1, 2): before,
        (2, 0, 1): after,
        (2, 3, 0): after,
        (0, 2, 0): both,
    }
    paths = enumerate_paths(numerator('w', lexicon, Topology.make('chain', 2), lm), 3)
    assert paths == {pdfs: [pytest.approx(w, abs=1e-5)] for pdfs, w in expected.items()}


def test_denominator_by_hand():
    lexicon = Lexicon.from_dict({'w': 'a'})
    lm = PhoneLm.estimate([(1,), (1, 0)], lexicon.phones, order=2)
    # Sentences: "a" and "a SIL", each 1/2.
    paths = enumerate_paths(denominator(lm, Topology.make('chain', 2)), 2)
    weight = math.log(0.5) + 2 * math.log(0.5)
    assert paths == {
        (2, 3): [pytest.approx(weight, abs=1e-5)],
        (2, 0): [pytest.approx(weight, abs=1e-5)],
    }


@pytest.mark.parametrize('kind', KINDS)
def test_numerator_paths_are_denominator_paths_with_the_same_weights(lexicon, sequences, kind):
    topology = Topology.make(kind, 3)
    for lm in models(lexicon, sequences):
        den = denominator(lm, topology)
        for words in ['x y', 'z x']:
            num = numerator(words, lexicon, topology, lm)
            for frames in range(2, 7 if kind != 'hmm3' else 8):
                every = enumerate_paths(den, frames)
                for pdfs, weights in enumerate_paths(num, frames).items():
                    assert is_sub_multiset(weights, every[pdfs]), (kind, words, pdfs)
                assert log_sum(enumerate_paths(num, frames)) <= log_sum(every)


def is_sub_multiset(few, many):
    """Bit-equal arc weights: only the order of summation along a path is the same in both."""
    rest = list(many)
    for weight in few:
        if weight not in rest:
            return False
        rest.remove(weight)
    return True


@pytest.mark.parametrize('kind', KINDS)
def test_numerator_counts_each_phone_sequence_once(kind):
    # `x y` spells "a b b" in two ways; the LM knows it as one phone sequence.
    lexicon = Lexicon.from_dict({'x': ['a', 'a b'], 'y': ['b', 'b b']})
    lm = PhoneLm.backed_off([(1, 2), (1, 2, 2)], lexicon.phones, order=2)
    topology = Topology.make(kind, 3)
    frames = 4 if kind != 'hmm3' else 9
    num = numerator('x y', lexicon, topology, lm, optional_silence=False)
    one_word = Lexicon.from_dict({'w': ['a b', 'a b b', 'a b b b']})
    same = numerator('w', one_word, topology, lm, optional_silence=False)
    assert enumerate_paths(num, frames) == enumerate_paths(same, frames)


def test_numerator_without_lm_weighs_all_alike(lexicon):
    paths = enumerate_paths(numerator('x y', lexicon, Topology.make('ctc', 3)), 4)
    assert {w for weights in paths.values() for w in weights} == {0.0}
    assert len(paths) > 10


def test_minimised_denominator_weighs_what_the_plain_one_does(lexicon, sequences):
    from seqtrain.graphs import expand

    for kind in KINDS:
        topology = Topology.make(kind, 3)
        lm = PhoneLm.estimate(sequences, lexicon.phones, order=3)
        plain, small = expand(lm.acceptor(), topology), denominator(lm, topology)
        assert small.num_states <= plain.num_states
        assert enumerate_paths(plain, 5) == enumerate_paths(small, 5)


def test_oov_and_empty(lexicon):
    topology = Topology.make('chain', 3)
    with pytest.raises(OovError, match='q'):
        numerator('x q', lexicon, topology)
    with pytest.raises(ValueError, match='empty'):
        numerator('', lexicon, topology)


def test_real_corpora_give_small_graphs(data_dir):
    for name, most_states in [('yesno', 20), ('fsdd_unseen', 100), ('speechocean', 1100)]:
        lexicon = Lexicon.read(data_dir / name / 'lexicon.txt')
        lines = (data_dir / name / 'train' / 'text').read_text().splitlines()
        texts = [line.split(None, 1)[1] for line in lines]
        lm = PhoneLm.estimate(training_phones(texts, lexicon, samples=3), lexicon.phones)
        topology = Topology.make('chain', len(lexicon.phones))
        den = denominator(lm, topology).validate()
        assert den.num_pdfs == topology.num_pdfs
        assert den.num_states <= most_states
        for text in texts[:20]:
            assert isinstance(numerator(text, lexicon, topology, lm).validate(), Fsa)
    assert lm.ngram.logprob((), EOS) < 0


@pytest.mark.parametrize('bad', [-1, 3, 99])
def test_a_phone_id_outside_of_the_phone_set_is_named(bad):
    sequences = [[0, 1, 2], [1], [0, bad, 1]]
    with pytest.raises(ValueError, match=rf'Sequence 2: phone {bad}, but phone ids are 0\.\.2'):
        PhoneLm.estimate(sequences, ('SIL', 'a', 'b'))


def test_a_phone_set_with_one_name_twice():
    with pytest.raises(ValueError, match='names a phone twice'):
        PhoneLm.estimate([[0, 1]], ('SIL', 'a', 'a'))


def test_a_topology_with_too_few_phones(lexicon):
    topology = Topology.make('chain', len(lexicon.phones) - 1)
    words = lexicon.words
    phone_lm = PhoneLm.backed_off([[0, 1]], lexicon.phones)
    for make in (
        lambda: numerator(words, lexicon, topology),
        lambda: denominator(phone_lm, topology),
        lambda: decoding_graph(lexicon, topology, NGramLm.uniform(words)),
    ):
        with pytest.raises(ValueError, match='The graph has more phones than its topology: phone'):
            make()
