"""`Utterance`: one recording (or its features) with its transcript, as every corpus yields it.

Also the one place that decodes audio, so that a damaged recording is described once and in one
way. Not a corpus and not a feature: see `corpora`, `kaldi` and `features`.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import pathlib
import struct

import numpy as np
import soundfile
from jaxtyping import Float32

INT16_SCALE = 32768.0
# Kaldi lets a segment run over the end of its recording by this much before it is an error.
SEGMENT_OVERHANG_S = 0.5
# Programs that write WAV to a pipe put a placeholder this large where the length should be.
STREAMED_RIFF_BYTES = 0x7FFF0000


class DataError(ValueError):
    """Data that cannot be used; the message says what is wrong and what to do."""


class AudioError(DataError):
    """A recording that cannot be used: missing, damaged, empty or of the wrong kind."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An utterance that was left out, and why (a sentence for the report)."""

    id: str
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Utterance:
    """One utterance. Audio is decoded on demand, so that a corpus of records stays small.

    Attributes:
      id: unique within its corpus.
      speaker: who speaks; the utterance's own id where that is not known.
      text: words separated by single spaces; '' where there is no transcript.
      audio: an encoded recording (FLAC, WAV, ...), or the path of one; None with `features`.
      start_s: where the utterance starts in the recording, in seconds; None: at its start.
      end_s: where it ends, in seconds; None: at the end of the recording.
      features: f32[T, F], given instead of audio (a Kaldi `feats.scp`).
      alignment: phones in order as (phone, start_s, end_s), counted from the utterance's start.
      problem: why this record cannot be used, where the corpus' lists already show it; else ''.
    """

    id: str
    speaker: str
    text: str
    audio: bytes | pathlib.Path | None = dataclasses.field(default=None, repr=False)
    start_s: float | None = None
    end_s: float | None = None
    features: Float32[np.ndarray, 'T F'] | None = dataclasses.field(default=None, repr=False)
    alignment: tuple[tuple[str, float, float], ...] | None = dataclasses.field(
        default=None, repr=False
    )
    problem: str = ''

    @functools.cached_property
    def sample_rate(self) -> int:
        """Samples per second, from the recording's header.

        Raises:
          AudioError: there is no recording or its header cannot be read.
        """
        with _open(self.encoded()) as sound:
            return sound.samplerate

    def encoded(self) -> bytes:
        """The recording as it is stored (FLAC, WAV, ...).

        Raises:
          AudioError: there is none, or its file cannot be read.
        """
        if self.problem:
            raise AudioError(self.problem)
        if self.audio is None:
            raise AudioError('has no recording (only features)')
        if isinstance(self.audio, bytes):
            return self.audio
        try:
            return self.audio.read_bytes()
        except FileNotFoundError:
            raise AudioError(f'audio file {self.audio} is missing') from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise AudioError(f'audio file {self.audio} cannot be read: {error}') from None

    def samples(self) -> Float32[np.ndarray, ' n']:
        """The utterance's samples, scaled as Kaldi does: full scale is ±32768.

        Raises:
          AudioError: the recording is missing, damaged, truncated, empty, has several channels,
            or ends before the utterance does.
        """
        return self.decode()[0]

    def decode(self) -> tuple[Float32[np.ndarray, ' n'], int]:
        """The utterance's samples (full scale ±32768) and its sample rate; see `samples`."""
        samples, rate = decode(self.encoded())
        if not math.isfinite((self.start_s or 0.0) + (self.end_s or 0.0)):
            raise AudioError(f'segment from {self.start_s} s to {self.end_s} s is no span of time')
        start = round((self.start_s or 0.0) * rate)
        if self.end_s is None:
            end = len(samples)
        else:
            end = round(self.end_s * rate)
        if end > len(samples) + SEGMENT_OVERHANG_S * rate:
            raise AudioError(
                f'segment ends at {self.end_s:g} s but the recording lasts '
                f'{len(samples) / rate:.2f} s: it is truncated, or the segment is wrong'
            )
        if not 0 <= start < min(end, len(samples)):
            raise AudioError(f'segment from {self.start_s} s to {self.end_s} s is empty')
        return samples[start:end], rate


def decode(encoded: bytes) -> tuple[Float32[np.ndarray, ' n'], int]:
    """Decodes one mono recording of any format that libsndfile knows.

    Args:
      encoded: the file's bytes.

    Returns:
      f32[n] samples with full scale ±32768, and samples per second.

    Raises:
      AudioError: the bytes are damaged, truncated or empty, or have several channels.
    """
    if encoded[:4] == b'RIFF' and len(encoded) >= 8:
        # libsndfile shortens a truncated WAV in silence; its own header tells.
        declared = struct.unpack('<I', encoded[4:8])[0] + 8
        if len(encoded) < declared < STREAMED_RIFF_BYTES:
            raise AudioError(
                f'audio is truncated: {len(encoded)} bytes of {declared}; copy the file again'
            )
    with _open(encoded) as sound:
        if sound.channels != 1:
            raise AudioError(
                f'audio has {sound.channels} channels, one is expected: split or mix it first'
            )
        try:
            samples = sound.read(dtype='float32')
        except soundfile.SoundFileError as error:
            raise AudioError(f'audio is damaged or truncated ({error})') from None
        if len(samples) < sound.frames:
            raise AudioError(
                f'audio is truncated: {len(samples)} samples of {sound.frames}; copy the file again'
            )
        if len(samples) == 0:
            raise AudioError('audio is empty: 0 samples')
        if not np.isfinite(samples).all():
            raise AudioError('audio holds NaN or infinity: export it again')
        return samples * np.float32(INT16_SCALE), sound.samplerate


def _open(encoded: bytes) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(io.BytesIO(encoded))
    except (soundfile.SoundFileError, TypeError) as error:
        message = str(error).split(': ', 1)[-1]
        raise AudioError(f'audio is damaged or of an unknown format ({message})') from None
