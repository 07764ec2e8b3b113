"""`Lattice`: the paths that a search kept for one utterance, frame by frame.

States stand between frames (`time`), arcs carry a pdf (one frame) or none (epsilon), a word or
none, a graph weight and an acoustic weight, all natural logs. Acyclic; states are in topological
order.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from seqtrain.fsa.fsa import Fsa
from seqtrain.lattices.acceptor import to_fsa

EPSILON = -1


class LatticeError(ValueError):
    """A malformed or unsuitable lattice; the message says where and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Lattice:
    """A state-level lattice.

    Attributes:
      time: i32[S], frames before each state, ascending; state 0 is the start, at time 0.
      src, dst: i32[A], src < dst; arcs sorted by src.
      pdf: i32[A], pdf consumed by the arc (its frame is time[src]), −1 for epsilon.
      word: i32[A], index into `words`, 0 for none.
      graph: f32[A], graph log-weight (language model, pronunciation, HMM).
      acoustic: f32[A], acoustic log-weight, not scaled.
      final: f32[S], final log-weight, −inf in all states but those that end the utterance.
      words: word names; words[0] is '<eps>'.
      acoustic_scale: what multiplies `acoustic` in a path's weight.
      graph_state: i32[S], the search graph's state behind each state; empty where not known.
    """

    time: np.ndarray
    src: np.ndarray
    dst: np.ndarray
    pdf: np.ndarray
    word: np.ndarray
    graph: np.ndarray
    acoustic: np.ndarray
    final: np.ndarray
    words: tuple[str, ...]
    acoustic_scale: float = 1.0
    graph_state: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))

    def __post_init__(self):
        for name in ('time', 'src', 'dst', 'pdf', 'word', 'graph_state'):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.int32))
        for name in ('graph', 'acoustic', 'final'):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float32))

    @property
    def num_states(self) -> int:
        return len(self.time)

    @property
    def num_arcs(self) -> int:
        return len(self.src)

    @property
    def num_frames(self) -> int:
        return int(self.time.max())

    @property
    def weight(self) -> np.ndarray:
        """f32[A]: an arc's whole log-weight, graph plus scaled acoustic."""
        return self.graph + np.float32(self.acoustic_scale) * self.acoustic

    def depth(self) -> float:
        """Mean number of arcs that carry a pdf, per frame."""
        return float((self.pdf >= 0).sum() / max(1, self.num_frames))

    def depths(self) -> np.ndarray:
        """i64[S]: arcs on the longest epsilon path that ends in each state."""
        depth = np.zeros(self.num_states, np.int64)
        epsilon = np.flatnonzero(self.time[self.src] == self.time[self.dst])
        src, dst = self.src[epsilon], self.dst[epsilon]
        for _ in range(self.num_states + 1):
            deeper = np.zeros_like(depth)
            np.maximum.at(deeper, dst, depth[src] + 1)
            if (deeper <= depth).all():
                return depth
            depth = np.maximum(depth, deeper)
        raise LatticeError('The lattice has a cycle of epsilon arcs.')

    @functools.cached_property
    def layers(self) -> list[np.ndarray]:
        """Arc indices in groups that can be worked at once: none leads to its own group's sources.

        In topological order, by time and epsilon depth of the source.
        """
        depth = self.depths()
        layer = (self.time.astype(np.int64) * (int(depth.max()) + 1) + depth)[self.src]
        order = np.argsort(layer, kind='stable')
        return np.split(order, np.flatnonzero(np.diff(layer[order])) + 1)

    def validate(self, num_pdfs: int | None = None) -> Lattice:
        """Checks order, times and labels; returns self.

        Args:
          num_pdfs: outputs of the model that will use the lattice.

        Raises:
          LatticeError: names the first arc or state that is wrong.
        """
        if not self.num_arcs:
            raise LatticeError('The lattice has no arcs; count the utterance and leave it out.')
        self._check_lengths()
        checks = {
            'comes before an arc of a smaller src; sort the arcs by src': np.append(
                np.diff(self.src) < 0, False
            ),
            'leaves no state': self.src < 0,
            'does not lead forwards (states in topological order?)': self.src >= self.dst,
            'leads to no state': self.dst >= self.num_states,
            'has a word that is not in the table': (self.word < 0) | (self.word >= len(self.words)),
            'has a pdf below -1': self.pdf < EPSILON,
            'has a weight that is NaN or +inf': ~((self.graph < np.inf) & (self.acoustic < np.inf)),
        }
        if num_pdfs is not None:
            checks[f'has a pdf beyond the model ({num_pdfs} pdfs): a lattice of another model'] = (
                self.pdf >= num_pdfs
            )
        for message, wrong in checks.items():
            if wrong.any():
                raise LatticeError(f'Arc {np.flatnonzero(wrong)[0]} {message}.')
        if self.time[0] or (np.diff(self.time) < 0).any():
            raise LatticeError('Times must begin at 0 and ascend; sort the states by time.')
        moved = self.time[self.dst] - self.time[self.src]
        if (bad := np.flatnonzero(moved != (self.pdf >= 0))).size:
            raise LatticeError(f'Arc {bad[0]} takes {moved[bad[0]]} frames; a pdf takes one.')
        if (bad := np.flatnonzero(~(self.final < np.inf))).size:
            raise LatticeError(f'State {bad[0]} has a final weight that is NaN or +inf.')
        if not np.isfinite(self.final).any():
            raise LatticeError('No final state: no path ends in the lattice.')
        if np.unique(self.time[np.isfinite(self.final)]).size > 1:
            raise LatticeError('Final states at different times; all paths have the same frames.')
        return self

    def _check_lengths(self) -> None:
        columns = ('src', 'dst', 'pdf', 'word', 'graph', 'acoustic')
        if len({len(getattr(self, name)) for name in columns}) > 1:
            raise LatticeError(f'{", ".join(columns)} must have one entry per arc.')
        known = len(self.graph_state) or self.num_states
        if not len(self.final) == known == self.num_states:
            raise LatticeError(
                'time and final must have one entry per state; so must graph_state, or be empty.'
            )

    def rescore(self, log_likelihoods: np.ndarray) -> Lattice:
        """The same paths with acoustic weights from another f[T, P] matrix.

        Raises:
          LatticeError: the matrix has another number of frames, or too few pdfs.
        """
        scores = np.asarray(log_likelihoods, np.float32)
        self.validate(scores.shape[1])
        if len(scores) != self.num_frames:
            raise LatticeError(
                f'{len(scores)} frames of scores for a lattice of {self.num_frames} frames.'
            )
        emitting = self.pdf >= 0
        acoustic = np.zeros_like(self.acoustic)
        acoustic[emitting] = scores[self.time[self.src[emitting]], self.pdf[emitting]]
        return dataclasses.replace(self, acoustic=acoustic)

    def select(self, keep: np.ndarray) -> Lattice:
        """The lattice of the arcs in the mask bool[A], without states that end nowhere.

        Raises:
          LatticeError: no whole path is left.
        """
        forward = np.zeros(self.num_states, bool)
        forward[0] = True
        useful = np.isfinite(self.final)
        layers = [arcs[keep[arcs]] for arcs in self.layers]
        for arcs in layers:
            forward[self.dst[arcs[forward[self.src[arcs]]]]] = True
        for arcs in reversed(layers):
            useful[self.src[arcs[useful[self.dst[arcs]]]]] = True
        states = forward & useful
        if not states[0]:
            raise LatticeError('No path of the lattice is left.')
        number = np.cumsum(states) - 1
        left = np.flatnonzero(keep & states[self.src] & states[self.dst])
        return dataclasses.replace(
            self,
            time=self.time[states],
            final=self.final[states],
            graph_state=self.graph_state[states] if len(self.graph_state) else self.graph_state,
            src=number[self.src[left]],
            dst=number[self.dst[left]],
            **{n: getattr(self, n)[left] for n in ('pdf', 'word', 'graph', 'acoustic')},
        )

    def to_fsa(self, *, acoustic: bool = False) -> Fsa:
        """The lattice as an epsilon-free acceptor over pdfs, for `ops.pack_batch`.

        Epsilons are removed exactly (log semiring): an arc leads straight to every state that its
        destination reaches by epsilons. Words are dropped.

        Args:
          acoustic: put the scaled acoustic weights on the arcs too. By default they carry the
            graph's weights alone, and the device adds its own scores.
        """
        fsa = to_fsa(self, self.weight if acoustic else self.graph)
        if fsa is None:
            raise LatticeError('No path of the lattice consumes frames.')
        return fsa
