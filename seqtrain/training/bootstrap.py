"""First alignments without any model: silence by energy, speech cut into equal phones.

Realignment by Viterbi with the network is in `seqtrain.training.align`.
"""

from collections.abc import Iterable, Sequence

import numpy as np


def energy_speech_mask(energy: np.ndarray) -> np.ndarray:
    """Speech frames by Otsu's threshold on the frame energies.

    Args:
      energy: f[T], a log-energy (any offset and scale) per frame.

    Returns:
      bool[T]; all True where the energies do not fall into two classes (one frame, constant).
    """
    ordered = np.sort(energy)
    count = np.arange(1, len(ordered))
    if not len(count) or ordered[0] == ordered[-1]:
        return np.ones(len(energy), bool)
    total = np.cumsum(ordered)
    low = total[:-1] / count
    high = (total[-1] - total[:-1]) / count[::-1]
    between = count * count[::-1] * (high - low) ** 2
    return energy >= ordered[1 + int(np.argmax(between))]


def flat_start_labels(
    speech: np.ndarray,
    phone_pdfs: Sequence[Sequence[int]],
    silence_pdfs: Sequence[int],
) -> np.ndarray:
    """Spreads the phones' pdfs evenly over the speech frames, in order.

    Unlike `graphs.uniform_alignment` it has silence where the energy says so, never fails for want
    of frames, and gives a state's forward and loop pdf the same share.

    Args:
      speech: bool[T], True where speech is thought to be.
      phone_pdfs: for each phone of the transcript, the pdfs of its states in order.
      silence_pdfs: the pdfs of silence's states in order; silence takes the other frames.

    Returns:
      i32[T], a pdf for every frame. Where there are fewer speech frames than states, all frames
      are taken for speech; where even these are too few, states are skipped evenly.
    """
    states = [pdf for pdfs in phone_pdfs for pdf in pdfs]
    if speech.sum() < len(states):
        speech = np.ones_like(speech)
    labels = np.empty(len(speech), np.int32)
    labels[~speech] = _silence_runs(~speech, silence_pdfs)
    num_speech = int(speech.sum())
    position = np.arange(num_speech) * len(states) // max(1, num_speech)
    labels[speech] = np.asarray(states, np.int32)[position]
    return labels


def _silence_runs(silence: np.ndarray, pdfs: Sequence[int]) -> np.ndarray:
    """Cuts each run of silence frames evenly into silence's states."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], silence, [False]])))
    runs = [
        np.asarray(pdfs, np.int32)[np.arange(end - start) * len(pdfs) // (end - start)]
        for start, end in zip(edges[::2], edges[1::2], strict=True)
    ]
    return np.concatenate(runs) if runs else np.empty(0, np.int32)


def log_priors(labels: Sequence[np.ndarray], num_pdfs: int, smoothing: float = 1.0) -> np.ndarray:
    """Log relative frequencies of the pdfs in the alignments, with add-`smoothing` counts.

    Returns:
      f32[P]; labels of −1 (unaligned frames) are not counted.
    """
    return log_frequencies(count_labels(labels, num_pdfs), smoothing)


def count_labels(labels: Iterable[np.ndarray], num_pdfs: int) -> np.ndarray:
    """i64[P], how often each pdf occurs."""
    counts = np.zeros(num_pdfs, np.int64)
    for utterance in labels:
        counts += np.bincount(utterance[utterance >= 0], minlength=num_pdfs)
    return counts


def log_frequencies(counts: np.ndarray, smoothing: float = 1.0) -> np.ndarray:
    """f32[P], log relative frequencies with add-`smoothing` counts."""
    smoothed = counts + smoothing
    return np.log(smoothed / smoothed.sum()).astype(np.float32)
