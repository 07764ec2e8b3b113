"""Lexicon files, OOV reports, transcripts as acceptors, sampling for the phone LM."""

import pickle

import pytest
from path_enumeration import enumerate_paths

from seqtrain.graphs import Lexicon, LexiconError, OovError, training_phones, transcript


@pytest.fixture
def lexicon():
    # Ids: SIL 0, a 1, b 2. `x` and `y` share a pronunciation; `x` has two.
    return Lexicon.from_dict({'x': ['a', 'a b'], 'y': 'a', 'z': [['b']]})


def sequences(fsa, longest=8):
    return {labels for n in range(longest + 1) for labels in enumerate_paths(fsa, n)}


def test_read(tmp_path):
    path = tmp_path / 'lexicon.txt'
    path.write_text('YES K EH N\n\nNO L OW\nYES K EH\nNO L OW\n')
    lexicon = Lexicon.read(path)
    assert lexicon.phones == ('SIL', 'EH', 'K', 'L', 'N', 'OW')
    assert lexicon.words == ('NO', 'YES')
    assert lexicon.pronunciations['NO'] == (('L', 'OW'),)
    assert lexicon.variants('YES') == ((2, 1, 4), (2, 1))


def test_reading_the_real_ones(data_dir):
    for name, phones in [('yesno', 6), ('fsdd_unseen', 20), ('speechocean', 40)]:
        lexicon = Lexicon.read(data_dir / name / 'lexicon.txt')
        assert len(lexicon.phones) == phones
        lines = (data_dir / name / 'train' / 'text').read_text().splitlines()
        lexicon.check(word for line in lines for word in line.split()[1:])


@pytest.mark.parametrize(
    ('text', 'phones', 'message'),
    [
        ('YES Y\nNO\n', None, r"lexicon\.txt:2: word 'NO' has no phones"),
        ('YES Y\nNO N Q\n', ('SIL', 'N', 'Y'), r'lexicon\.txt:2: unknown phone\(s\) Q'),
        ('\n', None, r'lexicon\.txt: no entries'),
        ('YES Y\n', ('Y', 'SIL'), 'begin with the silence phone'),
        ('YES Y\n', ('SIL', 'Y', 'N', 'Y'), 'stand twice in the phone set: Y'),
        ('YES 1.0 Y EH S\n', None, r'lexicon\.txt:1: 1\.0 is a probability, not a phone'),
        ('YES Y\nNO 5e-05 N\n', None, r'lexicon\.txt:2: 5e-05 is a probability, not a phone'),
        ('YES Y\nA\u00a0B X Y\n', None, r"lexicon\.txt:2: a no-break space in 'A\\xa0B X Y'"),
        ('A\u202fB X Y\n', None, r'lexicon\.txt:1: a no-break space'),
        ('YES 0.5 Y\n', ('SIL', 'Y'), r'lexicon\.txt:1: 0\.5 is a probability, not a phone'),
        ('YES 1 Y EH S\nNO 1 N OW\n', None, r'lexicon\.txt: 1 stands after every word'),
        (';;; # CMUdict\n', None, r'lexicon\.txt:1: take out the comment'),
        ('YES Y EH S # place\n', None, r'lexicon\.txt:1: take out the comment'),
        ('A EY\nA(2) AH\n', None, r"no transcript says 'A\(2\)': write it as another line of 'A'"),
        ('<s> SIL\nYES Y\n', None, r'<s> is added by language models'),
        ('YES Y\nPAUSE sil\n', None, "a phone 'sil' beside the silence phone 'SIL'"),
    ],
)
def test_bad_files_name_the_line(tmp_path, text, phones, message):
    path = tmp_path / 'lexicon.txt'
    path.write_text(text)
    with pytest.raises(LexiconError, match=message):
        Lexicon.read(path, phones=phones)


def test_silence_by_another_name(tmp_path):
    path = tmp_path / 'lexicon.txt'
    path.write_text('YES Y\nPAUSE sil\n(1) W\n')
    assert Lexicon.read(path, silence='sil').phones == ('sil', 'W', 'Y')


def test_further_words_of_the_same_phones(lexicon):
    both = lexicon.with_words({'z': [('a', 'b')], 'w': [('b',)]})
    assert both.phones == lexicon.phones
    assert both.variants('z') == ((1, 2),)
    assert both.words == ('w', 'x', 'y', 'z')
    with pytest.raises(LexiconError, match='outside of the phone set: c'):
        lexicon.with_words({'w': [('c',)]})


def test_phones_may_be_numbers(tmp_path):
    path = tmp_path / 'lexicon.txt'
    path.write_text('YES 1 2\nNO 3 nan\n')
    assert Lexicon.read(path).phones == ('SIL', '1', '2', '3', 'nan')
    path.write_text('YES 1.5 2\n')
    assert Lexicon.read(path, phones=('SIL', '1.5', '2')).variants('YES') == ((1, 2),)


def test_other_encodings(tmp_path):
    path = tmp_path / 'lexicon.txt'
    path.write_bytes('JA Y A\nSCHÖN SH N\n'.encode('latin-1'))
    with pytest.raises(LexiconError, match=r'lexicon\.txt:2: not UTF-8'):
        Lexicon.read(path)
    path.write_text('JA Y A\n', encoding='utf-8-sig')
    assert Lexicon.read(path).words == ('JA',)


def test_from_dict_refuses_empty_pronunciations():
    with pytest.raises(LexiconError, match="'x' has an empty"):
        Lexicon.from_dict({'x': ''})
    with pytest.raises(LexiconError, match='no words'):
        Lexicon.from_dict({})


def test_all_oov_words_are_listed(lexicon):
    with pytest.raises(OovError, match=r'2 word\(s\).*q r') as caught:
        transcript('x r q r', lexicon)
    assert caught.value.words == ('q', 'r')
    again = pickle.loads(pickle.dumps(caught.value))  # from a replica's process
    assert (again.words, str(again)) == (caught.value.words, str(caught.value))
    with pytest.raises(ValueError, match='empty'):
        transcript('  ', lexicon)


def test_transcript_without_silence(lexicon):
    assert sequences(transcript('x z', lexicon, optional_silence=False)) == {(1, 2), (1, 2, 2)}


def test_silence_is_optional_once_at_every_boundary(lexicon):
    found = sequences(transcript('y z', lexicon))
    expected = {
        tuple(p for p in (*before, 1, *between, 2, *after))
        for before in ((), (0,))
        for between in ((), (0,))
        for after in ((), (0,))
    }
    assert found == expected


def test_every_phone_sequence_is_counted_once():
    # `x y` is "a b" either as a + b or as ab + (nothing ...): here a·b and ab·b overlap in "a b b".
    lexicon = Lexicon.from_dict({'x': ['a', 'a b'], 'y': ['b', 'b b']})
    fsa = transcript('x y', lexicon, optional_silence=False)
    paths = {labels: w for n in range(6) for labels, w in enumerate_paths(fsa, n).items()}
    assert paths == {(1, 2): [0.0], (1, 2, 2): [0.0], (1, 2, 2, 2): [0.0]}


def test_training_phones_draw_possible_sequences(lexicon):
    texts = ['x y', 'z', 'x y']
    drawn = training_phones(texts, lexicon, samples=20, seed=3)
    assert len(drawn) == 60
    possible = sequences(transcript('x y', lexicon))
    assert set(drawn[:20]) <= possible
    assert len(set(drawn[:20])) > 5  # pronunciations and silences do vary
    assert drawn[:20] != drawn[40:]  # a transcript's second utterance has its own draw
    assert drawn == training_phones(texts, lexicon, samples=20, seed=3)
    moved = training_phones(texts[1:] + texts[:1], lexicon, samples=20, seed=3)
    assert sorted(moved) == sorted(drawn)  # the order of transcripts does not matter


def test_silence_probability_is_kept(lexicon):
    never = training_phones(['x y z'] * 5, lexicon, silence_probability=0.0)
    always = training_phones(['x y z'] * 5, lexicon, silence_probability=1.0)
    assert not any(0 in phones for phones in never)
    assert all(phones.count(0) == 4 for phones in always)


def test_phones_as_words(lexicon):
    phones = lexicon.of_phones()
    assert phones.phones == lexicon.phones
    assert phones.words == ('a', 'b')
    assert lexicon.canonical('x z') == ('a', 'b')
    with pytest.raises(OovError, match='q'):
        lexicon.canonical(['q'])
    noise = Lexicon.from_dict({'yes': 'Y EH S', '[noise]': 'SIL'})
    assert noise.canonical('yes [noise] yes') == ('Y', 'EH', 'S', 'Y', 'EH', 'S')
