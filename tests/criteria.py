"""The sequence criteria under one signature, for tests that hold for all of them."""

import numpy as np
import oracles

from seqtrain import losses, ops
from seqtrain.fsa import Fsa

FRAMES, PDFS = 8, 4
PHONES = [0, 0, 1, 1]
"""Of every pdf."""
BOOST = 0.5
LENGTHS = np.array([FRAMES, 6, 3], np.int32)
LABELS = np.array(
    [[0, 1, 1, 2, 3, 3, 0, 2], [3, 3, 0, 0, 1, 2, 2, 1], [2, 1, 1, 1, 0, 0, 3, 3]], np.int32
)

CRITERIA = {
    'mmi': lambda x, n, num, den, **options: losses.lf_mmi(x, n, num, den, **options),
    'bmmi': lambda x, n, num, den, **options: losses.lf_mmi(
        x, n, num, den, boost=BOOST, accuracy=losses.frame_accuracy(LABELS, PDFS), **options
    ),
    'smbr': lambda x, n, num, den, **options: losses.smbr(x, n, LABELS, den, **options),
    'mpe': lambda x, n, num, den, **options: losses.mpe(x, n, LABELS, den, PHONES, **options),
    'ctc': lambda x, n, num, den, **options: losses.ctc(x, n, num, **options),
    'ctc_crf': lambda x, n, num, den, **options: losses.ctc_crf(x, n, num, den, **options),
}
"""f(logits, lengths, numerators, denominator, **options) -> `losses.Outcome`."""


def graphs(lattices: bool, seed: int = 0) -> tuple[list[Fsa], list[Fsa]]:
    """Numerators and denominators of the utterances; these are one and the same, or lattices."""
    rng = np.random.default_rng(seed)

    def fsa() -> Fsa:
        """All states start and end: no utterance is infeasible."""
        drawn = oracles.hmm_fsa(rng, 4, 6, PDFS)
        cycle = [[*drawn.src, 0, 1, 2, 3], [*drawn.dst, 1, 2, 3, 0], [*drawn.pdf, *range(4)]]
        return Fsa(*cycle, rng.normal(size=10), *rng.normal(size=(2, 4)))

    numerators = [fsa() for _ in LENGTHS]
    if lattices:
        return numerators, [oracles.lattice_fsa(rng, n, PDFS) for n in LENGTHS]
    return numerators, [fsa()] * len(LENGTHS)


def packed(numerators: list[Fsa], denominators: list[Fsa], lattices: bool):
    """Numerators and denominator as the criteria take them, always of the same sizes."""
    num = ops.pack_batch(numerators, num_states=4, num_arcs=10)
    if lattices:
        return num, ops.pack_batch(denominators, num_states=25, num_arcs=44)
    return num, ops.pack(denominators[0])


def logits(seed: int = 1) -> np.ndarray:
    """f32[B, T, P]."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(len(LENGTHS), FRAMES, PDFS)).astype(np.float32)
