"""`Utterance`: one recording (or its features) with its transcript, as every corpus yields it.

Also the one place that decodes audio, so that a damaged recording is described once and in one
way. Not a corpus and not a feature: see `corpora`, `kaldi` and `features`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import os
import pathlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile
from jaxtyping import Float32

INT16_SCALE = 32768.0
# Kaldi lets a segment run over the end of its recording by this much before it is an error.
SEGMENT_OVERHANG_S = 0.5
# Programs that write WAV to a pipe put a placeholder this large where the length should be.
STREAMED_RIFF_BYTES = 0x7FFF0000
# Encodings in which a sample is found without those before it. Others are read from the start.
_DIRECT = ('PCM', 'FLOAT', 'DOUBLE', 'ULAW', 'ALAW')


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
      offset: bytes before the recording in its file, where that is an archive of WAV files.
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
    offset: int = 0

    @functools.cached_property
    def sample_rate(self) -> int:
        """Samples per second, from the recording's header.

        Raises:
          AudioError: there is no recording or its header cannot be read.
        """
        with self._file() as file, _open(file) as sound:
            return sound.samplerate

    def encoded(self) -> bytes:
        """The recording as it is stored (FLAC, WAV, ...).

        Raises:
          AudioError: there is none, or its file cannot be read.
        """
        with self._file() as file:
            return file.read()

    @contextlib.contextmanager
    def _file(self) -> Iterator[BinaryIO]:
        """The recording as a file, to read no more of it than is needed; see `encoded`."""
        if self.problem:
            raise AudioError(self.problem)
        if self.audio is None:
            raise AudioError('has no recording (only features)')
        if isinstance(self.audio, bytes):
            yield io.BytesIO(self.audio)
            return
        try:
            file = self.audio.open('rb')
        except FileNotFoundError:
            raise AudioError(f'audio file {self.audio} is missing') from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            raise AudioError(f'audio file {self.audio} cannot be read: {error}') from None
        with file:
            try:
                yield _member(file, self.offset) if self.offset else file
            except OSError as error:
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
        if self.start_s is None and self.end_s is None:
            return decode(self.encoded())  # read at once: faster than piece by piece
        with self._file() as file:
            return _decode(file, self.start_s, self.end_s)


def decode(encoded: bytes) -> tuple[Float32[np.ndarray, ' n'], int]:
    """Decodes one mono recording of any format that libsndfile knows.

    Args:
      encoded: the file's bytes.

    Returns:
      f32[n] samples with full scale ±32768, and samples per second.

    Raises:
      AudioError: the bytes are damaged, truncated or empty, or have several channels.
    """
    return _decode(io.BytesIO(encoded))


def _decode(
    file: BinaryIO, start_s: float | None = None, end_s: float | None = None
) -> tuple[Float32[np.ndarray, ' n'], int]:
    """Samples from start to end, and their rate; of a long recording only these are read."""
    _check_length(file)
    with _open(file) as sound:
        if sound.channels != 1:
            raise AudioError(
                f'audio has {sound.channels} channels, one is expected: split or mix it first'
            )
        if sound.frames == 0:
            raise AudioError('audio is empty: 0 samples')
        start, end = _span(start_s, end_s, sound.frames, sound.samplerate)
        try:
            before = start
            if sound.subtype.startswith(_DIRECT):
                before -= sound.seek(start)
            samples = sound.read(before + end - start, dtype='float32')[before:]
        except soundfile.SoundFileError as error:
            raise AudioError(f'audio is damaged or truncated ({error})') from None
        if len(samples) < end - start:
            raise AudioError(
                f'audio is truncated: {start + len(samples)} samples of {sound.frames}; '
                f'copy the file again'
            )
        if not np.isfinite(samples).all():
            raise AudioError('audio holds NaN or infinity: export it again')
        return samples * np.float32(INT16_SCALE), sound.samplerate


def _span(
    start_s: float | None, end_s: float | None, num_samples: int, rate: int
) -> tuple[int, int]:
    """A segment's first sample and the one after its last."""
    if not math.isfinite((start_s or 0.0) + (end_s or 0.0)):
        raise AudioError(f'segment from {start_s} s to {end_s} s is no span of time')
    start = round((start_s or 0.0) * rate)
    end = num_samples if end_s is None else round(end_s * rate)
    if end > num_samples + SEGMENT_OVERHANG_S * rate:
        raise AudioError(
            f'segment ends at {end_s:g} s but the recording lasts '
            f'{num_samples / rate:.2f} s: it is truncated, or the segment is wrong'
        )
    end = min(end, num_samples)
    if not 0 <= start < end:
        raise AudioError(f'segment from {start_s} s to {end_s} s is empty')
    return start, end


def _check_length(file: BinaryIO) -> None:
    """libsndfile shortens a truncated WAV in silence; its own header tells."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    needed = _data_end(file)
    file.seek(0)
    if size < needed < STREAMED_RIFF_BYTES:
        raise AudioError(f'audio is truncated: {size} bytes of {needed}; copy the file again')


def _data_end(file: BinaryIO) -> int:
    """Bytes of the WAV file that begins here up to its last sample; 0 where there is none.

    The length of the whole file is not to be trusted: some programs count eight bytes or a padding
    byte too many.
    """
    if not _riff_bytes(file):
        return 0
    end = 12
    while True:
        file.seek(end)
        header = file.read(8)
        if len(header) < 8:
            return end  # no samples; libsndfile will say so
        size = struct.unpack('<I', header[4:])[0]
        end += 8 + size
        if header[:4] == b'data':
            return end
        end += size % 2


def _riff_bytes(file: BinaryIO) -> int:
    """Bytes of the WAV file that begins here, by its header; 0 where none begins."""
    header = file.read(8)
    return struct.unpack('<I', header[4:])[0] + 8 if header[:4] == b'RIFF' and header[7:] else 0


def _member(archive: BinaryIO, offset: int) -> BinaryIO:
    """The WAV file that begins at a byte of an archive."""
    archive.seek(offset)
    size = _riff_bytes(archive)
    if not size:
        raise AudioError(f'there is no WAV file at byte {offset} of {archive.name}')
    archive.seek(offset)
    return io.BytesIO(archive.read(size))


def _open(file: BinaryIO) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(file)
    except (soundfile.SoundFileError, TypeError) as error:
        message = str(error).split(': ', 1)[-1]
        raise AudioError(f'audio is damaged or of an unknown format ({message})') from None
