"""Log-mel filterbank features with mean and variance normalisation, computed once and cached.

The filterbank is kaldi-native-fbank's; this file adds normalisation, speed and vocal-tract
perturbation, the disk cache, and the account of what had to be skipped. Masking of finished
features (SpecAugment) is in `augment`; padding to batches is in `buckets`.
"""

from __future__ import annotations

import collections
import dataclasses
import fractions
import itertools
import re
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.fft
import scipy.signal
from jaxtyping import Float32

from seqtrain import extras
from seqtrain.data import feature_cache, given
from seqtrain.data.utterance import AudioError, DataError, Skipped, Utterance

CMVN = ('utterance', 'speaker', 'none')
# Keeps a constant feature (digital silence through a mel band) finite after normalisation.
STD_FLOOR = 1e-3
_LEAST_SAMPLES = 2  # of a frame and its shift
_COPY = re.compile(r'^sp[\d.]+-vt[\d.]+-')  # see `compute`


@dataclasses.dataclass(frozen=True)
class FeatureConfig:
    """How features are computed. Changing any field changes the cache key.

    Attributes:
      num_mel_bins: F, the number of mel bands.
      sample_rate: Hz that every recording must have; 0: the rate most of the recordings have.
      frame_shift_ms: from one frame to the next, in ms.
      frame_length_ms: of the analysis window, in ms.
      low_freq: lower edge of the lowest band, in Hz.
      high_freq: upper edge of the highest band, in Hz; if <= 0, counted from the Nyquist rate.
      snip_edges: frames only where the whole window fits (Kaldi's default); otherwise one frame
        per shift, the signal mirrored at its ends, so that short utterances keep their frames.
      dither: standard deviation of the noise added to samples of full scale ±32768; the noise is
        a function of the utterance's id, so features are the same in every run.
      cmvn: normalise each band to mean 0 (and variance 1) over an 'utterance' or a 'speaker', or
        'none'.
      norm_vars: whether the variance is normalised too.
      given: what a `feats.scp` holds: 'fbank', log-mel bands; 'mfcc', made to (at least
        `num_mel_bins`) log-mel bands again, see `given.log_mel`; 'other', taken as it is, though
        the flat start takes the mean for energy.
    """

    num_mel_bins: int = 40
    sample_rate: int = 0
    frame_shift_ms: float = 10.0
    frame_length_ms: float = 25.0
    low_freq: float = 20.0
    high_freq: float = 0.0
    snip_edges: bool = False
    dither: float = 1.0
    cmvn: str = 'utterance'
    norm_vars: bool = True
    given: str = 'fbank'

    def __post_init__(self):
        if self.given not in given.KINDS:
            raise DataError(f'given is {self.given!r}; use one of {", ".join(given.KINDS)}.')
        if self.cmvn not in CMVN:
            raise DataError(f'cmvn is {self.cmvn!r}; use one of {", ".join(CMVN)}.')
        if self.num_mel_bins < 1 or self.frame_shift_ms <= 0 or self.frame_length_ms <= 0:
            raise DataError('num_mel_bins, frame_shift_ms and frame_length_ms must be positive.')


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureSet:
    """Features of the usable utterances, in the corpus' order, and what was skipped.

    Attributes:
      ids, speakers, texts: one entry per utterance.
      features: f32[T, F] per utterance.
      skipped: the utterances left out, each with its reason.
      sample_rate: Hz of the recordings (0 where features were given).
    """

    ids: tuple[str, ...]
    speakers: tuple[str, ...]
    texts: tuple[str, ...]
    features: list[Float32[np.ndarray, 'T F']]
    skipped: tuple[Skipped, ...] = ()
    sample_rate: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def transcripts(self) -> tuple[str, ...]:
        """The text of every recording, once, whatever perturbed copies there are of it.

        What language models are estimated from: smoothing goes by how often things were said.
        """
        recordings = (_COPY.sub('', name) for name in self.ids)
        return tuple(dict(zip(recordings, self.texts, strict=True)).values())

    @property
    def first_skipped(self) -> str:
        """The sentence that says why nothing is left of a set."""
        reason = self.skipped[0].reason if self.skipped else 'there are no recordings'
        return f'The first was skipped: {reason}'

    @property
    def num_frames(self) -> np.ndarray:
        """i32[len(self)], the length of every utterance in frames."""
        return np.array([len(x) for x in self.features], np.int32)

    @property
    def dim(self) -> int:
        """F; 0 for an empty set."""
        return self.features[0].shape[1] if self.features else 0

    def check_dim(self, dim: int) -> None:
        """Raises DataError where these are no features for a network with `dim` inputs."""
        if len(self) and self.dim != dim:
            raise DataError(
                f'The features of {self.ids[0]} have {self.dim} values per frame, the network '
                f'takes {dim}: give recordings, or features like those of the training set.'
            )

    def select(self, keep: Sequence[int], skipped: Iterable[Skipped] = ()) -> FeatureSet:
        """The utterances of the given indices; `skipped` is added to what is skipped."""
        return FeatureSet(
            tuple(self.ids[i] for i in keep),
            tuple(self.speakers[i] for i in keep),
            tuple(self.texts[i] for i in keep),
            [self.features[i] for i in keep],
            (*self.skipped, *skipped),
            self.sample_rate,
        )


def compute(
    utterances: Iterable[Utterance],
    config: FeatureConfig,
    cache_dir=None,
    speed: float = 1.0,
    vtln: float = 1.0,
    require_text: bool = True,
    content: str = '',
) -> FeatureSet:
    """Features of all usable utterances.

    An utterance is skipped, and named with a reason, where its audio is missing, truncated,
    damaged, of another sample rate, silent or shorter than a frame, its transcript is empty, or
    its given features are not finite or of another dimension.

    Args:
      utterances: records of `corpora.load` or `kaldi.read_dir`.
      config: what to compute. Given features (`feats.scp`) are only normalised; see its `given`.
      cache_dir: where finished sets are kept by the hash of all that they depend on; None: not.
      speed: plays the audio this many times faster (resampling: tempo and pitch change).
      vtln: Kaldi's vocal tract length warp factor, about 0.8 to 1.2; 1 leaves frequencies alone.
      require_text: skip utterances without a transcript.
      content: `feature_cache.content_of` the utterances, where it is known.

    Returns:
      The set. With `speed` or `vtln` other than 1, ids carry the prefix 'sp<speed>-vt<vtln>-';
      speakers keep their names, so that a copy stays with its speaker.

    Raises:
      DataError: given features are to be perturbed, which needs audio, or are MFCC and not said to
        be.
    """
    records = list(utterances)
    speed, vtln = float(speed), float(vtln)
    if (speed != 1.0 or vtln != 1.0) and any(u.features is not None for u in records):
        raise DataError(
            'Speed and vocal-tract perturbation need audio, but this corpus gives features '
            '(feats.scp): switch it off (data.speeds=(1.0,) and data.vtln=(1.0,) in the config of '
            'a run), or remove feats.scp and keep wav.scp.'
        )
    if cache_dir is None:
        return _compute(records, config, speed, vtln, require_text)
    content = content or feature_cache.content_of(records)
    key = feature_cache.key(content, (dataclasses.astuple(config), speed, vtln, require_text))
    if (fields := feature_cache.load(cache_dir, key)) is not None:
        return FeatureSet(**fields)
    result = _compute(records, config, speed, vtln, require_text)
    feature_cache.save(cache_dir, key, result)
    return result


def compute_copies(
    utterances: Iterable[Utterance],
    config: FeatureConfig,
    copies: Sequence[tuple[float, float]],
    cache_dir: str | os.PathLike | None = None,
) -> FeatureSet:
    """The same utterances once for every (speed, vtln) of `copies`, one after another."""
    records = list(utterances)
    content = '' if cache_dir is None else feature_cache.content_of(records)
    sets = [compute(records, config, cache_dir, *copy, content=content) for copy in copies]
    return join(sets)


def join(sets: Sequence[FeatureSet]) -> FeatureSet:
    """One set of all utterances; a skipped utterance is named once for each reason."""
    chain = itertools.chain.from_iterable
    return FeatureSet(
        tuple(chain(s.ids for s in sets)),
        tuple(chain(s.speakers for s in sets)),
        tuple(chain(s.texts for s in sets)),
        list(chain(s.features for s in sets)),
        tuple(dict.fromkeys(chain(s.skipped for s in sets))),
        next((s.sample_rate for s in sets if s.sample_rate), 0),
    )


def _compute(records, config, speed, vtln, require_text) -> FeatureSet:
    rate = config.sample_rate or _usual_rate(records)
    dim = given.usual_dim(records)
    prefix = '' if speed == 1.0 and vtln == 1.0 else f'sp{speed:g}-vt{vtln:g}-'
    kept: list[Utterance] = []
    features, skipped = [], []
    extract = _Extractor(config, rate, vtln) if rate else None
    for record in records:
        try:
            if record.problem:
                raise AudioError(record.problem)
            if require_text and not record.text.split():
                raise AudioError('transcript is empty')
            if record.features is not None:
                own = given.checked(record.features, dim)
                if config.given == 'mfcc':
                    own = given.log_mel(own, max(config.num_mel_bins, dim))
                features.append(own)
            else:
                features.append(_from_audio(record, extract, rate, speed, config))
            kept.append(record)
        except AudioError as error:
            skipped.append(Skipped(record.id, str(error)))
    if config.given == 'fbank':
        given.check_bands(
            [x for x, u in zip(features, kept, strict=True) if u.features is not None]
        )
    speakers = tuple(u.speaker for u in kept)
    features = _normalise(features, speakers, config)
    ids = tuple(prefix + u.id for u in kept)
    texts = tuple(' '.join(u.text.split()) for u in kept)
    return FeatureSet(ids, speakers, texts, features, tuple(skipped), rate)


def _from_audio(record, extract, rate, speed, config) -> Float32[np.ndarray, 'T F']:
    samples, own_rate = record.decode()
    if own_rate != rate:
        raise AudioError(
            f'sample rate is {own_rate} Hz, not {rate} Hz: resample it (training chooses another '
            'rate by features.sample_rate)'
        )
    if not samples.any():
        raise AudioError('audio is digital silence throughout')
    samples = change_speed(samples, speed)
    if config.dither:
        rng = np.random.default_rng(zlib.crc32(record.id.encode()))
        samples = samples + config.dither * rng.standard_normal(len(samples), dtype=np.float32)
    features = extract(samples)
    if len(features) == 0:
        raise AudioError(f'audio is too short for one frame: {len(samples) / rate * 1000:.0f} ms')
    if not np.isfinite(features).all():
        raise AudioError(f'its features are not finite: samples of up to {abs(samples).max():.0e}')
    return features


def change_speed(samples: Float32[np.ndarray, ' n'], speed: float) -> Float32[np.ndarray, ' m']:
    """Resamples so that playing at the same rate is `speed` times faster (m ≈ n / speed).

    Kaldi's speed perturbation (Ko et al., "Audio augmentation for speech recognition",
    Interspeech 2015): tempo and pitch change together. Polyphase filtering by SciPy.
    """
    if speed == 1.0:
        return samples
    if not 0.5 <= speed <= 2.0:
        raise DataError(f'speed is {speed}; use 0.5 to 2, in practice 0.9 to 1.1.')
    ratio = fractions.Fraction(1.0 / speed).limit_denominator(100)
    return scipy.signal.resample_poly(samples, ratio.numerator, ratio.denominator).astype(
        np.float32
    )


class _Extractor:
    """Turns samples into log-mel features f32[T, F]."""

    def __init__(self, config: FeatureConfig, rate: int, vtln: float):
        if not 0.5 < vtln < 2.0:
            raise DataError(f'vtln is {vtln}; use 0.8 to 1.2.')
        for name in ('frame_shift_ms', 'frame_length_ms'):
            # A shift of no sample ends the process in kaldi-native-fbank.
            if not getattr(config, name) * rate >= 1000.0 * _LEAST_SAMPLES:
                raise DataError(
                    f'{name}={getattr(config, name)} is less than {_LEAST_SAMPLES} samples at '
                    f'{rate} Hz: it is in milliseconds.'
                )
        knf = extras.load('kaldi_native_fbank')
        options = knf.FbankOptions()
        options.frame_opts.samp_freq = rate
        options.frame_opts.frame_shift_ms = config.frame_shift_ms
        options.frame_opts.frame_length_ms = config.frame_length_ms
        options.frame_opts.snip_edges = config.snip_edges
        options.frame_opts.dither = 0.0  # `_from_audio` adds noise that can be repeated.
        options.mel_opts.num_bins = config.num_mel_bins
        options.mel_opts.low_freq = config.low_freq
        options.mel_opts.high_freq = config.high_freq
        self._options, self._rate, self._vtln, self._fbank = options, rate, vtln, knf.OnlineFbank
        try:
            knf.MelBanks(options.mel_opts, options.frame_opts, vtln)
        except ValueError as error:
            raise DataError(
                f'There is no such filterbank at {rate} Hz ({error}): change num_mel_bins, '
                'low_freq or high_freq.'
            ) from None

    def __call__(self, samples: Float32[np.ndarray, ' n']) -> Float32[np.ndarray, 'T F']:
        if self._vtln != 1.0:
            return warped_fbank(samples, self._options, self._vtln)
        fbank = self._fbank(self._options)
        fbank.accept_waveform(self._rate, samples)
        fbank.input_finished()
        frames = [fbank.get_frame(t) for t in range(fbank.num_frames_ready)]
        return np.array(frames, np.float32).reshape(-1, self._options.mel_opts.num_bins)


def warped_fbank(samples, options: Any, vtln: float) -> Float32[np.ndarray, 'T F']:
    """`knf.OnlineFbank` with a vocal tract length warp, which its Python interface leaves out.

    Framing, offset removal, pre-emphasis, window and power spectrum as in Kaldi's
    feature-window.cc; the window and the warped mel bands are the library's own.

    Args:
      samples: f32[n], full scale ±32768.
      options: `knf.FbankOptions` as for `knf.OnlineFbank`; dither and energy are not used.
      vtln: warp factor; 1 gives `knf.OnlineFbank`'s result.
    """
    knf = extras.load('kaldi_native_fbank')
    frame = options.frame_opts
    shift = int(frame.samp_freq * frame.frame_shift_ms * 0.001)
    window = np.array(knf.FeatureWindowFunction(frame).window, np.float32)
    size = len(window)
    if frame.snip_edges:
        num_frames = 1 + (len(samples) - size) // shift if len(samples) >= size else 0
    else:
        num_frames = (len(samples) + shift // 2) // shift
        left = size // 2 - shift // 2
        right = max(0, (num_frames - 1) * shift + size - left - len(samples))
        samples = np.pad(samples, (left, right), mode='symmetric')
    bands = knf.MelBanks(options.mel_opts, frame, vtln).get_matrix()
    if num_frames == 0:
        return np.zeros((0, len(bands)), np.float32)
    x = np.lib.stride_tricks.sliding_window_view(samples, size)[::shift][:num_frames]
    x = x - x.mean(axis=1, keepdims=True)
    previous = np.concatenate([x[:, :1], x[:, :-1]], axis=1)
    x = (x - np.float32(frame.preemph_coeff) * previous) * window
    spectrum = scipy.fft.rfft(x, 2 * (bands.shape[1] - 1), axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    return np.log(np.maximum(power @ bands.T, np.finfo(np.float32).eps)).astype(np.float32)


def _normalise(features, speakers, config: FeatureConfig):
    """Mean (and variance) normalisation per band, over each utterance or each speaker."""
    if config.cmvn == 'none':
        return features
    groups = collections.defaultdict(list)
    for i, speaker in enumerate(speakers):
        groups[speaker if config.cmvn == 'speaker' else i].append(i)
    result = list(features)
    for members in groups.values():
        pooled = np.concatenate([features[i] for i in members]).astype(np.float64)
        mean = pooled.mean(axis=0)
        scale = 1.0 / np.maximum(pooled.std(axis=0), STD_FLOOR) if config.norm_vars else 1.0
        for i in members:
            result[i] = ((features[i] - mean) * scale).astype(np.float32)
    return result


def _usual_rate(records) -> int:
    """The sample rate most recordings have (ties: the one seen first); 0 where none is readable."""
    rates: collections.Counter = collections.Counter()
    for record in records:
        if record.features is None:
            try:
                rates[record.sample_rate] += 1
            except AudioError:
                continue
    return rates.most_common(1)[0][0] if rates else 0
