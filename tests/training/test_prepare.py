"""Preparation: bad utterances are left out and named, and change nothing for the others."""

import io

import numpy as np
import pytest
import soundfile

from seqtrain.data import kaldi
from seqtrain.data.features import FeatureConfig
from seqtrain.data.utterance import DataError
from seqtrain.graphs import Lexicon
from seqtrain.ops import min_frames
from seqtrain.training import prepare

LEXICON = Lexicon.from_dict({'yes': 'Y EH S', 'no': 'N OW'})
TEXTS = {'a': 'yes no', 'b': 'no', 'c': 'yes yes no', 'd': 'no no'}


def audio(seed, seconds=1.0, rate=8000):
    noise = np.random.default_rng(seed).normal(scale=0.1, size=int(seconds * rate))
    buffer = io.BytesIO()
    soundfile.write(buffer, noise, rate, format='WAV', subtype='PCM_16')
    return buffer.getvalue()


def kaldi_dir(folder, entries):
    """`entries`: utterance -> (transcript, bytes of the recording or None)."""
    folder.mkdir()
    wav, text = [], []
    for name, (words, content) in sorted(entries.items()):
        file = folder / f'{name}.wav'
        if content is not None:
            file.write_bytes(content)
        wav.append(f'{name} {file}\n')
        text.append(f'{name} {words}\n')
    (folder / 'wav.scp').write_text(''.join(wav))
    (folder / 'text').write_text(''.join(text))
    (folder / 'utt2spk').write_text(''.join(f'{n} {n}\n' for n in sorted(entries)))
    return folder


def prepared(folder, **changes):
    options = {'subsampling': 3, 'num_buckets': 1, 'batch_size': 4} | changes
    return prepare.training_data(
        list(kaldi.read_dir(folder)), LEXICON, FeatureConfig(), prepare.GraphConfig(), **options
    )


GOOD = {name: (text, audio(i)) for i, (name, text) in enumerate(TEXTS.items())}
BAD = {
    'missing': ('yes', None),
    'truncated': ('yes', audio(7)[:900]),
    'wrong-rate': ('yes', audio(8, rate=16000)),
    'silent-list': ('', audio(9)),
    'unknown-word': ('yes perhaps', audio(10)),
    'too-short': ('yes yes yes no', audio(11, seconds=0.1)),
}


def test_each_bad_utterance_is_named_with_its_reason(tmp_path):
    data = prepared(kaldi_dir(tmp_path / 'data', GOOD | BAD))
    reasons = {s.id: s.reason for s in data.features.skipped}
    assert set(data.features.ids) == set(GOOD)
    assert set(reasons) == set(BAD)
    for name, part in {
        'wrong-rate': '16000',
        'unknown-word': 'perhaps',
        'too-short': 'too short by 7 frames',
    }.items():
        assert part in reasons[name]


def test_bad_utterances_change_nothing_for_the_others(tmp_path):
    clean = prepared(kaldi_dir(tmp_path / 'clean', GOOD))
    mixed = prepared(kaldi_dir(tmp_path / 'mixed', GOOD | BAD))
    assert clean.features.ids == mixed.features.ids
    assert clean.buckets == mixed.buckets
    assert clean.graph_sizes == mixed.graph_sizes
    for a, b in zip(clean.features.features, mixed.features.features, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(clean.numerators, mixed.numerators, strict=True):
        np.testing.assert_array_equal(a.weight, b.weight)
    np.testing.assert_array_equal(clean.denominator.weight, mixed.denominator.weight)


def test_nothing_usable_is_an_error_that_gives_the_first_reason(tmp_path):
    folder = kaldi_dir(tmp_path / 'data', {'x': ('perhaps', audio(0))})
    with pytest.raises(DataError, match='perhaps'):
        prepared(folder)


def test_graph_sizes_hold_every_numerator_of_a_bucket_and_of_shorter_ones(tmp_path):
    entries = {f'u{i}': (' '.join(['yes'] * (4 - i)), audio(i, 1 + i)) for i in range(4)}
    data = prepared(kaldi_dir(tmp_path / 'data', entries), num_buckets=4, batch_size=2)
    largest = max(graph.num_states for graph in data.numerators)
    assert data.graph_sizes[-1][0] == largest
    assert [min_frames(graph) for graph in data.numerators] == [12, 9, 6, 3]


def test_output_lengths_round_up(tmp_path):
    data = prepared(kaldi_dir(tmp_path / 'data', GOOD))
    np.testing.assert_array_equal(
        data.output_lengths, [-(-len(x) // 3) for x in data.features.features]
    )


def test_the_phone_model_hears_of_every_recording(tmp_path):
    """As often as a word is said, so many pronunciations are drawn and so likely it is."""
    many = {f'u{i}': ('no', audio(i)) for i in range(20)} | {'v': ('yes', audio(20))}
    data = prepared(kaldi_dir(tmp_path / 'data', many), copies=[(1.0, 1.0), (0.9, 1.0)])
    assert len(data.features) == 42
    texts = data.features.transcripts
    model = prepare.estimate_phone_lm(texts, LEXICON, prepare.GraphConfig())
    first = [model.ngram.logprob(('<s>', 'SIL'), phone) for phone in ('N', 'Y')]
    assert np.exp(first[0] - first[1]) > 10
    again = prepare.denominator(model, data.topology)
    np.testing.assert_array_equal(data.denominator.weight, again.weight)
