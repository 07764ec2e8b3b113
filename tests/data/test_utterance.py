import io
import struct

import numpy as np
import pytest
import soundfile

from seqtrain.data import utterance


@pytest.mark.parametrize('container', ['FLAC', 'WAV'])
def test_samples_have_the_scale_of_int16(make_utterance, make_audio, container):
    record = make_utterance(audio=make_audio(container=container))
    expected = np.random.default_rng(0).standard_normal(8000) * 1000
    np.testing.assert_array_equal(record.samples(), expected.astype(np.int16).astype(np.float32))
    assert record.samples().dtype == np.float32
    assert record.sample_rate == 8000


def test_segment_cuts_the_recording(make_utterance):
    whole = make_utterance().samples()
    part = make_utterance(start_s=0.25, end_s=0.75).samples()
    np.testing.assert_array_equal(part, whole[2000:6000])


@pytest.mark.parametrize(
    ('container', 'subtype'),
    [('FLAC', 'PCM_16'), ('WAV', 'PCM_24'), ('WAV', 'ULAW'), ('OGG', 'VORBIS'), ('MP3', None)],
)
@pytest.mark.parametrize('stored', [True, False])
def test_segment_cuts_a_recording_of_any_format(
    make_utterance, tmp_path, container, subtype, stored
):
    noise = 0.1 * np.random.default_rng(0).standard_normal(40000)
    path = tmp_path / 'recording'
    soundfile.write(path, noise, 8000, format=container, subtype=subtype)
    audio = path if stored else path.read_bytes()
    whole = make_utterance(audio=audio).samples()
    part = make_utterance(audio=audio, start_s=2.34567, end_s=3.21).samples()
    np.testing.assert_array_equal(part, whole[18765:25680])


def test_of_a_long_recording_the_segment_alone_is_read(make_utterance, tmp_path):
    samples = np.zeros(8000, np.float32)
    samples[:100] = samples[5000:] = np.nan
    soundfile.write(tmp_path / 'a.wav', samples, 8000, subtype='FLOAT')
    part = make_utterance(audio=tmp_path / 'a.wav', start_s=0.1, end_s=0.5).samples()
    assert part.shape == (3200,)
    with pytest.raises(utterance.AudioError, match='NaN'):
        make_utterance(audio=tmp_path / 'a.wav', start_s=0.0, end_s=0.5).samples()


def test_segment_may_overhang_a_little_but_not_much(make_utterance):
    assert len(make_utterance(start_s=0.5, end_s=1.2).samples()) == 4000
    with pytest.raises(utterance.AudioError, match=r'ends at 2 s but the recording lasts 1\.00 s'):
        make_utterance(start_s=0.5, end_s=2.0).samples()


@pytest.mark.parametrize(('start_s', 'end_s'), [(0.5, 0.5), (0.6, 0.5), (1.0, 1.1), (-0.1, 0.5)])
def test_empty_segment_is_an_error(make_utterance, start_s, end_s):
    with pytest.raises(utterance.AudioError, match='is empty'):
        make_utterance(start_s=start_s, end_s=end_s).samples()


@pytest.mark.parametrize(('start_s', 'end_s'), [(0.0, float('inf')), (float('nan'), 0.5)])
def test_a_segment_has_ends(make_utterance, start_s, end_s):
    with pytest.raises(utterance.AudioError, match='no span of time'):
        make_utterance(start_s=start_s, end_s=end_s).samples()


@pytest.mark.parametrize('container', ['FLAC', 'WAV'])
@pytest.mark.parametrize('kept', [0.0, 0.001, 0.5, 0.999])
def test_truncated_audio_is_an_error(make_audio, container, kept):
    encoded = make_audio(container=container)
    with pytest.raises(utterance.AudioError, match=r'truncated|damaged'):
        utterance.decode(encoded[: int(kept * len(encoded))])


def test_missing_file_is_an_error(make_utterance, tmp_path):
    record = make_utterance(audio=tmp_path / 'absent.flac')
    with pytest.raises(utterance.AudioError, match=r'absent\.flac is missing'):
        record.samples()
    with pytest.raises(utterance.AudioError, match=r'absent\.flac is missing'):
        _ = record.sample_rate


def test_two_channels_are_an_error():
    file = io.BytesIO()
    soundfile.write(file, np.zeros((100, 2), np.int16), 8000, format='WAV')
    with pytest.raises(utterance.AudioError, match='2 channels'):
        utterance.decode(file.getvalue())


def test_no_samples_are_an_error(make_audio):
    with pytest.raises(utterance.AudioError, match='0 samples'):
        utterance.decode(make_audio(seconds=0, container='WAV'))


@pytest.mark.parametrize('more', [8, 1])
def test_a_header_that_counts_too_many_bytes_is_no_truncation(make_audio, more):
    encoded = bytearray(make_audio(container='WAV'))
    encoded[4:8] = struct.pack('<I', len(encoded) - 8 + more)
    samples, _ = utterance.decode(bytes(encoded))
    assert len(samples) == 8000
    with pytest.raises(utterance.AudioError, match='truncated'):
        utterance.decode(bytes(encoded[:-2]))
