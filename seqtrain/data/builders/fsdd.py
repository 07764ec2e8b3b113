"""The `fsdd` corpus: the Free Spoken Digit Dataset, isolated English digits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from seqtrain.data.builders import archives, base, digits
from seqtrain.data.utterance import Utterance

NUM_TEST_TAKES = 5
FILE_NAME = re.compile(r'(?P<digit>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav')


class Fsdd(base.SpeechBuilder):
    """FSDD v1.0.9, 2,500 recordings by 5 speakers, 8 kHz, CC BY-SA 4.0.

    The archive that TFDS registers as `spoken_digit`. Split as the data set says: recordings 0
    to 4 of every digit and speaker are the test. The source is the archive or its folder.
    """

    VERSION = tfds.core.Version('1.0.9')
    URL = 'https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.9.tar.gz'
    SHA256 = '8bc44cde129d505cbbb6b365c09f80c663f2aa77578afc634e6141a2f87100c0'
    LEXICON: ClassVar = digits.LEXICON

    def utterances(self):
        return {'train': self._recordings(test=False), 'test': self._recordings(test=True)}

    def _recordings(self, test: bool) -> Iterator[Utterance]:
        for path, content in archives.read_files(self.source, '.wav'):
            match = FILE_NAME.fullmatch(path.name)
            if match and (int(match['take']) < NUM_TEST_TAKES) == test:
                digit, speaker, take = int(match['digit']), match['speaker'], int(match['take'])
                name = f'{speaker}-{digit}-{take:02d}'
                yield Utterance(name, speaker, digits.WORDS[digit], content)
