"""N-gram estimates by hand, normalisation of every context, ARPA files."""

import gzip
import itertools
import math

import pytest

from seqtrain.graphs import NGramLm, arpa
from seqtrain.graphs.ngram import BOS, EOS, SMOOTHINGS

SENTENCES = [s.split() for s in ['a b a', 'a b', 'b b a c', 'a', 'c a b a b']]


def total(model, history):
    return sum(math.exp(model.logprob(history, w)) for w in (*model.words, EOS))


@pytest.mark.parametrize('order', [1, 2, 3, 4])
@pytest.mark.parametrize('smoothing', ['witten-bell', 'kneser-ney'])
def test_smoothed_models_sum_to_one_after_any_history(order, smoothing):
    model = NGramLm.estimate(SENTENCES, order, smoothing=smoothing, vocabulary=['d'])
    assert model.words == ('a', 'b', 'c', 'd')
    histories = [h for n in range(4) for h in itertools.product('abcd', repeat=n)]
    for history in histories:
        for full in (history, (BOS, *history)):
            assert total(model, full) == pytest.approx(1.0, abs=1e-9)
            assert all(math.isfinite(model.logprob(full, w)) for w in 'abcd')


def test_a_string_of_words_is_split_at_spaces_not_into_letters():
    assert NGramLm.estimate(['YES NO'], 1, vocabulary='MAYBE').words == ('MAYBE', 'NO', 'YES')
    assert NGramLm.uniform('YES NO').words == ('NO', 'YES')


@pytest.mark.parametrize('order', [1, 2, 3])
def test_unsmoothed_models_are_relative_frequencies(order):
    model = NGramLm.estimate(SENTENCES, order, smoothing='none')
    assert total(model, (BOS,)) == pytest.approx(1.0)
    expected = {1: 7 / 20, 2: 3 / 5, 3: 3 / 5}[order]  # a: 7 of 20 symbols, 3 of 5 after <s>
    assert math.exp(model.logprob((BOS,), 'a')) == pytest.approx(expected)
    if order == 3:
        # After "a b": </s> twice (sentences 2 and 5), "a" twice.
        assert math.exp(model.logprob(('a', 'b'), EOS)) == pytest.approx(0.5)
        assert model.logprob(('a', 'b'), 'c') == -math.inf


def test_witten_bell_by_hand():
    model = NGramLm.estimate([['a', 'b'], ['a']], 2, smoothing='witten-bell')
    # Unigrams: a 2, b 1, </s> 2, types 3; uniform over 3 symbols.
    p_b = 1 / 8 + 3 / 8 / 3
    p_end = 2 / 8 + 3 / 8 / 3
    # After a: b 1, </s> 1, types 2.
    assert math.exp(model.logprob(('a',), 'b')) == pytest.approx(1 / 4 + 2 / 4 * p_b)
    assert math.exp(model.logprob(('b',), 'b')) == pytest.approx(1 / 2 * p_b)
    assert model.score(['b']) == pytest.approx(
        math.log((0 + 1 / 3 * p_b) * (1 / 2 + 1 / 2 * p_end))
    )


def test_kneser_ney_by_hand():
    model = NGramLm.estimate([['a', 'b'], ['a', 'c'], ['a']], 2, smoothing='kneser-ney')
    # Bigrams: <s>a 3, ab 1, ac 1, a</s> 1, b</s> 1, c</s> 1: n1 = 5, n2 = 0, so D = 0.5.
    # Continuation counts: a 1, b 1, c 1, </s> 3 (after a, b, c): n1 = 3, n2 = 0, so D = 0.5.
    uni_b = (1 - 0.5) / 6 + 0.5 * 4 / 6 / 4
    uni_end = (3 - 0.5) / 6 + 0.5 * 4 / 6 / 4
    assert math.exp(model.logprob((), 'b')) == pytest.approx(uni_b)
    assert math.exp(model.logprob(('a',), EOS)) == pytest.approx(0.5 / 3 + 0.5 * uni_end)
    assert math.exp(model.logprob(('b',), 'b')) == pytest.approx(0.5 * uni_b)


def test_extra_contexts_keep_the_useful_ones():
    # "x x a b | y x a c": only three symbols of history tell b from c.
    sentences = [['x', 'x', 'a', 'b']] * 5 + [['y', 'x', 'a', 'c']] * 5
    full = NGramLm.estimate(sentences, 4, smoothing='none')
    none = NGramLm.estimate(sentences, 4, smoothing='none', extra_contexts=0)
    two = NGramLm.estimate(sentences, 4, smoothing='none', extra_contexts=2)
    assert none.logprob(('x', 'x', 'a'), 'b') == pytest.approx(math.log(0.5))
    assert two.logprob(('x', 'x', 'a'), 'b') == pytest.approx(0.0)
    assert two.logprob(('x', 'x', 'a'), 'c') == -math.inf
    assert len(none.contexts()) < len(two.contexts()) < len(full.contexts())
    for history in [('x', 'x', 'a'), ('y', 'x', 'a'), ('x', 'a', 'b')]:
        assert total(two, history) == pytest.approx(1.0)


def test_uniform_and_perplexity():
    model = NGramLm.uniform(['b', 'a', 'a'])
    assert model.words == ('a', 'b')
    assert model.perplexity([['a'], ['b', 'b']]) == pytest.approx(3.0)


def test_estimates_predict_better_than_a_loop():
    train, dev = SENTENCES, [['a', 'b', 'a', 'c']]
    for smoothing in ['witten-bell', 'kneser-ney']:
        model = NGramLm.estimate(train, 3, smoothing=smoothing)
        assert model.perplexity(dev) < NGramLm.uniform('a b c').perplexity(dev)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (([], 2), 'No sentences'),
        (([['a']], 0), 'order=0'),
        (([['<s>', 'a']], 2), '<s> in a sentence'),
        (([['a', '</s>', 'b']], 2), '</s> in a sentence'),
        (([['a b']], 2), "'a b' is no symbol"),
        (([['a', '']], 2), "'' is no symbol"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        NGramLm.estimate(*arguments)
    with pytest.raises(ValueError, match='Unknown smoothing'):
        NGramLm.estimate([['a']], 1, smoothing='good-turing')


def test_a_string_is_a_sentence_of_its_words():
    texts = ['yes no', 'no', '']
    model = NGramLm.estimate(texts, 2)
    lists = [text.split() for text in texts]
    assert model == NGramLm.estimate(lists, 2)
    assert model.words == ('no', 'yes')
    assert model.score('yes no') == model.score(['yes', 'no'])
    assert model.perplexity(texts) == model.perplexity(lists)


@pytest.mark.parametrize('smoothing', SMOOTHINGS)
@pytest.mark.parametrize('order', [1, 2, 4])
def test_arpa_round_trip(tmp_path, smoothing, order):
    model = NGramLm.estimate(SENTENCES, order, smoothing=smoothing, extra_contexts=3)
    arpa.write(model, tmp_path / 'lm.arpa')
    again = arpa.read(tmp_path / 'lm.arpa')
    assert again.order == order
    for n in range(4):
        for history in itertools.product((BOS, *'abc'), repeat=n):
            for word in (*'abc', EOS):
                expected = model.logprob(history, word)
                assert again.logprob(history, word) == pytest.approx(expected, abs=1e-6)


ARPA = r"""
\data\
ngram 1=4
ngram 2=2

\1-grams:
-99 <s> -0.3
-0.5 </s>
-0.5 a -0.2
-0.7 <unk>

\2-grams:
-0.1 <s> a
-0.4 a </s>

\end\
"""


def test_arpa_by_hand(tmp_path):
    (tmp_path / 'lm.arpa').write_text(ARPA)
    model = arpa.read(tmp_path / 'lm.arpa')
    log10 = math.log(10)
    assert model.score(['a']) == pytest.approx(-0.5 * log10)
    assert model.logprob((BOS,), 'never-seen') == pytest.approx((-0.3 - 0.7) * log10)
    assert model.score(['a', 'a']) == pytest.approx((-0.1 - 0.2 - 0.5 - 0.4) * log10)


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('-99 <s> -0.3', '-99 <s>', r":7: '<s>' has no back-off weight but is the context"),
        ('-99 <s> -0.3', '-9 b', r'no <s> among the 1-grams'),
        ('-0.1 <s> a', '-0.1 b a', r":13: the context 'b' of this n-gram is not listed"),
        ('-0.5 </s>', '-0.5 b', r'no </s> among the 1-grams'),
        ('ngram 2=2', 'ngram 2=3', r':16: 2 2-grams, but the header says 3'),
        ('ngram 2=2', 'ngram 3=2', r'does not count n-grams of order 1, 2'),
        ('-0.1 <s> a', '-0.1 <s>', r":13: '-0\.1 <s>' is not a 2-gram"),
        ('-0.1 <s> a', 'x <s> a', r":13: 'x' is not a number"),
        ('-0.1 <s> a', '0.1 <s> a', r':13: log-probability 0\.1 is above 0'),
        ('-0.4 a </s>', '-0.4 <s> a', r":14: '<s> a' is there twice"),
        ('\\end\\', '', r'the file ends before'),
        ('\\data\\', '', r'lm\.arpa: no line \\data\\'),
        ('\\2-grams:', '\\3-grams:', r'expected \\2-grams: but found'),
        ('ngram 1=4', 'ngram 1=four', r":3: 'four' is not an integer"),
    ],
)
def test_bad_arpa_names_file_and_line(tmp_path, old, new, message):
    assert old in ARPA
    (tmp_path / 'lm.arpa').write_text(ARPA.replace(old, new, 1))
    with pytest.raises(arpa.ArpaError, match=message) as caught:
        arpa.read(tmp_path / 'lm.arpa')
    assert 'lm.arpa' in str(caught.value)


def test_unknown_words_count_as_unk_in_histories_too(tmp_path):
    text = ARPA.replace('ngram 2=2', 'ngram 2=3').replace('<unk>', '<unk> -0.6')
    text = text.replace('-0.1 <s> a', '-0.1 <s> a\n-0.05 <unk> a')
    (tmp_path / 'lm.arpa').write_text(text)
    model = arpa.read(tmp_path / 'lm.arpa')
    for word in ('a', 'b', '</s>', 'other'):
        assert model.logprob(('never-seen',), word) == model.logprob(('<unk>',), word)
    assert model.logprob(('never-seen',), 'a') == pytest.approx(-0.05 * math.log(10))
    assert model.logprob(('never-seen',), '</s>') == pytest.approx((-0.6 - 0.5) * math.log(10))


def test_missing_or_packed_arpa(tmp_path):
    (tmp_path / 'lm.arpa.gz').write_bytes(gzip.compress(ARPA.encode()))
    with pytest.raises(arpa.ArpaError, match=r'lm\.arpa\.gz: not text; unpack it'):
        arpa.read(tmp_path / 'lm.arpa.gz')
    with pytest.raises(FileNotFoundError, match='no such ARPA'):
        arpa.read(tmp_path / 'lm.arpa')
