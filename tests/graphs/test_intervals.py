"""Words from phones, CTM, TextGrid and alignment files, agreement of boundaries."""

import re

import numpy as np
import pytest

from seqtrain.graphs import Lexicon, OovError, Topology, segments, uniform_alignment
from seqtrain.graphs.alignment import Segment
from seqtrain.graphs.intervals import (
    Interval,
    agreement,
    phone_intervals,
    read_alignments,
    read_ctm,
    word_intervals,
    write_alignments,
    write_ctm,
    write_textgrid,
)


@pytest.fixture
def lexicon():
    return Lexicon.from_dict({'x': ['a', 'a b'], 'y': ['b', 'b b'], 'z': 'a b'})


def parts_of(phones, frames=10):
    return [Segment(phone, index * frames, frames) for index, phone in enumerate(phones)]


def test_phones_in_seconds(lexicon):
    found = phone_intervals([Segment(0, 0, 3), Segment(2, 3, 4)], lexicon.phones, 0.03)
    assert found == [Interval('SIL', 0.0, 0.09), Interval('b', 0.09, 0.21)]


def test_words_take_the_pronunciation_that_fits(lexicon):
    # "a b b": x must be "a" (y = "b b") or "a b" (y = "b"); the first that fits is taken.
    spoken = [0, 1, 2, 2, 0]
    assert word_intervals(parts_of(spoken), 'x y', lexicon, 0.01) == [
        Interval('x', 0.1, 0.2),
        Interval('y', 0.2, 0.4),
    ]
    # A silence after "a b" rules the first reading out.
    assert word_intervals(parts_of([1, 2, 0, 2]), 'x y', lexicon, 0.01) == [
        Interval('x', 0.0, 0.2),
        Interval('y', 0.3, 0.4),
    ]


def test_words_of_a_whole_alignment():
    lexicon = Lexicon.from_dict({'no': 'L OW', 'yes': 'K EH N'})
    topology = Topology.make('chain', 6)
    phones = [0, *lexicon.variants('yes')[0], *lexicon.variants('no')[0], 0]
    parts = segments(uniform_alignment(phones, topology, 70), topology)
    assert word_intervals(parts, 'yes no', lexicon, 0.03) == [
        Interval('yes', 0.3, 1.2),
        Interval('no', 1.2, 1.8),
    ]


@pytest.mark.parametrize('phones', [[1], [1, 2, 2, 2, 2], [2, 1], [1, 0, 2, 2, 1], []])
def test_phones_that_do_not_spell_the_words(lexicon, phones):
    with pytest.raises(ValueError, match="do not spell 'x y'"):
        word_intervals(parts_of(phones), 'x y', lexicon, 0.01)
    with pytest.raises(OovError, match='q'):
        word_intervals(parts_of(phones), 'x q', lexicon, 0.01)


def test_ctm_round_trip(tmp_path):
    utterances = {'u2': [Interval('b', 0.5, 0.75)], 'u1': [Interval('a', 0.0, 0.12)]}
    write_ctm(tmp_path / 'a.ctm', utterances)
    text = (tmp_path / 'a.ctm').read_text()
    assert text == 'u1 1 0.000 0.120 a\nu2 1 0.500 0.250 b\n'
    assert read_ctm(tmp_path / 'a.ctm') == utterances
    (tmp_path / 'a.ctm').write_text(';; comment\nu1 1 0.0 0.1 a\nu1 1 zero 0.1 a\n')
    with pytest.raises(ValueError, match=r'a\.ctm:3'):
        read_ctm(tmp_path / 'a.ctm')


def test_real_ctm_fits_the_real_text(data_dir):
    folder = data_dir / 'fsdd_unseen'
    words = read_ctm(folder / 'words.ctm')
    lines = (folder / 'test' / 'text').read_text().splitlines()
    for line in lines[:50]:
        utterance, *text = line.split()
        assert [part.label for part in words[utterance] if part.label in text] == text


def test_textgrid(tmp_path):
    tiers = {'words': [Interval('say "x"', 0.1, 0.4)], 'phones': [Interval('a', 0.0, 0.5)]}
    write_textgrid(tmp_path / 'a.TextGrid', tiers, 0.5)
    text = (tmp_path / 'a.TextGrid').read_text()
    assert text.startswith('File type = "ooTextFile"\nObject class = "TextGrid"\n')
    assert 'size = 2\n' in text
    assert re.findall(r'intervals: size = (\d)', text) == ['3', '1']
    found = re.findall(r'xmin = (\S+)\n +xmax = (\S+)\n +text = "(.*)"', text)
    assert found == [
        ('0', '0.1', ''),
        ('0.1', '0.4', 'say ""x""'),
        ('0.4', '0.5', ''),
        ('0', '0.5', 'a'),
    ]


def test_alignment_round_trip(tmp_path):
    write_alignments(tmp_path / 'ali.txt', {'b': np.array([3, 3, 7]), 'a': [0]})
    assert (tmp_path / 'ali.txt').read_text() == 'a 0\nb 3 3 7\n'
    found = read_alignments(tmp_path / 'ali.txt')
    assert {name: pdfs.tolist() for name, pdfs in found.items()} == {'a': [0], 'b': [3, 3, 7]}
    (tmp_path / 'ali.txt').write_text('a 0 x\n')
    with pytest.raises(ValueError, match=r'ali\.txt:1'):
        read_alignments(tmp_path / 'ali.txt')


def test_agreement_by_hand():
    given = {
        'u1': [Interval('SIL', 0.0, 0.1), Interval('a', 0.1, 0.2), Interval('b', 0.2, 0.5)],
        'u2': [Interval('a', 0.0, 0.3)],
        'u3': [Interval('a', 0.0, 0.3)],
    }
    found = {
        'u1': [Interval('a', 0.13, 0.25), Interval('b', 0.25, 0.5), Interval('SIL', 0.5, 0.6)],
        'u2': [Interval('b', 0.0, 0.3)],
    }
    result = agreement(found, given)
    assert (result.utterances, result.skipped) == (1, 1)
    np.testing.assert_allclose(result.differences_s, [0.03, 0.05, 0.0], atol=1e-9)
    assert result.within(0.03) == pytest.approx(2 / 3)
    assert agreement({}, given).within(0.03) == 0.0
