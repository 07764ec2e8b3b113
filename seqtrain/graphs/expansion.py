"""`expand`: phone graphs to pdf graphs. Every phone is replaced by its HMM, in its context.

One code for training and decoding graphs, so that a path weighs the same in all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from seqtrain.fsa.fsa import NEG_INF, Fsa
from seqtrain.fsa.operations import outgoing
from seqtrain.graphs.topology import NONE, Topology, check_phones

EPSILON = -1

Arc = tuple[int, int | None, float, int]
"""An arc of a phone graph: (phone or EPSILON, output label or None, log-weight, destination)."""


def expand(phone_acceptor: Fsa, topology: Topology) -> Fsa:
    """Replaces every phone of an acceptor by its HMM.

    A path of the result is a phone sequence with its segmentation into frames; its weight is the
    acceptor's plus the log-probabilities of the HMM's transitions. Equal inputs give bit-equal arc
    weights, whatever graph they stand in: numerator paths weigh what they weigh in the denominator.

    Args:
      phone_acceptor: acceptor over phone ids (`Fsa.pdf` holds phones), one initial state.
      topology: the HMMs.

    Raises:
      ValueError: a phone that the topology does not have.
    """
    out: dict[int, list[Arc]] = {
        state: [(label, None, weight, dst) for label, weight, dst in arcs]
        for state, arcs in outgoing(phone_acceptor).items()
    }
    starts = np.flatnonzero(np.isfinite(phone_acceptor.initial)).tolist()
    ends = set(np.flatnonzero(np.isfinite(phone_acceptor.final)).tolist())
    expansion = Expansion.of(out, starts, ends, topology)
    initial = np.full(expansion.num_states, NEG_INF)
    initial[: len(starts)] = phone_acceptor.initial[starts]
    final = np.full(expansion.num_states, NEG_INF)
    for state, source in expansion.ends:
        final[state] = phone_acceptor.final[source]
    arcs = [(src, dst, pdf, weight) for src, pdf, _, weight, dst in expansion.arcs]
    return Fsa.from_arcs(arcs, initial, final)


_Pdfs = tuple[tuple[int, ...], tuple[int, ...]]


class _Node(NamedTuple):
    """Where a path stands: see `Expansion`.

    Without HMM states of its own `pdfs` is () behind an epsilon, None at a start and behind blanks.
    """

    source: int
    phone: int
    pdfs: Any
    rights: frozenset[int] | None


@dataclasses.dataclass
class Expansion:
    """A phone graph (acceptor or transducer, epsilons allowed) turned into a pdf graph.

    Product of the graph with the topology seen as a machine that remembers the last phone. A node
    is (graph state, last phone, its pdfs, phones that may follow): all arcs that enter a graph
    state with one phone in one context share the phone's HMM states. Where pdfs depend on the next
    phone, a phone is entered once per set of next phones that give it the same pdfs, and is left
    by these alone; so a phone sequence still has one way through the states.

    Attributes:
      arcs: (src, pdf or EPSILON, output label or None, log-weight, dst).
      ends: (state, graph state) where a path ends if the graph does.
      num_states: states of the result; the start states come first.
    """

    topology: Topology
    out: Mapping[int, Sequence[Arc]]
    finals: Container[int]
    arcs: list[tuple[int, int, int | None, float, int]] = dataclasses.field(default_factory=list)
    ends: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    num_states: int = 0
    _nodes: dict[_Node, int] = dataclasses.field(default_factory=dict)
    _queue: list[tuple[_Node, int]] = dataclasses.field(default_factory=list)
    _followers: dict[int, frozenset[int]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        out: Mapping[int, Sequence[Arc]],
        starts: Iterable[int],
        finals: Container[int],
        topology: Topology,
    ) -> Expansion:
        """Expands the graph with arcs `out` per state from its start states.

        Args:
          out: arcs by source state.
          starts: start states.
          finals: states in which the graph may end.
          topology: the HMMs.

        Raises:
          ValueError: a phone that the topology does not have.
        """
        labels = {arc[0] for arcs in out.values() for arc in arcs}
        check_phones(
            labels - {EPSILON}, topology.num_phones, 'The graph has more phones than its topology'
        )
        expansion = cls(topology, out, finals)
        for start in starts:
            expansion._node(_Node(start, NONE, None, None))
        for node, state in expansion._queue:  # grows while it is walked
            expansion._leave(node, state)
        return expansion

    def _leave(self, node: _Node, state: int) -> None:
        """Adds everything that leaves a node's last HMM state."""
        blank = self.topology.blank
        if node.rights is None or NONE in node.rights:
            self.ends.append((state, node.source))
        if blank is not None and node.pdfs != ():
            # After blank any phone may follow: a blank node has no last phone. Blanks stand before
            # epsilons, never behind them: else a run of n blanks would be n + 1 equal paths.
            after = self._node(_Node(node.source, NONE, None, None))
            self.arcs.append((state, blank, None, 0.0, after))
        for phone, label, weight, dst in self.out.get(node.source, ()):
            if phone == EPSILON:
                after = self._node(_Node(dst, node.phone, (), node.rights))
                self.arcs.append((state, EPSILON, label, weight, after))
            elif node.rights is not None and phone not in node.rights:
                continue
            elif blank is None or phone != node.phone:
                self._enter(state, node.phone, phone, label, weight, dst)

    def _enter(self, state, left, phone, label, weight, dst) -> None:
        """Adds arcs into a phone's first HMM state, and the states where they are new."""
        for pdfs, rights in self._variants(left, phone, dst):
            last = self._node(_Node(dst, phone, pdfs, rights))
            first = last - len(pdfs[0]) + 1
            log_weight = weight + self.topology.leave_logprob
            self.arcs.append((state, pdfs[0][0], label, log_weight, first))

    def _variants(self, left: int, phone: int, dst: int):
        """The phone's pdfs, with the next phones for which they hold (None: whatever follows)."""
        if not self.topology.right_context:
            return [(self.topology.pdfs(left, phone), None)]
        groups: dict[_Pdfs, set[int]] = {}
        for right in sorted(self._following(dst)):
            groups.setdefault(self.topology.pdfs(left, phone, right), set()).add(right)
        return [(pdfs, frozenset(rights)) for pdfs, rights in groups.items()]

    def _following(self, state: int) -> frozenset[int]:
        """Phones that may come next in a graph state, through epsilons; NONE if it may end."""
        if state not in self._followers:
            found, seen, stack = set(), {state}, [state]
            while stack:
                current = stack.pop()
                found |= {NONE} if current in self.finals else set()
                for phone, _, _, dst in self.out.get(current, ()):
                    if phone != EPSILON:
                        found.add(phone)
                    elif dst not in seen:
                        seen.add(dst)
                        stack.append(dst)
            self._followers[state] = frozenset(found)
        return self._followers[state]

    def _node(self, node: _Node) -> int:
        """The node's last state; on first use its states, loops and inner arcs are made."""
        if node in self._nodes:
            return self._nodes[node]
        forward, loop = node.pdfs if node.pdfs else ((0,), ())
        first = self.num_states
        self.num_states += len(forward)
        last = self.num_states - 1
        self._nodes[node] = last
        self._queue.append((node, last))
        for k, pdf in enumerate(loop):
            self.arcs.append((first + k, pdf, None, self.topology.loop_logprob, first + k))
        for k, pdf in enumerate(forward[1:]):
            leave = self.topology.leave_logprob
            self.arcs.append((first + k, pdf, None, leave, first + k + 1))
        return last
