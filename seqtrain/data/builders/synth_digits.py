"""The `synth_digits` corpus: connected digit strings spoken by espeak-ng, made on first use.

Formant speech of many voices. It proves that everything works together, without a download; it
says nothing about accuracy on people.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import scipy.signal
import tensorflow_datasets as tfds

from seqtrain.data.builders import base, digits, espeak
from seqtrain.data.utterance import DataError, Utterance

SAMPLE_RATE = 8000
SILENCE = 'SIL'
MIN_DIGITS, MAX_DIGITS = 3, 7
PAUSE_PROBABILITY = 0.2
SPLITS = ('train', 'test')
EVERY_NTH_VOICE_TESTS = 4

# Voice variants that could be a person. Left out are robots, whispers, loud echoes, and vocal
# tracts that nobody has: all formants a half higher, the first one halved, or no third.
VARIANTS = (
    'Alex', 'Andrea', 'Annie', 'Denis', 'Diogo', 'Gene', 'Gene2', 'Henrique', 'Hugo', 'Mario',
    'Michael', 'Mike', 'Nguyen', 'Storm', 'adam', 'anika', 'announcer', 'antonio', 'aunty',
    'belinda', 'benjamin', 'boris', 'david', 'ed', 'edward', 'edward2', 'f1', 'f2', 'f3', 'f4',
    'f5', 'grandma', 'grandpa', 'gustave', 'ian', 'iven', 'iven2', 'iven3', 'iven4', 'john',
    'klatt', 'klatt2', 'klatt3', 'klatt4', 'klatt5', 'klatt6', 'linda', 'm1', 'm2', 'm3', 'm4',
    'm5', 'm6', 'm7', 'm8', 'marcelo', 'max', 'michel', 'miguel', 'mike2', 'norbert', 'pablo',
    'paul', 'pedro', 'quincy', 'rob', 'robert', 'sandro', 'shelby', 'steph', 'steph2', 'steph3',
    'victor',
)  # fmt: skip
ACCENTS = ('en-us', 'en-us-nyc', 'en-gb-scotland', 'en-gb-x-rp', 'en-gb-x-gbcwmd')

# espeak's phones (stress marks removed) in the lexicon's; the glide in "three eight" belongs to
# the vowel before it.
CONTINUES = ''
PHONES = {
    'z': 'Z', 'i@': 'IY', 'r': 'R', 'oU': 'OW', 'w': 'W', 'V': 'AH', '0': 'AH', 'n': 'N',
    't': 'T', 'u:': 'UW', 'T': 'TH', 'i:': 'IY', 'f': 'F', 'o@': 'AO', 'O@': 'AO', 'aI': 'AY',
    'aI2': 'AY', 'v': 'V', 's': 'S', 'I': 'IH', 'k': 'K', 'E': 'EH', '@': 'AH', 'eI': 'EY',
    'r-': 'R', ';': CONTINUES, '_': SILENCE, '_:': SILENCE,
}  # fmt: skip


@dataclasses.dataclass
class SynthDigitsConfig(tfds.core.BuilderConfig):
    """How many utterances each split has."""

    num_train: int = 0
    num_test: int = 0


class SynthDigits(base.SpeechBuilder):
    """Strings of 3 to 7 digits, 8 kHz, 73 voices; test voices are not heard in training.

    Every utterance is a function of its split and number alone. Phone alignments are exact, in
    the phones of the lexicon.
    """

    VERSION = tfds.core.Version('1.1.0')
    BUILDER_CONFIGS: ClassVar = [
        SynthDigitsConfig(name='demo', description='the demo', num_train=400, num_test=100),
        SynthDigitsConfig(name='small', description='for tests', num_train=24, num_test=12),
        SynthDigitsConfig(name='large', description='hours', num_train=4000, num_test=500),
    ]
    LEXICON: ClassVar = digits.LEXICON | {'four': ['F AO', 'F AO R'], 'zero': ['Z IY R OW']}

    def utterances(self):
        sizes = (self.builder_config.num_train, self.builder_config.num_test)
        return {split: _strings(split, size) for split, size in zip(SPLITS, sizes, strict=True)}


def voices(split: str) -> list[tuple[str, str]]:
    """(variant, accent) of every voice of a split; the splits share no variant."""
    cast = list(zip(VARIANTS, itertools.cycle(ACCENTS), strict=False))
    order = np.random.default_rng(0).permutation(len(cast))
    test = split == 'test'
    return [cast[i] for n, i in enumerate(order) if (n % EVERY_NTH_VOICE_TESTS == 0) == test]


def _strings(split: str, count: int) -> Iterator[Utterance]:
    for number in range(count):
        yield make(split, number)


def make(split: str, number: int) -> Utterance:
    """One utterance: a function of its split and number alone."""
    rng = np.random.default_rng([SPLITS.index(split), number])
    cast = voices(split)
    variant, accent = cast[number % len(cast)]
    words = [
        digits.WORDS[d] for d in rng.integers(10, size=rng.integers(MIN_DIGITS, MAX_DIGITS + 1))
    ]
    pauses = [',' if rng.random() < PAUSE_PROBABILITY else '' for _ in words[1:]] + ['']
    said = ' '.join(word + pause for word, pause in zip(words, pauses, strict=True))
    rate, pitch = int(rng.integers(130, 200)), int(rng.integers(35, 66))
    speech = espeak.speak(said, f'{accent}+{variant}', rate, pitch)
    samples = scipy.signal.resample_poly(speech.samples, *_ratio(SAMPLE_RATE, speech.sample_rate))
    return Utterance(
        id=f'{variant}-{split}-{number:05d}',
        speaker=variant,
        text=' '.join(words),
        audio=base.encode_flac(samples, SAMPLE_RATE),
        alignment=align(speech),
    )


def align(speech: espeak.Speech) -> tuple[tuple[str, float, float], ...]:
    """Phones with start and end in seconds, from 0 to the end without gaps; silences merged."""
    marks = [(SILENCE, 0)]
    for name, start in speech.phones:
        phone = _phone(name)
        if phone not in (CONTINUES, SILENCE) or (phone == SILENCE != marks[-1][0]):
            marks.append((phone, start))
    ends = [start for _, start in marks[1:]] + [len(speech.samples)]
    rate = speech.sample_rate
    return tuple(
        (phone, round(start / rate, 5), round(end / rate, 5))
        for (phone, start), end in zip(marks, ends, strict=True)
        if start < end
    )


def _phone(name: str) -> str:
    plain = name.lstrip("',")
    if plain not in PHONES:
        raise DataError(f'espeak-ng used the phone {name!r}, which has no counterpart in PHONES.')
    return PHONES[plain]


def _ratio(target: int, source: int) -> tuple[int, int]:
    divisor = int(np.gcd(target, source))
    return target // divisor, source // divisor
