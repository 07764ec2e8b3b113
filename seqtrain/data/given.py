"""Features that a corpus brings along (`feats.scp`): checks, and MFCC as log-mel bands again.

Log-mel bands are what the rest of the package takes features to be: the flat start takes their mean
for energy, warps move bands, and the tree makes cepstra of its own. Kaldi's chain recipes, too,
give the network MFCC and undo them in its first layer (`idct-layer`).
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.fft
from jaxtyping import Float, Float32

from seqtrain.data.utterance import AudioError, DataError, Utterance

KINDS = ('fbank', 'mfcc', 'other')
_LIFTER = 22.0  # Kaldi's --cepstral-lifter
_RELATED = 0.5  # neighbouring log-mel bands correlate by 0.9 and more, MFCC by less than 0.3
_LOOK = 50  # utterances that are looked at,
_ENOUGH = 100  # and frames without which nothing is said of them


def usual_dim(records: Iterable[Utterance]) -> int:
    """The feature dimension most records give; 0 where none does."""
    dims = collections.Counter(
        u.features.shape[1] for u in records if u.features is not None and u.features.ndim == 2
    )
    return dims.most_common(1)[0][0] if dims else 0


def checked(features: np.ndarray, dim: int) -> Float32[np.ndarray, 'T F']:
    """An utterance's features; AudioError where they cannot be used."""
    if features.ndim != 2 or len(features) == 0:
        raise AudioError('its features are empty')
    if features.shape[1] != dim:
        raise AudioError(f'its features have {features.shape[1]} dimensions, others have {dim}')
    if not np.isfinite(features).all():
        raise AudioError('its features are not finite')
    return np.asarray(features, np.float32)


def log_mel(cepstra: Float[np.ndarray, 'T C'], num_bins: int) -> Float32[np.ndarray, 'T F']:
    """Log-mel bands of which Kaldi's `compute-mfcc-feats` makes these MFCC.

    c_k = (1 + 11 sin(πk/22)) · Σ_n D_kn log m_n with D the orthonormal DCT-II, so that
    log m = Dᵀ(c_k / lifter_k): exact where all cepstra were kept (mfcc_hires.conf), else smoothed.
    C0 must be the sum over bands (Kaldi's --use-energy=false), not the frame's energy.

    Args:
      cepstra: with C0.
      num_bins: F, at least C; as many as the MFCC were made of.
    """
    k = np.arange(cepstra.shape[1])
    unlifted = cepstra / (1.0 + 0.5 * _LIFTER * np.sin(np.pi * k / _LIFTER))
    return scipy.fft.idct(unlifted, n=num_bins, norm='ortho', axis=1).astype(np.float32)


def check_bands(features: Sequence[Float32[np.ndarray, 'T F']]) -> None:
    """Raises DataError where given features look like cepstra, not like log-mel bands."""
    if not features:
        return
    frames = np.concatenate(features[:_LOOK]).astype(np.float64)
    frames = frames[:, frames.std(axis=0) > 0]
    if frames.shape[1] < 3 or len(frames) < _ENOUGH:
        return
    if np.diag(np.corrcoef(frames, rowvar=False), 1).mean() < _RELATED:
        raise DataError(
            'The features of feats.scp look like MFCC: neighbouring columns have little to do with '
            'each other. Set features.given=mfcc (--config.features.given=mfcc for a run), or '
            '=other to take them as they are.'
        )
