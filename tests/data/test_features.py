import dataclasses
import io
import pathlib
import time

import kaldi_native_fbank as knf
import numpy as np
import pytest
import soundfile

from seqtrain.data import features, kaldi
from seqtrain.data.features import FeatureConfig
from seqtrain.data.utterance import DataError, Utterance

PLAIN = FeatureConfig(cmvn='none')


def test_shape_and_repeatability(make_utterance):
    records = [make_utterance('a'), make_utterance('b', seed=1)]
    both = features.compute(records, PLAIN)
    alone = features.compute(records[1:], PLAIN)
    assert [x.shape for x in both.features] == [(100, 40), (100, 40)]
    assert both.features[0].dtype == np.float32
    np.testing.assert_array_equal(both.features[1], alone.features[0])


@pytest.mark.parametrize('snip_edges', [True, False])
@pytest.mark.parametrize('rate', [8000, 16000])
def test_warped_fbank_without_warp_is_kaldi_native_fbank(snip_edges, rate):
    samples = 1000 * np.random.default_rng(0).standard_normal(7777).astype(np.float32)
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.snip_edges = snip_edges
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 40
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(rate, samples)
    fbank.input_finished()
    expected = np.array([fbank.get_frame(t) for t in range(fbank.num_frames_ready)])
    ours = features.warped_fbank(samples, options, 1.0)
    assert ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=2e-3)


def test_vtln_moves_a_tone_between_bands(make_utterance):
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = 8000
    options.mel_opts.num_bins = 40
    tone = 1000 * np.sin(2 * np.pi * 1000 / 8000 * np.arange(8000)).astype(np.float32)
    peaks = [
        int(features.warped_fbank(tone, options, warp).mean(axis=0).argmax())
        for warp in (0.85, 1.0, 1.15)
    ]
    assert peaks[0] != peaks[1] != peaks[2]
    assert np.all(np.diff(peaks) > 0) or np.all(np.diff(peaks) < 0)


def test_speed_changes_duration_and_pitch():
    rate = 8000
    tone = np.sin(2 * np.pi * 1000 / rate * np.arange(rate)).astype(np.float32)
    fast = features.change_speed(tone, 1.1)
    assert len(fast) == pytest.approx(rate / 1.1, abs=2)
    peak = np.argmax(np.abs(np.fft.rfft(fast))) * rate / len(fast)
    assert peak == pytest.approx(1100, abs=2)
    assert features.change_speed(tone, 1.0) is tone


@pytest.mark.parametrize('speed', [0.0, 3.0])
def test_a_silly_speed_is_an_error(speed):
    with pytest.raises(DataError, match='speed is'):
        features.change_speed(np.ones(10, np.float32), speed)


def test_copies_keep_speakers_and_say_what_they_are(make_utterance):
    records = [make_utterance('a', speaker='anna'), make_utterance('b', speaker='bert', seed=1)]
    copies = features.compute_copies(records, PLAIN, [(1.0, 1.0), (0.9, 1.0), (1.0, 1.1)])
    assert copies.ids == ('a', 'b', 'sp0.9-vt1-a', 'sp0.9-vt1-b', 'sp1-vt1.1-a', 'sp1-vt1.1-b')
    assert copies.speakers == ('anna', 'bert') * 3
    assert copies.num_frames.tolist() == [100, 100, 111, 111, 100, 100]
    assert not np.allclose(copies.features[0], copies.features[4])


def test_a_transcript_counts_once_per_recording(make_utterance):
    records = [
        dataclasses.replace(make_utterance(name), text=text)
        for name, text in {'a': 'yes no', 'b': 'no', 'sp-c': 'yes no'}.items()
    ]
    copies = features.compute_copies(records, PLAIN, [(0.9, 1.0), (1.1, 1.0), (1.1, 0.85)])
    assert len(copies.texts) == 9
    assert copies.transcripts == ('yes no', 'no', 'yes no')
    # A copy that alone could be used is enough.
    assert copies.select([2, 3, 4]).transcripts == ('yes no', 'yes no', 'no')


def test_normalisation_per_utterance_and_per_speaker(make_utterance):
    records = [make_utterance(n, speaker=s, seed=i) for i, (n, s) in enumerate(['ax', 'bx', 'cy'])]
    by_utterance = features.compute(records, FeatureConfig(cmvn='utterance'))
    for x in by_utterance.features:
        np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-3)
    by_speaker = features.compute(records, FeatureConfig(cmvn='speaker'))
    pooled = np.concatenate(by_speaker.features[:2])
    np.testing.assert_allclose(pooled.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(pooled.std(axis=0), 1, atol=1e-3)
    assert np.abs(by_speaker.features[0].mean(axis=0)).max() > 1e-3
    np.testing.assert_allclose(by_speaker.features[2], by_utterance.features[2], atol=1e-5)


def test_mean_only_normalisation_keeps_the_variance(make_utterance):
    plain = features.compute([make_utterance()], PLAIN).features[0]
    config = FeatureConfig(cmvn='utterance', norm_vars=False)
    centred = features.compute([make_utterance()], config).features[0]
    np.testing.assert_allclose(centred, plain - plain.mean(axis=0), atol=1e-4)


def floats(spoilt):
    """A WAV file of floating-point samples, one of them this."""
    samples = np.random.default_rng(0).standard_normal(8000).astype(np.float32) / 50
    samples[4000] = spoilt
    file = io.BytesIO()
    soundfile.write(file, samples, 8000, format='WAV', subtype='FLOAT')
    return file.getvalue()


@pytest.mark.filterwarnings('ignore::RuntimeWarning')
def test_bad_utterances_are_skipped_and_named_and_change_no_other(make_utterance, make_audio):
    good = [make_utterance('good1', speaker='x'), make_utterance('good2', speaker='y', seed=1)]
    encoded = make_audio(container='WAV')
    bad = [
        make_utterance('missing', audio=pathlib.Path('no/such.flac')),
        make_utterance('truncated', audio=encoded[:-100]),
        make_utterance('garbage', audio=b'this is not audio'),
        make_utterance('rate', audio=make_audio(rate=16000)),
        make_utterance('untranscribed', text='  '),
        make_utterance('short', audio=make_audio(seconds=0.004)),
        make_utterance('listed', problem='recording r is not in wav.scp'),
        make_utterance('segment', start_s=5.0, end_s=6.0),
        make_utterance('nothing', audio=None),
        make_utterance('nan', audio=floats(np.nan)),
        make_utterance('loud', audio=floats(1e30)),
    ]
    config = FeatureConfig(cmvn='speaker')
    result = features.compute([good[0], *bad, good[1]], config)
    assert result.ids == ('good1', 'good2')
    reasons = {s.id: s.reason for s in result.skipped}
    expected = {
        'missing': 'such.flac is missing',
        'truncated': 'truncated',
        'garbage': 'damaged or of an unknown format',
        'rate': 'sample rate is 16000 Hz, not 8000 Hz',
        'untranscribed': 'transcript is empty',
        'short': 'too short for one frame',
        'listed': 'not in wav.scp',
        'segment': 'ends at 6 s',
        'nothing': 'no recording',
        'nan': 'holds NaN or infinity',
        'loud': 'features are not finite',
    }
    assert list(reasons) == list(expected)
    for name, reason in expected.items():
        assert reason in reasons[name]
    clean = features.compute(good, config)
    for ours, theirs in zip(result.features, clean.features, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_digital_silence_is_skipped(make_utterance):
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000, np.int16), 8000, format='FLAC')
    result = features.compute([make_utterance('silent', audio=file.getvalue())], PLAIN)
    assert [s.id for s in result.skipped] == ['silent']
    assert 'digital silence' in result.skipped[0].reason


def test_texts_are_optional_for_decoding(make_utterance):
    result = features.compute([make_utterance(text='')], PLAIN, require_text=False)
    assert result.texts == ('',)


def test_given_features_are_checked_and_normalised(make_utterance):
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    give = lambda name, value: make_utterance(name, audio=None, features=value)  # noqa: E731
    records = [
        give('ok', x),
        give('also', 2 * x),
        give('nan', np.full((5, 3), np.nan, np.float32)),
        give('wide', np.zeros((5, 4), np.float32)),
        give('none', np.zeros((0, 3), np.float32)),
    ]
    result = features.compute(records, FeatureConfig(cmvn='utterance'))
    assert result.ids == ('ok', 'also')
    np.testing.assert_allclose(result.features[0].std(axis=0), 1, atol=1e-4)
    assert [s.id for s in result.skipped] == ['nan', 'wide', 'none']
    with pytest.raises(DataError, match=r'remove feats\.scp'):
        features.compute(records, PLAIN, speed=0.9)


def test_cache_gives_the_same_set_and_depends_on_content(make_utterance, make_audio, tmp_path):
    path = tmp_path / 'a.flac'
    path.write_bytes(make_audio(seed=1))
    records = [make_utterance('a', audio=path), make_utterance('empty', text='')]
    cache = tmp_path / 'cache'
    fresh = features.compute(records, PLAIN, cache)
    again = features.compute(records, PLAIN, cache)
    assert len(list(cache.iterdir())) == 1
    assert dataclasses.replace(again, features=[]).__dict__ == (
        dataclasses.replace(fresh, features=[]).__dict__
    )
    np.testing.assert_array_equal(fresh.features[0], again.features[0])
    path.write_bytes(make_audio(seed=2))
    changed = features.compute(records, PLAIN, cache)
    assert not np.array_equal(changed.features[0], fresh.features[0])
    features.compute(records, FeatureConfig(num_mel_bins=20), cache)
    assert len(list(cache.iterdir())) == 3
    features.compute(records, PLAIN, cache, speed=np.float32(1))  # the same speed
    assert len(list(cache.iterdir())) == 3


def test_cache_depends_on_the_shape_of_given_features(make_utterance, tmp_path):
    given = np.arange(12, dtype=np.float32)
    for shape in ((4, 3), (3, 4)):
        record = make_utterance(audio=None, features=given.reshape(shape))
        found = features.compute([record], FeatureConfig(cmvn='none'), tmp_path)
        np.testing.assert_array_equal(found.features[0], record.features)


def test_a_recording_of_many_segments_is_hashed_once(
    make_utterance, make_audio, tmp_path, monkeypatch
):
    hashed = []
    encoded = Utterance.encoded
    monkeypatch.setattr(Utterance, 'encoded', lambda self: hashed.append(self.id) or encoded(self))
    paths = [tmp_path / 'a.flac', tmp_path / 'b.flac']
    for seed, path in enumerate(paths):
        path.write_bytes(make_audio(seed=seed))
    records = [
        make_utterance(f'{path.stem}{i}', audio=path, start_s=i / 10, end_s=i / 10 + 0.1)
        for i in range(4)
        for path in paths
    ]
    assert len(features.compute(records, PLAIN, tmp_path / 'cache')) == 8
    assert hashed == ['a0', 'b0']
    copies = [(1.0, 1.0), (0.9, 1.0), (1.1, 1.0)]
    assert len(features.compute_copies(records, PLAIN, copies, tmp_path / 'cache')) == 24
    assert hashed == ['a0', 'b0'] * 2


def test_cache_is_read_not_computed(make_utterance, tmp_path, monkeypatch):
    features.compute([make_utterance()], PLAIN, tmp_path)
    monkeypatch.setattr(features, '_compute', lambda *args: pytest.fail('computed again'))
    assert len(features.compute([make_utterance()], PLAIN, tmp_path)) == 1


def test_a_damaged_cache_entry_is_computed_again(make_utterance, tmp_path):
    fresh = features.compute([make_utterance()], PLAIN, tmp_path)
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:50])
    again = features.compute([make_utterance()], PLAIN, tmp_path)
    np.testing.assert_array_equal(fresh.features[0], again.features[0])


def test_an_empty_corpus_gives_an_empty_set(tmp_path):
    assert len(features.compute([], PLAIN, tmp_path)) == 0
    assert len(features.compute([], PLAIN, tmp_path)) == 0


def test_unknown_normalisation_is_an_error():
    with pytest.raises(DataError, match="cmvn is 'global'; use one of utterance, speaker, none"):
        FeatureConfig(cmvn='global')


def test_an_impossible_filterbank_is_an_error_that_says_what_to_change(make_utterance):
    for changes in ({'high_freq': 5000.0}, {'num_mel_bins': 1000}, {'low_freq': 3999.0}):
        with pytest.raises(DataError, match='no such filterbank at 8000 Hz'):
            features.compute([make_utterance()], FeatureConfig(**changes))


@pytest.mark.parametrize(
    'changes',
    [{'frame_length_ms': 0.025}, {'frame_length_ms': float('nan')}, {'frame_shift_ms': 0.01}],
)
@pytest.mark.parametrize('vtln', [1.0, 0.9])
def test_frames_in_seconds_are_an_error_that_says_the_unit(make_utterance, changes, vtln):
    (name,) = changes
    with pytest.raises(DataError, match=rf'{name}=.* less than 2 samples at 8000 Hz.*millisec'):
        features.compute([make_utterance()], FeatureConfig(**changes), vtln=vtln)


@pytest.mark.parametrize('vtln', [1.0, 0.9])
def test_eighty_bands_at_8_khz_are_finite_and_all_alive(make_utterance, vtln):
    config = FeatureConfig(num_mel_bins=80, cmvn='none')
    (x,) = features.compute([make_utterance()], config, vtln=vtln).features
    assert x.shape == (100, 80)
    assert np.isfinite(x).all()
    assert x.std(axis=0).min() > 0.1


def test_half_an_hour_of_real_speech_takes_seconds(data_dir):
    records = list(kaldi.read_dir(data_dir / 'fsdd_unseen' / 'train'))
    start = time.process_time()
    result = features.compute(records, FeatureConfig(cmvn='speaker'))
    assert time.process_time() - start < 15
    assert len(result) == 398
    assert not result.skipped
    assert result.sample_rate == 8000
    assert all(np.isfinite(x).all() for x in result.features)


def mfcc(record, num_ceps):
    samples, rate = record.decode()
    options = knf.MfccOptions()
    options.frame_opts.samp_freq = rate
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = False
    options.mel_opts.num_bins, options.num_ceps, options.use_energy = 23, num_ceps, False
    computer = knf.OnlineMfcc(options)
    computer.accept_waveform(rate, samples)
    computer.input_finished()
    frames = np.array([computer.get_frame(t) for t in range(computer.num_frames_ready)])
    return Utterance(record.id, record.speaker, record.text, features=frames)


def test_given_mfcc_become_the_log_mel_bands_that_they_were_made_of(make_utterance):
    config = FeatureConfig(num_mel_bins=23, cmvn='none', dither=0.0)
    records = [make_utterance('a'), make_utterance('b', seed=1)]
    computed = features.compute(records, config)
    given = dataclasses.replace(config, given='mfcc')
    all_kept = features.compute([mfcc(record, 23) for record in records], given)
    for ours, theirs in zip(all_kept.features, computed.features, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)
    smoothed = features.compute([mfcc(record, 13) for record in records], given)
    assert smoothed.dim == 23
    for ours, theirs in zip(smoothed.features, computed.features, strict=True):
        np.testing.assert_allclose(ours.mean(1), theirs.mean(1), atol=2e-3)  # the energy is whole


def test_given_mfcc_are_not_taken_for_log_mel_bands(make_utterance):
    record = speech_like(make_utterance)
    config = FeatureConfig(num_mel_bins=23)
    with pytest.raises(DataError, match=r'look like MFCC.*--config\.features\.given=mfcc'):
        features.compute([mfcc(record, 13)], config)
    as_they_are = features.compute([mfcc(record, 13)], dataclasses.replace(config, given='other'))
    assert as_they_are.dim == 13
    bands = features.compute([record], dataclasses.replace(config, cmvn='none')).features[0]
    given = dataclasses.replace(record, audio=None, features=bands)
    assert features.compute([given], config).dim == 23
    with pytest.raises(DataError, match="given is 'plp'; use one of fbank, mfcc, other"):
        FeatureConfig(given='plp')


def speech_like(make_utterance):
    """Two seconds of noise that comes and goes, as loudness does."""
    rng = np.random.default_rng(0)
    loud = np.repeat(10.0 ** rng.uniform(0, 3, 40), 400)
    file = io.BytesIO()
    samples = (loud * rng.standard_normal(16000)).astype(np.int16)
    soundfile.write(file, samples, 8000, format='WAV', subtype='PCM_16')
    return make_utterance('loud', audio=file.getvalue())
