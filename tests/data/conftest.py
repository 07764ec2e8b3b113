"""Fixtures that make small recordings and Kaldi data directories."""

import io
import pathlib

import numpy as np
import pytest
import soundfile

from seqtrain.data import utterance


def encode(samples, rate=8000, container='FLAC'):
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples, np.int16), rate, format=container, subtype='PCM_16')
    return file.getvalue()


def noise(seconds, rate=8000, seed=0):
    return (1000 * np.random.default_rng(seed).standard_normal(int(seconds * rate))).astype(
        np.int16
    )


@pytest.fixture
def make_audio():
    """make_audio(seconds, rate, seed, container) -> bytes of a recording of noise."""
    return lambda seconds=1.0, rate=8000, seed=0, container='FLAC': encode(
        noise(seconds, rate, seed), rate, container
    )


@pytest.fixture
def make_utterance(make_audio):
    """make_utterance(id, **changes) -> a sound utterance of one second, but for the changes."""

    def make(name='u', seed=0, **changes):
        fields = {'speaker': 's', 'text': 'yes no', 'audio': make_audio(seed=seed)} | changes
        return utterance.Utterance(name, **fields)

    return make


@pytest.fixture
def make_kaldi_dir(tmp_path):
    """make_kaldi_dir({'file': 'content', ...}) -> path of a data directory with these files."""

    def make(files, name='train') -> pathlib.Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for file, content in files.items():
            (folder / file).write_text(content)
        return folder

    return make
