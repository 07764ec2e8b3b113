"""`PhoneLm`: the phone language model of the denominator, as a deterministic acceptor.

Epsilon-free and exact: back-off is resolved while the acceptor is built, so that every state's arcs
and final weight sum to 1. Whole utterances: it starts at <s> and ends with </s>.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np

from seqtrain.fsa.fsa import NEG_INF, Fsa, FsaError
from seqtrain.fsa.operations import connect, minimise
from seqtrain.graphs.ngram import BOS, EOS, NGramLm
from seqtrain.graphs.topology import check_phones


@dataclasses.dataclass(frozen=True)
class PhoneLm:
    """An n-gram model over phones.

    Attributes:
      ngram: the model over phone names.
      phones: phone names in the order of their ids.
    """

    ngram: NGramLm
    phones: tuple[str, ...]

    @classmethod
    def estimate(
        cls,
        sequences: Iterable[Sequence[int]],
        phones: Sequence[str],
        *,
        order: int = 3,
        smoothing: str = 'none',
        extra_contexts: int | None = 2000,
    ) -> PhoneLm:
        """Estimates the model from phone-id sequences of the training set.

        Args:
          sequences: phone ids per utterance, silences included.
          phones: phone names in the order of their ids (`Lexicon.phones`).
          order: 3; or 4, which keeps the `extra_contexts` best 4-gram contexts beside all
            trigram contexts, as Kaldi's chain models do.
          smoothing: 'none' (chain: no smoothing, so the graph stays small and a phone not seen in
            a context is impossible), or see `NGramLm.estimate`.
          extra_contexts: number of the longest contexts to keep, where these have 3 or more
            phones (`order` above 3); all shorter ones stay. None keeps all.

        Raises:
          ValueError: a phone id outside of 0..P−1 (names the sequence, counted from 0), a name that
            stands twice in `phones`, or see `NGramLm.estimate`.
        """
        names = tuple(phones)
        if len(set(names)) < len(names):
            raise ValueError('The phone set names a phone twice; give every phone its own name.')
        sentences = []
        for number, sequence in enumerate(sequences):
            check_phones(sequence, len(names), f'Sequence {number}')
            sentences.append([names[phone] for phone in sequence])
        keep = extra_contexts if order > 3 else None
        ngram = NGramLm.estimate(
            sentences, order, smoothing=smoothing, vocabulary=names, extra_contexts=keep
        )
        return cls(ngram, names)

    @classmethod
    def backed_off(
        cls, sequences: Iterable[Sequence[int]], phones: Sequence[str], *, order: int = 3
    ) -> PhoneLm:
        """The smoothed variant (Witten-Bell): every phone sequence is possible.

        For development transcripts, which an unsmoothed model may exclude. Its acceptor has an arc
        per context and phone: choose order 2 where many phones make order 3 too large.
        """
        return cls.estimate(
            sequences, phones, order=order, smoothing='witten-bell', extra_contexts=None
        )

    def acceptor(self) -> Fsa:
        """The model as a deterministic, minimal acceptor over phone ids.

        Raises:
          FsaError: the model gives every sentence probability 0.
        """
        return self._acceptor

    @functools.cached_property
    def _acceptor(self) -> Fsa:
        contexts = self.ngram.contexts()
        queue = [_longest((BOS,), contexts)]
        number = {queue[0]: 0}
        rows = []
        for context in queue:  # grows while it is walked
            for phone, name in enumerate(self.phones):
                logprob = self.ngram.logprob(context, name)
                if logprob == NEG_INF:
                    continue
                after = _longest((*context, name), contexts)
                if after not in number:
                    number[after] = len(queue)
                    queue.append(after)
                rows.append((number[context], number[after], phone, logprob))
        initial = np.full(len(queue), NEG_INF)
        initial[0] = 0.0
        final = np.array([self.ngram.logprob(context, EOS) for context in queue])
        if not rows:
            raise FsaError('The phone language model has no phones; estimate it from sequences.')
        return minimise(connect(Fsa.from_arcs(rows, initial, final)))


def _longest(history: tuple[str, ...], contexts: set[tuple[str, ...]]) -> tuple[str, ...]:
    """The longest end of a history that is a context of the model; () at last."""
    while history and history not in contexts:
        history = history[1:]
    return history
