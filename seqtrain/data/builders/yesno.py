"""The `yesno` corpus: one speaker says "yes" or "no" eight times a recording, in Hebrew."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import ClassVar

import tensorflow_datasets as tfds

from seqtrain.data import kaldi
from seqtrain.data.builders import archives, base
from seqtrain.data.utterance import Utterance

WORDS = {'0': 'NO', '1': 'YES'}


class Yesno(base.SpeechBuilder):
    """OpenSLR SLR1 (https://www.openslr.org/1/): 60 recordings, 8 kHz, free for any purpose.

    Split as in Kaldi's recipe: recordings that begin with "no" are for training (31), the others
    for the test (29). The source is the archive `waves_yesno.tar.gz`, a folder of its WAV files,
    or a folder with the Kaldi data directories `train` and `test`.
    """

    VERSION = tfds.core.Version('1.0.0')
    URL = 'https://www.openslr.org/resources/1/waves_yesno.tar.gz'
    SHA256 = 'c3f49e0cca421f96b75b41640749167b52118f232498667ca7a5f9416aef8e73'
    # "Lo" and "ken", in the phones of Kaldi's yesno-like English recipes.
    LEXICON: ClassVar = {'NO': ['L OW'], 'YES': ['K EH N']}

    def utterances(self):
        if (self.source / 'train').is_dir() and (self.source / 'test').is_dir():
            return {part: kaldi.read_dir(self.source / part) for part in ('train', 'test')}
        return {'train': _recordings(self.source, '0'), 'test': _recordings(self.source, '1')}


def _recordings(source: pathlib.Path, first: str) -> Iterator[Utterance]:
    """The recordings whose first word is `first`: the file name is the transcript."""
    for path, content in archives.read_files(source, '.wav'):
        digits = path.stem.split('_')
        if digits[0] == first and set(digits) <= set(WORDS):
            text = ' '.join(WORDS[digit] for digit in digits)
            yield Utterance(f'yn-{path.stem}', 'yn', text, content)
