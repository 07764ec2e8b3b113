"""`Topology`: what a phone is made of in frames: its HMM states, their pdfs and transitions.

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
from collections.abc import Iterable
from typing import Any

import numpy as np

NONE = -1
"""In place of a neighbouring phone: the utterance begins or ends here."""


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
    def make(cls, kind: str, num_phones: int, *, loop_probability: float | None = None) -> Topology:
        """Context-independent topology of `num_phones` phones; see the table above.

        Args:
          kind: 'chain', 'hmm1', 'hmm3' or 'ctc'.
          num_phones: phones, silence included.
          loop_probability: of staying in a state, if not the table's; of no meaning for CTC.

        Raises:
          ValueError: an unknown kind, no phones, or a probability that is not between 0 and 1.
        """
        if num_phones < 1:
            raise ValueError(f'num_phones={num_phones}; a topology has one phone at least.')
        topology = cls._by_table(kind, num_phones)
        if loop_probability is None:
            return topology
        if kind == 'ctc' or not 0.0 < loop_probability < 1.0:
            raise ValueError(
                f'loop_probability={loop_probability} for {kind!r}: give 0 < p < 1, none for ctc.'
            )
        return dataclasses.replace(
            topology,
            loop_logprob=math.log(loop_probability),
            leave_logprob=math.log1p(-loop_probability),
        )

    @classmethod
    def _by_table(cls, kind: str, num_phones: int) -> Topology:
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

    @property
    def right_context(self) -> bool:
        """Whether pdfs depend on the next phone."""
        return False

    def pdfs(
        self, left: int, phone: int, right: int = NONE
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Forward and loop pdfs of a phone's states between two neighbours (NONE at the ends)."""
        del left, right  # context-independent
        return self.forward[phone], self.loop[phone]

    def slots(self) -> dict[int, tuple[int, int, bool]]:
        """By pdf: its phone, its HMM state, and whether it only ever begins that state."""
        result = {}
        for phone in range(self.num_phones):
            for state in range(self.num_states):
                forward, loop = self.forward[phone][state], self.loop[phone][state]
                result[loop] = (phone, state, False)
                result[forward] = (phone, state, forward != loop)
        return result

    def phone_of_pdf(self) -> np.ndarray:
        """i32[num_pdfs]: the phone a pdf belongs to, −1 for blank."""
        result = np.full(self.num_pdfs, -1, np.int32)
        for pdf, (phone, _, _) in self.slots().items():
            result[pdf] = phone
        return result

    def state_of_pdf(self) -> np.ndarray:
        """i32[num_pdfs]: a number for the phone and HMM state of a pdf, −1 for blank."""
        result = np.full(self.num_pdfs, -1, np.int32)
        for pdf, (phone, state, _) in self.slots().items():
            result[pdf] = phone * self.num_states + state
        return result

    def content(self) -> tuple[Any, ...]:
        """Everything that makes two topologies differ, to be hashed by its `repr`."""
        return dataclasses.astuple(self)


def check_phones(phones: Iterable[int], num_phones: int, where: str) -> None:
    """Raises ValueError, beginning with `where`, if a phone id is not one of 0..num_phones−1."""
    if bad := sorted({int(phone) for phone in phones if not 0 <= phone < num_phones}):
        raise ValueError(f'{where}: phone {bad[0]}, but phone ids are 0..{num_phones - 1}.')
