"""Words from phones, CTM, TextGrid and alignment files, agreement of boundaries."""

import itertools
import re

import numpy as np
import pytest

from seqtrain.graphs import Lexicon, OovError, Topology, segments, uniform_alignment
from seqtrain.graphs.alignment import Segment
from seqtrain.graphs.alignment_files import (
    CtmError,
    read_alignments,
    read_ctm,
    write_alignments,
    write_ctm,
    write_textgrid,
)
from seqtrain.graphs.intervals import (
    FrameTimes,
    Interval,
    agreement,
    phone_intervals,
    spell,
    state_intervals,
    word_intervals,
)


@pytest.fixture
def lexicon():
    return Lexicon.from_dict({'x': ['a', 'a b'], 'y': ['b', 'b b'], 'z': 'a b'})


def parts_of(phones, frames=10):
    return [Segment(phone, index * frames, frames) for index, phone in enumerate(phones)]


def words_of(parts, text, lexicon, times=None):
    parts, spans = spell(parts, text, lexicon)
    return word_intervals(spans, parts, times or FrameTimes(10_000))


def test_textgrid_times_of_long_recordings(tmp_path):
    parts = [Interval('a', 12345.67, 12345.69), Interval('b', 12345.69, 12345.700001)]
    write_textgrid(tmp_path / 'a.TextGrid', {'phones': parts}, 100000.0)
    text = (tmp_path / 'a.TextGrid').read_text()
    assert re.findall(r'xmin = (\S+)\n +xmax = (\S+)\n +text', text) == [
        ('0', '12345.67'),
        ('12345.67', '12345.69'),
        ('12345.69', '12345.700001'),
        ('12345.700001', '100000'),
    ]


@pytest.mark.parametrize('subsampling', [1, 2, 3])
def test_an_input_frame_lies_in_the_output_frame_whose_centre_is_nearest(subsampling):
    num_frames = 40
    times = FrameTimes(num_frames, 0.01, subsampling)
    outputs = -(-num_frames // subsampling)
    bounds = [times.boundary_s(u) for u in range(outputs + 1)]
    assert (bounds[0], bounds[-1]) == (0.0, 0.4)
    assert times.end_s == 0.4
    for u in range(outputs):
        centre = 0.01 * (subsampling * u + 0.5)
        for edge, neighbour in ((bounds[u], u - 1), (bounds[u + 1], u + 1)):
            if 0 <= neighbour < outputs:
                other = 0.01 * (subsampling * neighbour + 0.5)
                assert abs(edge - centre) == pytest.approx(abs(edge - other))


def test_phones_in_seconds(lexicon):
    found = phone_intervals(
        [Segment(0, 0, 3), Segment(2, 3, 4)], lexicon.phones, FrameTimes(21, 0.01, 3)
    )
    assert found == [Interval('SIL', 0.0, 0.08), Interval('b', 0.08, 0.21)]


def test_words_take_the_pronunciation_that_fits(lexicon):
    # "a b b": x must be "a" (y = "b b") or "a b" (y = "b"); the first that fits is taken.
    spoken = [0, 1, 2, 2, 0]
    assert words_of(parts_of(spoken), 'x y', lexicon) == [
        Interval('x', 0.1, 0.2),
        Interval('y', 0.2, 0.4),
    ]
    # A silence after "a b" rules the first reading out.
    assert words_of(parts_of([1, 2, 0, 2]), 'x y', lexicon) == [
        Interval('x', 0.0, 0.2),
        Interval('y', 0.3, 0.4),
    ]


def test_words_of_a_whole_alignment():
    lexicon = Lexicon.from_dict({'no': 'L OW', 'yes': 'K EH N'})
    topology = Topology.make('chain', 6)
    phones = [0, *lexicon.variants('yes')[0], *lexicon.variants('no')[0], 0]
    parts = segments(uniform_alignment(phones, topology, 70), topology)
    assert words_of(parts, 'yes no', lexicon, FrameTimes(210, 0.01, 3)) == [
        Interval('yes', 0.29, 1.19),
        Interval('no', 1.19, 1.79),
    ]


@pytest.mark.parametrize('phones', [[1], [1, 2, 2, 2, 2], [2, 1], [1, 0, 2, 2, 1], []])
def test_phones_that_do_not_spell_the_words(lexicon, phones):
    with pytest.raises(ValueError, match="do not spell 'x y'"):
        spell(parts_of(phones), 'x y', lexicon)
    with pytest.raises(OovError, match='q'):
        spell(parts_of(phones), 'x q', lexicon)


def test_long_transcripts_and_words_of_silence():
    words = Lexicon.from_dict({'x': 'a', 'y': 'b b', '[noise]': 'SIL'})
    parts = parts_of([1, 2, 2] * 1500)
    assert [span.first for span in spell(parts, ' '.join(['x y'] * 1500), words)[1]][-2:] == [
        4497,
        4498,
    ]
    spans = spell(parts_of([0, 1, 0, 1, 0]), 'x [noise] x', words)[1]
    assert [(span.word, span.first) for span in spans] == [('x', 1), ('[noise]', 2), ('x', 3)]
    with pytest.raises(ValueError, match='do not spell'):
        spell(parts, ' '.join(['x y'] * 1499 + ['x x']), words)


def test_a_word_that_begins_with_silences_after_a_silence():
    words = Lexicon.from_dict({'x': 'a', 'y': 'SIL SIL b'})
    cut, spans = spell(parts_of([1, 0, 0, 0, 2]), 'x y', words)
    assert len(cut) == 5
    assert [(span.first, span.end) for span in spans] == [(0, 1), (2, 5)]


def test_a_segment_of_equal_phones_is_cut_where_words_meet():
    topology = Topology.make('hmm1', 3)
    parts = segments([0, 1, 1, 2, 2, 2, 2, 2, 2, 0], topology)
    words = Lexicon.from_dict({'z': 'a b', 'y': 'b b'})
    cut, spans = spell(parts, 'z y', words)
    assert [(part.phone, part.start, part.frames) for part in cut] == [
        (0, 0, 1),
        (1, 1, 2),
        (2, 3, 2),
        (2, 5, 2),
        (2, 7, 2),
        (0, 9, 1),
    ]
    assert word_intervals(spans, cut, FrameTimes(10)) == [
        Interval('z', 0.01, 0.05),
        Interval('y', 0.05, 0.09),
    ]
    with pytest.raises(ValueError, match="do not spell 'z y'"):
        spell(segments([1, 2, 2], topology), 'z y', words)


@pytest.mark.parametrize('kind', ['chain', 'hmm3', 'ctc', 'hmm1'])
@pytest.mark.parametrize(
    ('entries', 'text', 'phones'),
    [
        ({'and': ['a n d', 'a n'], 'do': 'd u'}, 'and do', 'a n d u'),
        ({'and': ['a n d', 'a n'], 'do': 'd u'}, 'and do', 'SIL a n d u SIL'),
        ({'named': ['n n a', 'n a']}, 'named', 'n a'),
        ({'and': ['a n d', 'a n'], 'do': 'd u'}, 'do and do', 'd u a n SIL d u'),
    ],
)
@pytest.mark.parametrize('frames', [1, 3])
def test_no_segment_is_shared_where_each_phone_can_have_its_own(
    entries, text, phones, kind, frames
):
    words = Lexicon.from_dict(entries)
    topology = Topology.make(kind, len(words.phones))
    spoken = [words.phone_ids[phone] for phone in phones.split()]
    pdfs = uniform_alignment(spoken, topology, frames * topology.num_states * len(spoken))
    parts = segments(pdfs, topology)
    cut, spans = spell(parts, text, words)
    assert [part.phone for part in cut] == spoken
    assert cut == parts
    assert [span.word for span in spans] == text.split()


def test_a_segment_is_shared_by_no_more_phones_than_it_has_frames():
    words = Lexicon.from_dict({'y': ['b b b', 'b b'], 'a': 'a'})
    cut, spans = spell([Segment(1, 0, 1), Segment(2, 1, 2)], 'a y', words)
    assert [part.phone for part in cut] == [1, 2, 2]
    assert [(span.first, span.end) for span in spans] == [(0, 1), (1, 3)]
    cut, _ = spell([Segment(2, 0, 5)], 'y y', words)
    assert [part.frames for part in cut] == [1] * 5


def test_states_in_seconds():
    topology = Topology.make('hmm3', 2)
    pdfs = np.array([0, 1, 1, 2, 3, 4, 5, 5, 3, 4, 5])
    found = state_intervals(segments(pdfs, topology), pdfs, topology, ('SIL', 'a'), FrameTimes(11))
    assert [part.label for part in found] == [
        *('SIL_0', 'SIL_1', 'SIL_2'),
        *('a_0', 'a_1', 'a_2'),
        *('a_0', 'a_1', 'a_2'),
    ]
    assert found[1] == Interval('SIL_1', 0.01, 0.03)
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(found))


def test_ctm_round_trip(tmp_path):
    utterances = {'u2': [Interval('b', 0.5, 0.75)], 'u1': [Interval('a', 0.0, 0.12)]}
    write_ctm(tmp_path / 'a.ctm', utterances)
    text = (tmp_path / 'a.ctm').read_text()
    assert text == 'u1 1 0.000 0.120 a\nu2 1 0.500 0.250 b\n'
    assert read_ctm(tmp_path / 'a.ctm') == utterances


@pytest.mark.parametrize('times', ['zero 0.1', 'nan 0.1', '0.1 nan', '0.1 -0.1', '0.1 inf', '0.1'])
def test_bad_ctm_names_file_and_line(tmp_path, times):
    (tmp_path / 'a.ctm').write_text(f';; comment\nu1 1 0.0 0.1 a\nu1 1 {times} a\n')
    with pytest.raises(CtmError, match=r'a\.ctm:3'):
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
    (tmp_path / 'ali.txt').write_text('a\t1 2\nb  3\nempty\n')
    found = read_alignments(tmp_path / 'ali.txt')
    assert {name: pdfs.tolist() for name, pdfs in found.items()} == {
        'a': [1, 2],
        'b': [3],
        'empty': [],
    }


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a 0 x\n', r'ali\.txt:1: not a vector'),
        ('a 0\nb 3000000000\n', r'ali\.txt:2: not a vector of 32-bit integers'),
        ('a 0\nb 1\na 2\n', r"ali\.txt:3: utterance 'a' is there twice"),
    ],
)
def test_bad_alignments_name_file_and_line(tmp_path, text, message):
    (tmp_path / 'ali.txt').write_text(text)
    with pytest.raises(ValueError, match=message):
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
    assert (result.utterances, result.equal) == (2, 1)
    assert (result.labels, result.matched) == (3, 2)
    np.testing.assert_allclose(result.differences_s, [0.03, 0.05, 0.0], atol=1e-9)
    assert result.within(0.03) == pytest.approx(2 / 3)
    assert agreement({}, given).within(0.03) == 0.0


def test_agreement_in_stretches():
    def spoken(labels, shift_s=0.0):
        return [Interval(label, i + shift_s, i + 1.0 + shift_s) for i, label in enumerate(labels)]

    # a b | x or y | c d: between b and c nothing can be compared, b|x and y|c differ.
    result = agreement({'u': spoken('abxcd', 0.5)}, {'u': spoken('abycd')})
    assert (result.equal, result.labels, result.matched) == (0, 5, 4)
    np.testing.assert_allclose(result.differences_s, [0.5] * 4)  # start, a|b, c|d, end
    # One more label: its neighbours no longer stand next to each other.
    result = agreement({'u': spoken('abc')}, {'u': spoken('ac')})
    assert (result.labels, result.matched, len(result.differences_s)) == (2, 2, 2)
