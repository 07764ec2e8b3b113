"""`Topology`: what a phone is made of in frames, and the expansion of phone graphs to pdf graphs.

A phone is a row of K HMM states. A state's first frame carries its forward pdf, further frames its
loop pdf (Kaldi's `reorder`), so K is also the least number of frames of a phone. In the CTC
topology one more pdf, blank, may stand between phones and must stand between equal ones.

    kind    K  pdfs    pdf of state k of phone p          loop / leave probability
    chain   1  2·P     forward 2p, loop 2p+1              0.5 / 0.5 (Kaldi's chain topology)
    hmm1    1  P       p                                  0.5 / 0.5
    hmm3    3  3·P     3p+k                               0.75 / 0.25
    ctc     1  P+1     p+1, blank 0                       no weights

The log-probability of leaving a state is paid on entering it, so that final weights stay the
language model's own; a path's weight is the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from seqtrain.fsa.fsa import NEG_INF, Fsa
from seqtrain.fsa.operations import outgoing

EPSILON = -1
_START = -1

Arc = tuple[int, int | None, float, int]
"""An arc of a phone graph: (phone or EPSILON, output label or None, log-weight, destination)."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """The HMM of every phone.

    Attributes:
      kind: 'chain', 'hmm1', 'hmm3' or 'ctc'.
      forward: per phone the forward pdf of each of its K states.
      loop: per phone the loop pdf of each of its K states.
      loop_logprob: log-probability of staying in a state.
      leave_logprob: log-probability of leaving a state.
      blank: the CTC blank pdf, else None.
    """

    kind: str
    forward: tuple[tuple[int, ...], ...]
    loop: tuple[tuple[int, ...], ...]
    loop_logprob: float
    leave_logprob: float
    blank: int | None = None

    @classmethod
    def make(cls, kind: str, num_phones: int) -> Topology:
        """Context-independent topology of `num_phones` phones; see the table above."""
        phones = range(num_phones)
        pdfs: tuple[tuple[int, ...], ...]
        half = math.log(0.5)
        if kind == 'chain':
            pdfs = tuple((2 * p,) for p in phones)
            return cls(kind, pdfs, tuple((2 * p + 1,) for p in phones), half, half)
        if kind == 'hmm1':
            pdfs = tuple((p,) for p in phones)
            return cls(kind, pdfs, pdfs, half, half)
        if kind == 'hmm3':
            pdfs = tuple((3 * p, 3 * p + 1, 3 * p + 2) for p in phones)
            return cls(kind, pdfs, pdfs, math.log(0.75), math.log(0.25))
        if kind == 'ctc':
            pdfs = tuple((p + 1,) for p in phones)
            return cls(kind, pdfs, pdfs, 0.0, 0.0, blank=0)
        raise ValueError(f'Unknown topology {kind!r}; choose chain, hmm1, hmm3 or ctc.')

    @property
    def num_phones(self) -> int:
        return len(self.forward)

    @property
    def num_pdfs(self) -> int:
        return 1 + max(max(max(f), max(s)) for f, s in zip(self.forward, self.loop, strict=True))

    @property
    def num_states(self) -> int:
        """HMM states of a phone, K: its least number of frames."""
        return len(self.forward[0])

    def pdfs(self, left: int, phone: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Forward and loop pdfs of a phone's states after the phone `left` (−1: none)."""
        del left  # context-independent
        return self.forward[phone], self.loop[phone]

    def phone_of_pdf(self) -> np.ndarray:
        """i32[num_pdfs]: the phone a pdf belongs to, −1 for blank."""
        result = np.full(self.num_pdfs, -1, np.int32)
        for phone in range(self.num_phones):
            result[list(self.forward[phone] + self.loop[phone])] = phone
        return result


def expand(phone_acceptor: Fsa, topology: Topology) -> Fsa:
    """Replaces every phone of an acceptor by its HMM.

    A path of the result is a phone sequence with its segmentation into frames; its weight is the
    acceptor's plus the log-probabilities of the HMM's transitions. Equal inputs give bit-equal arc
    weights, whatever graph they stand in: numerator paths weigh what they weigh in the denominator.

    Args:
      phone_acceptor: acceptor over phone ids (`Fsa.pdf` holds phones), one initial state.
      topology: the HMMs.
    """
    out: dict[int, list[Arc]] = {
        state: [(label, None, weight, dst) for label, weight, dst in arcs]
        for state, arcs in outgoing(phone_acceptor).items()
    }
    starts = np.flatnonzero(np.isfinite(phone_acceptor.initial)).tolist()
    expansion = Expansion.of(out, starts, topology)
    initial = np.full(expansion.num_states, NEG_INF)
    initial[: len(starts)] = phone_acceptor.initial[starts]
    final = np.full(expansion.num_states, NEG_INF)
    for state, source in expansion.ends:
        final[state] = phone_acceptor.final[source]
    arcs = [(src, dst, pdf, weight) for src, pdf, _, weight, dst in expansion.arcs]
    return Fsa.from_arcs(arcs, initial, final)


@dataclasses.dataclass
class Expansion:
    """A phone graph (acceptor or transducer, epsilons allowed) turned into a pdf graph.

    Product of the graph with the topology seen as a machine that remembers the last phone. A node
    is (graph state, last phone, its pdfs): all arcs that enter a graph state with one phone share
    the phone's HMM states.

    Attributes:
      arcs: (src, pdf or EPSILON, output label or None, log-weight, dst).
      ends: (state, graph state) where the graph may end or go on.
      num_states: states of the result; the start states come first.
    """

    topology: Topology
    out: Mapping[int, Sequence[Arc]]
    arcs: list[tuple[int, int, int | None, float, int]] = dataclasses.field(default_factory=list)
    ends: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    num_states: int = 0
    _nodes: dict[tuple, int] = dataclasses.field(default_factory=dict)
    _queue: list[tuple[tuple, int]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(
        cls, out: Mapping[int, Sequence[Arc]], starts: Iterable[int], topology: Topology
    ) -> Expansion:
        """Expands the graph with arcs `out` per state from its start states."""
        expansion = cls(topology, out)
        for start in starts:
            expansion._node(start, _START, None)
        for node, state in expansion._queue:  # grows while it is walked
            expansion._leave(node, state)
        return expansion

    def _leave(self, node: tuple, state: int) -> None:
        """Adds everything that leaves a node's last HMM state."""
        source, left, pdfs = node
        self.ends.append((state, source))
        blank = self.topology.blank
        if blank is not None:
            # `left` stays in a blank node only as "none": after blank any phone may follow.
            self.arcs.append((state, blank, None, 0.0, self._node(source, _START, None)))
        for phone, symbol, weight, dst in self.out.get(source, ()):
            if phone == EPSILON:
                after = self._node(dst, left, None if pdfs is None else ())
                self.arcs.append((state, EPSILON, symbol, weight, after))
            elif blank is None or phone != left:
                self._enter(state, left, phone, symbol, weight, dst)

    def _enter(self, state, left, phone, symbol, weight, dst) -> None:
        """Adds the arc into a phone's first HMM state, and the states where they are new."""
        pdfs = self.topology.pdfs(left, phone)
        last = self._node(dst, phone, pdfs)
        first = last - len(pdfs[0]) + 1
        log_weight = weight + self.topology.leave_logprob
        self.arcs.append((state, pdfs[0][0], symbol, log_weight, first))

    def _node(self, source: int, phone: int, pdfs: tuple | None) -> int:
        """The node's last state; on first use its states, loops and inner arcs are made."""
        key = (source, phone, pdfs)
        if key in self._nodes:
            return self._nodes[key]
        forward, loop = pdfs if pdfs else ((0,), ())
        first = self.num_states
        self.num_states += len(forward)
        last = self.num_states - 1
        self._nodes[key] = last
        self._queue.append((key, last))
        for k, pdf in enumerate(loop):
            self.arcs.append((first + k, pdf, None, self.topology.loop_logprob, first + k))
        for k, pdf in enumerate(forward[1:]):
            leave = self.topology.leave_logprob
            self.arcs.append((first + k, pdf, None, leave, first + k + 1))
        return last
