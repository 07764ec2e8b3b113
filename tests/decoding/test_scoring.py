"""Error rates, bootstrap intervals and Kaldi text files."""

import numpy as np
import pytest

from seqtrain.decoding import read_text, score_wer, write_text


def test_counts_by_hand():
    references = {'u1': 'a b c', 'u2': 'a b', 'u3': 'd'}
    result = score_wer(references, {'u1': 'a x c', 'u2': 'b', 'u3': 'd e e'})
    assert (result.substitutions, result.deletions, result.insertions) == (1, 1, 2)
    assert (result.errors, result.words, result.missing) == (4, 6, 0)
    assert result.wer == pytest.approx(4 / 6)
    assert result.utterances == {'u1': (1, 3), 'u2': (1, 2), 'u3': (2, 1)}
    assert str(result) == '66.67 % [4 / 6, 2 ins, 1 del, 1 sub]'


def test_empty_references_and_missing_hypotheses():
    result = score_wer({'u1': '', 'u2': 'a b', 'u3': ''}, {'u1': 'x y', 'u3': ''})
    assert (result.insertions, result.deletions, result.words) == (2, 2, 2)
    assert result.missing == 1
    assert score_wer({'u': ''}, {'u': 'x'}).wer == float('inf')
    assert score_wer({'u': ''}, {'u': ''}).wer == 0.0


def test_words_are_compared_as_they_are():
    assert score_wer({'u': 'A  b'}, {'u': 'a b'}).errors == 1
    assert score_wer({'u': 'x y', 'v': 'x\ty'}, {'u': 'x\u3000y', 'v': 'x y'}).errors == 0


def test_bad_input():
    with pytest.raises(ValueError, match='No references'):
        score_wer({}, {})
    with pytest.raises(ValueError, match='without a reference: q'):
        score_wer({'u': 'a'}, {'q': 'a'})


def test_interval_holds_the_rate_and_is_repeatable():
    references = {f'u{i}': 'a b c d' for i in range(50)}
    hypotheses = {f'u{i}': 'a b c d' if i % 5 else 'a x c' for i in range(50)}
    result = score_wer(references, hypotheses)
    low, high = result.interval(seed=1)
    assert 0 < low < result.wer < high < 3 * result.wer
    assert (low, high) == result.interval(seed=1)


def test_interval_without_errors_is_what_so_many_words_allow():
    result = score_wer({'a': 'x ' * 60, 'b': 'x ' * 40}, {'a': 'x ' * 60, 'b': 'x ' * 40})
    low, high = result.interval()
    assert low == 0
    assert (1 - high) ** 100 == pytest.approx(0.025)
    assert result.interval(level=0.9)[1] < high


def test_a_change_is_judged_on_the_same_utterances():
    rng = np.random.default_rng(0)
    references = {f'u{i}': ' '.join('abcdefgh'[: 2 + i % 7]) for i in range(60)}
    hard = rng.random(60) < 0.5  # for both: a large variance that is none of the difference
    before = {u: 'z' if hard[i] else 'z' + r[1:] for i, (u, r) in enumerate(references.items())}
    after = {u: text.replace('z', 'a') for u, text in before.items()}
    first, then = score_wer(references, before), score_wer(references, after)
    change = then.change(first)
    assert change == then.change(first)
    assert change.wer == pytest.approx(then.wer - first.wer) == pytest.approx(-60 / first.words)
    assert change.low < change.wer < change.high < 0
    assert change.improves == 1.0
    low, high = first.interval()
    assert change.high - change.low < (high - low) / 3
    # By hand: draw i of utterances, the same for both.
    draws = np.random.default_rng(0).integers(60, size=(2000, 60))
    words = np.array([len(references[u].split()) for u in sorted(references)])
    expected = np.quantile(-60 / words[draws].sum(axis=1), [0.025, 0.975])
    np.testing.assert_allclose([change.low, change.high], expected, rtol=1e-12)
    back = first.change(then)
    assert (back.improves, back.wer) == (0.0, -change.wer)
    same = first.change(first)
    assert (same.wer, same.low, same.high, same.improves) == (0.0, 0.0, 0.0, 0.5)


def test_a_change_needs_the_same_references():
    one, other = (score_wer({'u': text}, {}) for text in ('a b', 'a'))
    with pytest.raises(ValueError, match='the same references'):
        one.change(other)
    with pytest.raises(ValueError, match='the same references'):
        one.change(score_wer({'u': 'a b', 'v': 'a'}, {}))
    nothing = score_wer({'u': ''}, {})
    with pytest.raises(ValueError, match='no rates to compare'):
        nothing.change(nothing)


def test_interval_without_reference_words():
    nothing = score_wer({'a': '', 'b': ''}, {})
    assert nothing.interval() == (nothing.wer, nothing.wer) == (0.0, 0.0)
    inserted = score_wer({'a': '', 'b': ''}, {'a': 'x', 'b': 'y z'})
    assert inserted.interval() == (inserted.wer, inserted.wer) == (float('inf'), float('inf'))
    # A quarter of the draws has no reference word but errors, a quarter has no error.
    assert score_wer({'a': '', 'b': 'x'}, {'a': 'p q', 'b': 'x'}).interval() == (0.0, float('inf'))


def test_text_round_trip(tmp_path):
    texts = {'u2': 'b a', 'u1': '', 'u3': 'é ü'}
    write_text(tmp_path / 'text', texts)
    assert (tmp_path / 'text').read_text() == 'u1\nu2 b a\nu3 é ü\n'
    assert read_text(tmp_path / 'text') == texts
    (tmp_path / 'text').write_text('u1\tyes no\nu2 a\tb\n')
    assert read_text(tmp_path / 'text') == {'u1': 'yes no', 'u2': 'a b'}
    (tmp_path / 'text').write_text('u1 a\n\nu1 b\n')
    with pytest.raises(ValueError, match=r"text:3: utterance 'u1'"):
        read_text(tmp_path / 'text')
