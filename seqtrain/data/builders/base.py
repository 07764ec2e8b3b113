"""What the TFDS builders share: one record layout, and no TensorFlow.

`tfds.features.Audio` needs TensorFlow even to be constructed, so a record holds the FLAC bytes
as they are and `Utterance` decodes them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import soundfile
import tensorflow_datasets as tfds
from jaxtyping import Float32

from seqtrain.data import utterance
from seqtrain.data.utterance import Utterance

Pronunciations = Mapping[str, Sequence[str]]


class _LocalInfo(tfds.core.DatasetInfo):
    """Stays on this machine: TFDS asks Google's storage for a description of every new corpus."""

    def initialize_from_bucket(self) -> None:
        """There is nothing to fetch."""


class SpeechBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A corpus with the splits `train` and `test`.

    A subclass says where its files come from (`URL`, `SHA256`; '' where it needs none), which
    words it uses (`LEXICON`: word to pronunciations, phones split by spaces), and yields its
    utterances. `source` is set by `corpora.load`.
    """

    URL = ''
    SHA256 = ''
    LEXICON: ClassVar[Pronunciations] = {}
    source: Any = None  # pathlib.Path where URL is given

    def utterances(self) -> Mapping[str, Iterable[Utterance]]:
        """The utterances of every split."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(
            builder=self,
            description=(self.__doc__ or '').strip(),
            features=tfds.features.FeaturesDict(
                {
                    'id': tfds.features.Text(),
                    'speaker': tfds.features.Text(),
                    'text': tfds.features.Text(),
                    'audio': tfds.features.Tensor(shape=(), dtype=np.object_),
                    'alignment': tfds.features.Text(),
                    'problem': tfds.features.Text(),
                }
            ),
            # Records keep the order in which they were made, so a corpus reads the same everywhere.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # Files are fetched and checked by `archives`, which fails early.
        return {split: self._examples(split, part) for split, part in self.utterances().items()}

    def _generate_examples(self, **kwargs):
        raise NotImplementedError('_split_generators hands out its own generators')

    def _examples(self, split: str, utterances: Iterable[Utterance]) -> Iterator[tuple[Any, dict]]:
        number = -1
        for number, one in enumerate(utterances):
            yield number, to_example(one)
        if number < 0:
            raise utterance.DataError(
                f'{self.source} holds no recordings for the split {split!r} of {self.name}: is it '
                'the right archive or folder?'
            )


def to_example(one: Utterance) -> dict[str, Any]:
    """What is stored; a record without usable audio says so, and is skipped when it is used."""
    try:
        whole = one.start_s is None and one.end_s is None
        audio = to_flac(one.encoded()) if whole else encode_flac(*one.decode())
        problem = ''
    except utterance.AudioError as error:
        audio, problem = b'', str(error)
    return {
        'id': one.id,
        'speaker': one.speaker,
        'text': one.text,
        'audio': audio,
        'alignment': json.dumps(one.alignment),
        'problem': problem,
    }


def from_example(example: Mapping) -> Utterance:
    """The record that `to_example` stored."""
    alignment = json.loads(_text(example['alignment']))
    return Utterance(
        id=_text(example['id']),
        speaker=_text(example['speaker']),
        text=_text(example['text']),
        audio=bytes(example['audio']),
        alignment=alignment and tuple((phone, start, end) for phone, start, end in alignment),
        problem=_text(example['problem']),
    )


def to_flac(encoded: bytes) -> bytes:
    """The recording as FLAC.

    Raises:
      AudioError: it is damaged.
    """
    if encoded[:4] == b'fLaC':
        return encoded
    return encode_flac(*utterance.decode(encoded))


def encode_flac(samples: Float32[np.ndarray, ' n'], rate: int) -> bytes:
    """16-bit FLAC of samples with full scale ±32768."""
    file = io.BytesIO()
    rounded = np.clip(np.round(samples), -32768, 32767).astype(np.int16)
    soundfile.write(file, rounded, rate, format='FLAC', subtype='PCM_16')
    return file.getvalue()


def _text(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
