"""Kaldi data directories (`wav.scp`, `segments`, `text`, `utt2spk`, ...) as utterance records.

Reads; writes nothing. Audio is decoded later, on demand, by `Utterance.samples`. See
https://kaldi-asr.org/doc/data_prep.html for the files.
"""

from __future__ import annotations

import math
import os
import pathlib
import re
import subprocess
from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float32

from seqtrain import extras
from seqtrain.data import utterance
from seqtrain.textfile import read_lines

Utterance = utterance.Utterance
DataError = utterance.DataError

# What an entry of feats.scp says after the file: where a matrix begins, which rows and columns.
_PLACE = re.compile(r'(:\d+)?(\[[\d:,]*\])?$')
_MEMBER = re.compile(r'(?P<file>.+):(?P<offset>\d+)')


def read_dir(path: str | os.PathLike, *, allow_pipes: bool = False) -> Iterator[Utterance]:
    """Yields the utterances of a Kaldi data directory, in the order of its files.

    `feats.scp` is used where there is one (features are then given, audio is not), else
    `segments` over `wav.scp`, else `wav.scp`. Paths in the scp files are looked for as they are
    (absolute, or relative to the working directory), then relative to the data directory's
    parent, then to the data directory itself. `archive.ark:1234` means the WAV file or matrix at
    that byte, `[0:9]` behind a matrix its rows (and columns). Without `text` every transcript
    is ''.

    Args:
      path: the data directory.
      allow_pipes: run the shell commands of entries that end in '|'. Off by default: a data
        directory from elsewhere would run anything it likes.

    Yields:
      One record per line. A record that cannot be used (no recording for a segment, a pipe that
      is not allowed, an unreadable ark entry, an id seen before, ...) says so in `problem`; it
      does not stop the others.

    Raises:
      DataError: the directory is missing, or holds neither `feats.scp` nor `wav.scp`.
    """
    root = pathlib.Path(path)
    if not root.is_dir():
        raise DataError(f'There is no Kaldi data directory at {root}.')
    if (root / 'feats.scp').is_file():
        records = _read_feats(root)
    elif (root / 'wav.scp').is_file():
        records = _read_wavs(root, allow_pipes)
    else:
        raise DataError(f'{root} holds neither feats.scp nor wav.scp; one of them is needed.')
    # Read here, not at the first record: a wrong path should fail at the call.
    return _with_labels(root, records)


def read_texts(path: str | os.PathLike) -> dict[str, str]:
    """Transcripts by utterance id; of utterances in which nothing was said, too. {} without any."""
    table = _read_table(pathlib.Path(path) / 'text')
    return {name: ' '.join(text.split()) for name, text in table.items()}


def _with_labels(root: pathlib.Path, records: Iterator[dict]) -> Iterator[Utterance]:
    texts = read_texts(root)
    speakers = _read_speakers(root)
    unseen = dict(texts)
    seen: set[str] = set()
    for record in records:
        name = record['id']
        if name in seen:
            record = {'id': name, 'problem': f'id {name} occurs twice; the first was kept'}
        seen.add(name)
        unseen.pop(name, None)
        yield Utterance(speaker=speakers.get(name, name), text=texts.get(name, ''), **record)
    for name, text in unseen.items():
        yield Utterance(
            name,
            speakers.get(name, name),
            text,
            problem=f'has a transcript in {root / "text"} but neither audio nor features',
        )


def _read_wavs(root: pathlib.Path, allow_pipes: bool) -> Iterator[dict]:
    """The fields `id`, `audio`, `start_s`, `end_s` (or `problem`) of every utterance."""
    if not (root / 'segments').is_file():
        for name, entry in _read_lines(root / 'wav.scp'):
            yield {'id': name} | _audio(root, entry, allow_pipes)
        return
    recordings = _read_table(root / 'wav.scp')
    audio: dict[str, dict] = {}
    for name, rest in _read_lines(root / 'segments'):
        fields = rest.split()
        try:
            recording, start_s, end_s = fields[0], float(fields[1]), float(fields[2])
            if not math.isfinite(start_s + end_s):
                raise ValueError
        except (IndexError, ValueError):
            problem = f'segments line "{name} {rest}" is not "<id> <recording> <start> <end>"'
            yield {'id': name, 'problem': problem}
            continue
        if recording not in recordings:
            yield {'id': name, 'problem': f'recording {recording} is not in wav.scp'}
            continue
        if recording not in audio:
            audio[recording] = _audio(root, recordings[recording], allow_pipes)
        # An end of -1 means the end of the recording.
        span = {'start_s': start_s, 'end_s': None if end_s == -1 else end_s}
        yield {'id': name} | span | audio[recording]


def _read_feats(root: pathlib.Path) -> Iterator[dict]:
    """The fields `id`, `features` (or `problem`) of every utterance."""
    for name, entry in _read_lines(root / 'feats.scp'):
        if '|' in entry:
            yield {'id': name, 'problem': f'feats.scp entry "{entry}" is a pipe; copy the features'}
            continue
        try:
            yield {'id': name, 'features': _read_matrix(root, entry)}
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else 'unreadable'
            yield {'id': name, 'problem': f'features {entry} cannot be read ({reason})'}


def _read_matrix(root: pathlib.Path, entry: str) -> Float32[np.ndarray, 'T F']:
    """Reads `file`, `file:offset` and `...[rows,columns]`; compressed matrices are expanded."""
    file = _PLACE.sub('', entry)
    found = _find(root, file)
    if not found.is_file():
        raise FileNotFoundError(f'ark file {file} is missing')
    name = f'{found}{entry[len(file) :]}'
    matrix = extras.load('kaldi_native_io').FloatMatrix.read(name)
    return np.array(matrix.numpy(), np.float32)


def _audio(root: pathlib.Path, entry: str, allow_pipes: bool) -> dict:
    """The fields `audio` (`offset`) or `problem` for the right-hand side of a `wav.scp` line."""
    if not entry:
        return {'problem': 'wav.scp names no file for it'}
    if not entry.endswith('|'):
        try:
            found = _find(root, entry)
            if found.is_file() or not (member := _MEMBER.fullmatch(entry)):
                return {'audio': found}
            return {'audio': _find(root, member['file']), 'offset': int(member['offset'])}
        except OSError as error:
            return {'problem': f'wav.scp entry "{entry[:80]}" is no file name ({error})'}
    if not allow_pipes:
        return {
            'problem': f'wav.scp entry "{entry[:60]}" is a shell command: store the audio as '
            'files, or, for a directory that you trust, train with --config.data.allow_pipes=True, '
            'decode and align with --allow_pipes (`read_dir(..., allow_pipes=True)`)'
        }
    done = subprocess.run(entry[:-1], shell=True, capture_output=True, check=False)
    if done.returncode:
        last = done.stderr.decode(errors='replace').strip().splitlines()[-1:] or ['no message']
        return {'problem': f'command "{entry}" failed ({last[0]})'}
    return {'audio': done.stdout}


def _find(root: pathlib.Path, name: str) -> pathlib.Path:
    """The file a scp entry means; its first candidate where none exists."""
    candidates = [pathlib.Path(name), root.parent / name, root / name]
    return next((path for path in candidates if path.is_file()), root.parent / name)


def _read_speakers(root: pathlib.Path) -> Mapping[str, str]:
    if (root / 'utt2spk').is_file():
        return _read_table(root / 'utt2spk')
    spk2utt = _read_table(root / 'spk2utt')
    return {name: speaker for speaker, names in spk2utt.items() for name in names.split()}


def _read_table(path: pathlib.Path) -> dict[str, str]:
    """The first line of every id; {} where there is no such file."""
    table: dict[str, str] = {}
    if path.is_file():
        for name, rest in _read_lines(path):
            table.setdefault(name, rest)
    return table


def _read_lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Splits every non-empty line into its id and the rest."""
    for line in read_lines(path, DataError):
        if line.strip():
            name, _, rest = line.strip().replace('\t', ' ').partition(' ')
            yield name, rest.strip()
