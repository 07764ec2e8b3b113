"""Frame alignments: a pdf per frame, from a uniform split or a Viterbi path, and their phones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from seqtrain.graphs.topology import NONE, Topology, check_phones


@dataclasses.dataclass(frozen=True)
class Segment:
    """A phone's stretch of frames: `start` is its first frame, `frames` its length."""

    phone: int
    start: int
    frames: int


def uniform_alignment(phones: Sequence[int], topology: Topology, num_frames: int) -> np.ndarray:
    """Gives every HMM state of a phone sequence the same number of frames, within one.

    Args:
      phones: phone ids, silences included.
      topology: the HMMs; in CTC a blank is put between equal phones.
      num_frames: frames to fill.

    Returns:
      i32[num_frames]: pdfs, as labels for a frame-level cross-entropy.

    Raises:
      ValueError: no phones, one that the topology does not have, or fewer frames than HMM states;
        says how many are missing.
    """
    check_phones(phones, topology.num_phones, 'The sequence')
    units: list[tuple[int, int]] = []  # (forward pdf, loop pdf) per state
    context = [NONE, *phones, NONE]
    for left, phone, right in zip(context, phones, context[2:], strict=False):
        if topology.blank is not None and phone == left:
            units.append((topology.blank, topology.blank))
        units.extend(zip(*topology.pdfs(left, phone, right), strict=True))
    if not units:
        raise ValueError('No phones to align.')
    if num_frames < len(units):
        raise ValueError(
            f'{num_frames} frames for {len(units)} HMM states: '
            f'{len(units) - num_frames} frames too short.'
        )
    bounds = [i * num_frames // len(units) for i in range(len(units) + 1)]
    result = np.empty(num_frames, np.int32)
    for (forward, loop), start, end in zip(units, bounds[:-1], bounds[1:], strict=True):
        result[start] = forward
        result[start + 1 : end] = loop
    return result


def segments(pdfs: Sequence[int] | np.ndarray, topology: Topology) -> list[Segment]:
    """Phones of a frame alignment.

    A phone begins where its first state's forward pdf stands (unless that is also its loop pdf) or
    where the phone changes or its states start over. Two equal phones in a row cannot be told
    apart in the 'hmm1' topology and count as one. CTC blanks belong to no segment.

    Args:
      pdfs: i32[T], ends at the first negative entry (padding).
      topology: the HMMs.

    Raises:
      ValueError: a pdf that the topology does not have; names the frame.
    """
    slots = topology.slots()
    result: list[Segment] = []
    before: tuple[int, int] | None = None
    for frame, pdf in enumerate(np.asarray(pdfs).tolist()):
        if pdf < 0:
            break
        if pdf == topology.blank:
            before = None
            continue
        if pdf not in slots:
            raise ValueError(
                f'Frame {frame} has pdf {pdf}, but {topology.kind} with {topology.num_phones} '
                f'phones has pdfs 0..{topology.num_pdfs - 1}.'
            )
        phone, state, first = slots[pdf]
        if before is None or (first and state == 0) or phone != before[0] or state < before[1]:
            result.append(Segment(phone, frame, 0))
        last = result[-1]
        result[-1] = dataclasses.replace(last, frames=last.frames + 1)
        before = (phone, state)
    return result
