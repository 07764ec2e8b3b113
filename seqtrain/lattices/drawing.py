"""A lattice's words as an SVG picture, without any drawing program. For reports and notebooks."""

from __future__ import annotations

import html

import numpy as np

from seqtrain import extras
from seqtrain.lattices.lattice import Lattice
from seqtrain.lattices.operations import prune
from seqtrain.lattices.tools import word_fst

_LEAST_BEAM, _WIDER = 1e-3, 1.5
_MOST_ARCS = 1000
_STEP_X, _STEP_Y, _RADIUS, _MARGIN = 110, 80, 9, 30


def to_svg(lattice: Lattice, *, beam: float = 5.0, max_states: int = 60) -> str:
    """Draws the word lattice of the paths within `beam` of the best one.

    The pdfs are dropped and the word sequences determinised and minimised, so that a state is a
    choice of words. A thicker arc has a better best path; the best path is drawn in colour.

    Args:
      lattice: any lattice.
      beam: natural log, below the best path.
      max_states: a narrower beam is taken if the picture would have more states.

    Returns:
      An `<svg>` element.
    """
    narrow = min(beam, _LEAST_BEAM)
    drawn = _word_arcs(prune(lattice, narrow))
    # From narrow to wide: determinising a lattice whose paths differ in time alone can take as many
    # steps as it has paths, so a wide one is not tried before a narrower one was small.
    while narrow < beam:
        narrow = min(beam, _WIDER * narrow)
        kept = prune(lattice, narrow)
        if kept.num_arcs > _MOST_ARCS:
            break
        wider = _word_arcs(kept)
        if len(wider[1]) > max_states:
            break
        drawn = wider
    return _draw(*drawn, lattice.words)


def _word_arcs(lattice: Lattice) -> tuple[list[tuple[int, int, int, float]], list[float]]:
    """Arcs (src, dst, word, cost) of the minimal word acceptor, state 0 first; final costs."""
    kaldifst = extras.load('kaldifst')

    fst = word_fst(lattice)
    kaldifst.minimize(fst)
    arcs = [
        (state, arc.nextstate, arc.ilabel, arc.weight.value)
        for state in range(fst.num_states)
        for arc in kaldifst.ArcIterator(fst, state)
    ]
    return arcs, [fst.final(state).value for state in range(fst.num_states)]


def _draw(arcs, finals: list[float], words) -> str:
    through = _through(arcs, finals)
    places = _places(arcs, len(finals))
    lines = []
    drawn: dict[tuple[int, int], int] = {}
    for (src, dst, word, _), cost in sorted(
        zip(arcs, through, strict=True), key=lambda entry: entry[1]
    ):
        beside = drawn.get((src, dst), 0)  # arcs that share both ends are drawn side by side
        drawn[src, dst] = beside + 1
        lines.append(_arc(places[src], places[dst], words[word], cost, beside))
    for state, (x, y) in enumerate(places):
        inner = f'<circle cx="{x}" cy="{y}" r="{_RADIUS - 3}" fill="none" stroke="#222"/>'
        lines.append(
            f'<circle cx="{x}" cy="{y}" r="{_RADIUS}" fill="#fff" stroke="#222"/>'
            + (inner if np.isfinite(finals[state]) else '')
        )
    width = max(x for x, _ in places) + _MARGIN
    height = max(y for _, y in places) + _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="12">'
        + ''.join(lines)
        + '</svg>'
    )


def _arc(start: tuple[int, int], end: tuple[int, int], word: str, cost: float, beside: int) -> str:
    (x1, y1), (x2, y2) = start, end
    width = max(0.6, 4.0 - 0.6 * cost)
    colour = '#b3380f' if cost < 1e-3 else '#55606b'
    over_others = y1 == y2 and x2 - x1 > _STEP_X
    bend = -22 * (beside + over_others)  # how far the middle of the curve is lifted
    x, y = (x1 + x2) / 2, (y1 + y2) / 2 + bend
    return (
        f'<path d="M{x1} {y1} Q{x:g} {y + bend:g} {x2} {y2}" fill="none" stroke="{colour}" '
        f'stroke-width="{width:.1f}"/>'
        f'<text x="{x:g}" y="{y - 5:g}" text-anchor="middle" fill="{colour}" stroke="#fff" '
        f'stroke-width="3" paint-order="stroke">'
        f'{html.escape(word)}</text>'
    )


def _through(arcs, finals: list[float]) -> list[float]:
    """Cost of the best path through each arc, above that of the best path of all."""
    depth = _depths(arcs, len(finals))
    order = sorted(range(len(arcs)), key=lambda index: depth[arcs[index][0]])
    alpha = [np.inf] * len(finals)
    alpha[0], beta = 0.0, list(finals)
    for index in order:
        src, dst, _, cost = arcs[index]
        alpha[dst] = min(alpha[dst], alpha[src] + cost)
    for index in reversed(order):
        src, dst, _, cost = arcs[index]
        beta[src] = min(beta[src], cost + beta[dst])
    return [alpha[src] + cost + beta[dst] - beta[0] for src, dst, _, cost in arcs]


def _depths(arcs, num_states: int) -> list[int]:
    """Longest way from the start, in words."""
    depth = [0] * num_states
    changed = True
    while changed:  # acyclic: at most as many rounds as the longest path has arcs
        changed = False
        for src, dst, _, _ in arcs:
            if depth[dst] < depth[src] + 1:
                depth[dst] = depth[src] + 1
                changed = True
    return depth


def _places(arcs, num_states: int) -> list[tuple[int, int]]:
    depth = _depths(arcs, num_states)
    seen: dict[int, int] = {}
    places = []
    for state in range(num_states):
        row = seen.get(depth[state], 0)
        seen[depth[state]] = row + 1
        places.append((_MARGIN + depth[state] * _STEP_X, 4 * _MARGIN + row * _STEP_Y))
    return places
