"""`RunRecord`: what a report shows. Plain data; whoever ran the experiment fills it in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Wer:
    """One row of the table of word (or phone) error rates.

    Attributes:
      name: which model on which set, e.g. 'LF-MMI, test'.
      words: words of the references.
      insertions, deletions, substitutions: counts over the set.
      unit: what was counted.
      interval: 95 % interval of the rate, fractions; NaN where it is not known.
    """

    name: str
    words: int
    insertions: int
    deletions: int
    substitutions: int
    unit: str = 'words'
    interval: tuple[float, float] = (math.nan, math.nan)

    @property
    def errors(self) -> int:
        """All errors; may exceed `words`."""
        return self.insertions + self.deletions + self.substitutions

    @property
    def rate(self) -> float:
        """Errors per reference word; NaN for an empty set."""
        return self.errors / self.words if self.words else math.nan


@dataclasses.dataclass(frozen=True)
class Segment:
    """What a replica did from `start_s` to `end_s` (seconds since the run began).

    `kind` is free text: 'compute', 'wait', 'pull', 'push', 'decode', ...
    """

    replica: int
    kind: str
    start_s: float
    end_s: float


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Everything a report shows. Empty fields leave their section out or say that it is empty.

    Attributes:
      title: heads the page.
      config: the resolved configuration, as text.
      scalars: curves by name, 'stage/quantity', each a list of (step, value).
      wer: rows of the table, in order.
      s1: server age (versions) of every push, per replica.
      s2: age of the outer derivatives (versions) of every push, per replica.
      timeline: what each replica did when.
      skipped: (utterance id, reason) of every utterance that was left out.
      pictures: captions and SVG elements of lattices.
      notes: paragraphs, e.g. the command, the seed, the machine.
      summary: more numbers for the head of the page, label to value.
    """

    title: str
    config: str = ''
    scalars: Mapping[str, Sequence[tuple[float, float]]] = dataclasses.field(default_factory=dict)
    wer: Sequence[Wer] = ()
    s1: Mapping[int, Sequence[int] | np.ndarray] = dataclasses.field(default_factory=dict)
    s2: Mapping[int, Sequence[int] | np.ndarray] = dataclasses.field(default_factory=dict)
    timeline: Sequence[Segment] = ()
    skipped: Sequence[tuple[str, str]] = ()
    pictures: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    summary: Mapping[str, str] = dataclasses.field(default_factory=dict)
