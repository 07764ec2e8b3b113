"""From monophones to tied states: the tree, its features, and outputs that begin as copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
import scipy.fft

from seqtrain.graphs import TiedTopology, Topology, segments, tie_by_counts, tree
from seqtrain.training.prepare import TrainingData

CONTEXTS = {'mono': '', 'biphone': 'left', 'triphone': 'both'}
"""Which neighbours the states of `config.graph.context` know."""


def tie(
    graph: ml_collections.ConfigDict, data: TrainingData, labels: Sequence[np.ndarray]
) -> TiedTopology:
    """Ties states by what the alignments say; see `config.graph`."""
    base: Topology = data.topology
    if graph.tying == 'count':
        spoken = ([part.phone for part in segments(one, base)] for one in labels)
        return tie_by_counts(spoken, base, min_count=graph.min_count)
    statistics = tree.ContextStatistics(base)
    for features, pdfs in zip(data.features.features, labels, strict=True):
        statistics.add(tree_features(features, data.subsampling), pdfs)
    return tree.grow(
        statistics,
        context=CONTEXTS[graph.context],
        num_pdfs=graph.num_tied,
        min_frames=graph.min_count,
    )


def tree_features(features: np.ndarray, subsampling: int) -> np.ndarray:
    """f64[U, 26]: 13 cepstra of every output frame and their slope over ±2 input frames.

    The tree's Gaussians are diagonal and log-mel bands are not: the cosine transform makes them
    nearly so.
    """
    cepstra = scipy.fft.dct(np.asarray(features, np.float64), norm='ortho', axis=1)[:, :13]
    frames = np.arange(len(cepstra))
    ahead, behind = (np.clip(frames + step, 0, len(frames) - 1) for step in (2, -2))
    return np.concatenate([cepstra, cepstra[ahead] - cepstra[behind]], axis=1)[::subsampling]


def widen(params: Any, fresh: Any, base_pdf: np.ndarray) -> Any:
    """Parameters of a monophone network for tied states: output k is a copy of `base_pdf[k]`.

    Args:
      params: of the monophone network.
      fresh: of the network to be, for its shapes.
      base_pdf: i32[tied pdfs], the monophone pdf that each one refines.

    Logits are log-likelihoods, so every tied state begins with its monophone's; their priors are
    counted from the tied alignments.
    """
    output = {name: np.asarray(value)[..., base_pdf] for name, value in params['output'].items()}
    for name, value in output.items():
        assert value.shape == fresh['output'][name].shape
    return {**params, 'output': output}
