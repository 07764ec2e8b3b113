"""Finished feature sets on disk, named by the hash of all that they depend on.

Nothing is ever looked up by name or date, so a stale entry cannot be found; a damaged one is
computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pathlib
import uuid
from collections.abc import Sequence

import numpy as np

from seqtrain.data.utterance import AudioError, Skipped, Utterance

logger = logging.getLogger(__name__)

# Part of every key: raise it when features of the same configuration change.
VERSION = 3

Fields = dict


def key(content: str, settings: tuple) -> str:
    """The name of a set: the hash of what it is made of (see `content_of`) and how."""
    return hashlib.sha256(json.dumps([VERSION, content, settings]).encode()).hexdigest()[:32]


def content_of(records: Sequence[Utterance]) -> str:
    """The hash of every record with the content of its recording."""
    digest = hashlib.sha256()
    recordings: dict[tuple, bytes] = {}  # segments share theirs
    for record in records:
        head = (record.id, record.speaker, record.text, record.start_s, record.end_s)
        digest.update(json.dumps([*head, record.problem]).encode())
        if record.features is not None:
            given = np.ascontiguousarray(record.features)
            digest.update(json.dumps([given.shape, given.dtype.str]).encode())
            digest.update(given.tobytes())
            continue
        recording = (record.audio, record.offset, record.problem)
        if recording not in recordings:
            recordings[recording] = _content(record)
        digest.update(recordings[recording])
    return digest.hexdigest()


def _content(record: Utterance) -> bytes:
    """What stands for a recording in the key: its hash, or why it cannot be read."""
    try:
        return hashlib.sha256(record.encoded()).digest()
    except AudioError as error:
        return str(error).encode()


def save(cache_dir: str | os.PathLike, name: str, feature_set) -> None:
    """Writes a `FeatureSet`; another process that writes the same one does no harm."""
    folder = pathlib.Path(cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        'ids': feature_set.ids,
        'speakers': feature_set.speakers,
        'texts': feature_set.texts,
        'skipped': [(s.id, s.reason) for s in feature_set.skipped],
        'sample_rate': feature_set.sample_rate,
    }
    frames = feature_set.features or [np.zeros((0, 0), np.float32)]
    unfinished = folder / f'{name}.{uuid.uuid4().hex}.tmp'
    with unfinished.open('wb') as file:
        np.savez(
            file,
            about=np.array(json.dumps(about)),
            lengths=feature_set.num_frames,
            frames=np.concatenate(frames),
        )
    unfinished.replace(folder / f'{name}.npz')


def load(cache_dir: str | os.PathLike, name: str) -> Fields | None:
    """The fields of a `FeatureSet`; None where it is not there or cannot be read."""
    path = pathlib.Path(cache_dir) / f'{name}.npz'
    try:
        with path.open('rb') as file, np.load(file) as stored:
            about = json.loads(str(stored['about']))
            ends = np.cumsum(stored['lengths'])
            frames = stored['frames']
    except FileNotFoundError:
        return None
    except Exception as error:  # Whatever is wrong with the file, the remedy is the same.
        logger.warning('Features are computed again: %s is damaged (%s).', path, error)
        return None
    return {
        'ids': tuple(about['ids']),
        'speakers': tuple(about['speakers']),
        'texts': tuple(about['texts']),
        'features': np.split(frames, ends[:-1]) if len(ends) else [],
        'skipped': tuple(Skipped(*pair) for pair in about['skipped']),
        'sample_rate': about['sample_rate'],
    }
