"""Numerator and denominator: the two graphs of an utterance's MMI criterion.

A matched pair (`numerator` with the `phone_lm` of `denominator`) shares its paths: a numerator path
is a denominator path with bit-equal arc weights, and none is counted twice, so num <= den.
"""

from __future__ import annotations

from collections.abc import Sequence

from seqtrain.fsa.fsa import Fsa, FsaError
from seqtrain.fsa.operations import intersect, minimise
from seqtrain.graphs.expansion import expand
from seqtrain.graphs.lexicon import Lexicon, split_words, transcript
from seqtrain.graphs.phone_lm import PhoneLm
from seqtrain.graphs.topology import Topology


class NoPathError(ValueError):
    """The phone language model gives a transcript probability 0."""


def numerator(
    words: str | Sequence[str],
    lexicon: Lexicon,
    topology: Topology,
    phone_lm: PhoneLm | None = None,
    *,
    optional_silence: bool = True,
) -> Fsa:
    """All pdf sequences of a transcript.

    Args:
      words: the transcript, as a string or as words.
      lexicon: pronunciations.
      topology: HMMs of the phones.
      phone_lm: gives phone sequences their weight; pass the denominator's to get a matched pair.
        Without it they all weigh the same (for alignments).
      optional_silence: silence may stand at word boundaries and at both ends.

    Raises:
      OovError: lists all words without pronunciation.
      NoPathError: `phone_lm` excludes the transcript (unsmoothed models do that to unseen ones).
      ValueError: the transcript is empty, or the lexicon has more phones than the topology.
    """
    phones = transcript(words, lexicon, optional_silence=optional_silence)
    if phone_lm is not None:
        try:
            phones = intersect(phones, phone_lm.acceptor())
        except FsaError:
            raise NoPathError(
                f'The phone language model excludes the transcript '
                f'{" ".join(split_words(words))!r}; use PhoneLm.backed_off for unseen text.'
            ) from None
    return expand(phones, topology)


def denominator(phone_lm: PhoneLm, topology: Topology) -> Fsa:
    """All pdf sequences that the phone language model allows, as a small shared graph.

    Raises:
      ValueError: the model has phones that the topology has not.
    """
    return minimise(expand(phone_lm.acceptor(), topology))
