"""First alignments without any model: silence by energy, speech cut into equal phones.

Realignment by Viterbi with the network is in `seqtrain.training.align`.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from seqtrain.graphs import Topology, uniform_alignment


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


def flat_start_labels(speech: np.ndarray, phones: Sequence[int], topology: Topology) -> np.ndarray:
    """The phones evenly over the speech frames, silence in the runs between.

    Every run is a path through the HMMs (`graphs.uniform_alignment`): a state's forward pdf on its
    first frame, its loop pdf on the others.

    Args:
      speech: bool[T], True where speech is thought to be.
      phones: of the transcript, without silences.
      topology: the HMMs; phone 0 is silence.

    Returns:
      i32[T], a pdf for every frame. Silences too short for silence's states are taken for speech;
      where there are fewer speech frames than the phones need, all frames are.

    Raises:
      ValueError: even all frames are too few.
    """
    runs = [(a, b) for a, b in _runs(~speech) if b - a >= topology.num_states]
    spoken = np.ones(len(speech), bool)
    for start, end in runs:
        spoken[start:end] = False
    try:
        in_speech = uniform_alignment(phones, topology, int(spoken.sum()))
    except ValueError:
        return uniform_alignment(phones, topology, len(speech))
    labels = np.empty(len(speech), np.int32)
    labels[spoken] = in_speech
    for start, end in runs:
        labels[start:end] = uniform_alignment([0], topology, end - start)
    return labels


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """[start, end) of every run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


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
