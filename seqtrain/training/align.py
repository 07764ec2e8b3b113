"""Alignments of the training set: the flat start, then Viterbi with the network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from seqtrain.data.leases import Lease
from seqtrain.training import bootstrap
from seqtrain.training.batching import Batcher
from seqtrain.training.prepare import TrainingData


def flat_start(data: TrainingData, silence: bool = True) -> list[np.ndarray]:
    """i32[U] per utterance: silence by energy, speech cut uniformly into the words' phones.

    The first pronunciation of every word is taken; an utterance too short for these has no labels
    (−1) until the first realignment. The energy of a frame is the mean of its log-mel features,
    which normalisation shifts and scales but does not reorder much.

    Args:
      data: the training set.
      silence: silence may stand between words; else all frames are speech.
    """
    labels = []
    for text, frames in zip(data.features.texts, data.features.features, strict=True):
        speech = bootstrap.energy_speech_mask(frames[:: data.subsampling].mean(-1))
        if not silence:
            speech = np.ones_like(speech)
        phones = [p for word in text.split() for p in data.lexicon.variants(word)[0]]
        try:
            labels.append(bootstrap.flat_start_labels(speech, phones, data.topology))
        except ValueError:
            labels.append(np.full(len(speech), -1, np.int32))
    return labels


def realign(
    align: Callable[..., Any],
    params: Any,
    batcher: Batcher,
    labels: Sequence[np.ndarray],
    devices: Sequence[jax.Device],
    parts: Sequence[Sequence[int]],
) -> list[np.ndarray]:
    """Viterbi alignments of all utterances; each replica aligns its own part on its own device.

    Args:
      align: `align(params, batch) -> (score, pdfs)`, see `steps.make_align`.
      params: the network's parameters.
      batcher: without augmentation.
      labels: the alignments so far, kept where no path is found.
      devices: one per replica.
      parts: the utterances of each replica.
    """
    new = list(labels)
    data = batcher.data

    def run(number: int) -> None:
        device = devices[number]
        local = jax.device_put(params, device)
        groups = data.buckets.plan(parts[number], data.features.num_frames.tolist())
        for bucket, indices in groups:
            for index, path in paths(align, local, batcher, device, bucket, indices):
                new[index] = path

    run_parts = [n for n in range(len(devices)) if len(parts[n])]
    with ThreadPoolExecutor(len(devices)) as pool:
        list(pool.map(run, run_parts))
    return new


def paths(
    align: Callable[..., Any],
    params: Any,
    batcher: Batcher,
    device: jax.Device,
    bucket: int,
    indices: Sequence[int],
) -> Iterator[tuple[int, np.ndarray]]:
    """(utterance, i32[U]) of one batch' Viterbi paths; none where there is no path."""
    data = batcher.data
    batch = batcher.make(Lease((0, 0, 0), bucket, tuple(indices)), device)
    pdfs = np.asarray(align(params, batch.device)[1])
    for row, index in enumerate(indices):
        path = pdfs[row, : data.output_length(index)]
        if (path >= 0).all():
            yield index, path.astype(np.int32)
