"""Float64 references for the numeric core: path enumeration and plain NumPy forward-backward.

They share no code with seqtrain.ops, on purpose. Plain, slow, right.
"""

import dataclasses

import numpy as np
from hypothesis import strategies as st

from seqtrain.fsa import Fsa
from seqtrain.fsa.openfst import with_single_start
from seqtrain.lattices.search import SearchGraph

NEG_INF = -np.inf


@dataclasses.dataclass(frozen=True)
class Path:
    """One path: the arcs it takes and its log-weight (arcs, initial, final, scores)."""

    arcs: tuple[int, ...]
    log_weight: float


def paths(scores: np.ndarray, fsa: Fsa) -> list[Path]:
    """Every path of len(scores) arcs with non-zero weight."""
    found = []

    def walk(t, state, arcs, log_weight):
        if log_weight == NEG_INF:
            return
        if t == len(scores):
            end = log_weight + float(fsa.final[state])
            if end > NEG_INF:
                found.append(Path(tuple(arcs), end))
            return
        for a in np.flatnonzero(fsa.src == state):
            step = float(fsa.weight[a]) + float(scores[t, fsa.pdf[a]])
            walk(t + 1, fsa.dst[a], [*arcs, int(a)], log_weight + step)

    for state in range(fsa.num_states):
        walk(0, state, [], float(fsa.initial[state]))
    return found


def logsumexp(x: np.ndarray, axis=None) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.size == 0:
        return np.float64(NEG_INF)
    top = x.max(axis=axis, keepdims=True)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide='ignore'):
        out = np.log(np.exp(x - safe).sum(axis=axis, keepdims=True)) + safe
    return np.squeeze(out, axis=axis) if axis is not None else out.reshape(())[()]


def enumerate_partition(scores: np.ndarray, fsa: Fsa) -> tuple[float, np.ndarray]:
    """log Z and occupancies [T, P] by listing every path."""
    found = paths(scores, fsa)
    gamma = np.zeros(scores.shape)
    log_z = float(logsumexp([p.log_weight for p in found]))
    for path in found:
        for t, a in enumerate(path.arcs):
            gamma[t, fsa.pdf[a]] += np.exp(path.log_weight - log_z)
    return log_z, gamma


def enumerate_accuracy(
    scores: np.ndarray, fsa: Fsa, accuracy: np.ndarray
) -> tuple[float, np.ndarray]:
    """E[A] and dE[A]/dscores [T, P] by listing every path; A = Σ_t accuracy[t, pdf_t]."""
    found = paths(scores, fsa)
    log_z = logsumexp([p.log_weight for p in found])
    prob = np.exp([p.log_weight - log_z for p in found])
    gain = np.array([sum(accuracy[t, fsa.pdf[a]] for t, a in enumerate(p.arcs)) for p in found])
    mean = float(prob @ gain) if len(found) else 0.0
    gradient = np.zeros(scores.shape)
    for path, weight in zip(found, prob * (gain - mean), strict=True):
        for t, a in enumerate(path.arcs):
            gradient[t, fsa.pdf[a]] += weight
    return mean, gradient


def slope(function, x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences of a float64 function of an array."""
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += step
        down[i] -= step
        gradient[i] = (function(up) - function(down)) / (2 * step)
    return gradient


def forward_backward(scores: np.ndarray, fsa: Fsa, leaky: float = 0.0) -> tuple[float, np.ndarray]:
    """log Z and occupancies [T, P] in float64 logarithms, one arc at a time.

    The leak follows Kaldi: at every frame boundary, the last included,
    α(i) += leaky · initial(i) · Σ_j α(j).
    """
    scores = np.asarray(scores, np.float64)
    weight, initial, final = (
        np.asarray(x, np.float64) for x in (fsa.weight, fsa.initial, fsa.final)
    )
    frames = len(scores)
    alpha = np.full((frames + 1, fsa.num_states), NEG_INF)
    beta = np.full((frames + 1, fsa.num_states), NEG_INF)
    log_leak = np.log(leaky) if leaky else NEG_INF

    def leak_on(a):
        return np.logaddexp(a, log_leak + initial + logsumexp(a))

    def leak_back(b):
        return np.logaddexp(b, log_leak + logsumexp(initial + b))

    alpha[0] = leak_on(initial)
    for t in range(frames):
        for s, d, p, w in zip(fsa.src, fsa.dst, fsa.pdf, weight, strict=True):
            alpha[t + 1, d] = np.logaddexp(alpha[t + 1, d], alpha[t, s] + w + scores[t, p])
        alpha[t + 1] = leak_on(alpha[t + 1])
    beta[frames] = leak_back(final)
    for t in reversed(range(frames)):
        for s, d, p, w in zip(fsa.src, fsa.dst, fsa.pdf, weight, strict=True):
            beta[t, s] = np.logaddexp(beta[t, s], beta[t + 1, d] + w + scores[t, p])
        beta[t] = leak_back(beta[t])
    log_z = float(logsumexp(alpha[frames] + final))
    gamma = np.zeros(scores.shape)
    if np.isfinite(log_z):
        for t in range(frames):
            for s, d, p, w in zip(fsa.src, fsa.dst, fsa.pdf, weight, strict=True):
                gamma[t, p] += np.exp(alpha[t, s] + w + scores[t, p] + beta[t + 1, d] - log_z)
    return log_z, gamma


def best_path(scores: np.ndarray, fsa: Fsa) -> tuple[float, list[list[int]]]:
    """The best log-weight, and the pdf labels of all paths that reach it (within 1e-4)."""
    found = paths(scores, fsa)
    if not found:
        return NEG_INF, []
    best = max(p.log_weight for p in found)
    near = [p for p in found if p.log_weight > best - 1e-4]
    return best, [[int(fsa.pdf[a]) for a in p.arcs] for p in near]


def best_score(scores: np.ndarray, fsa: Fsa) -> float:
    """The best log-weight by recursion, for utterances too long to enumerate."""
    best = np.asarray(fsa.initial, np.float64)
    for frame in scores:
        reach = best[fsa.src] + fsa.weight + frame[fsa.pdf]
        best = np.full(fsa.num_states, NEG_INF)
        np.maximum.at(best, fsa.dst, reach)
    return float((best + fsa.final).max())


def search_graph(fsa: Fsa) -> SearchGraph:
    """An acceptor over pdfs, such as a lattice-free denominator, to search; no words.

    Parallel arcs of one pdf become one with the log-sum of their weights.
    """
    fsa, start = with_single_start(fsa)
    ends = np.stack([fsa.src, fsa.dst, fsa.pdf], axis=1)
    arcs, place = np.unique(ends, axis=0, return_inverse=True)
    weight = np.full(len(arcs), NEG_INF)
    np.logaddexp.at(weight, place.reshape(-1), fsa.weight)
    rows = np.column_stack([arcs, np.zeros(len(arcs)), weight])
    return SearchGraph.from_arcs(rows, fsa.final, start, ('<eps>',), fsa.num_pdfs)


def random_fsa(rng: np.random.Generator, num_states: int, num_arcs: int, num_pdfs: int) -> Fsa:
    """Cycles, parallel arcs, dead ends, unreachable states, several initial and final states."""
    initial = np.where(rng.random(num_states) < 0.4, rng.normal(size=num_states), NEG_INF)
    final = np.where(rng.random(num_states) < 0.5, rng.normal(size=num_states), NEG_INF)
    initial[rng.integers(num_states)] = 0.1
    final[rng.integers(num_states)] = -0.2
    return Fsa(
        src=rng.integers(num_states, size=num_arcs),
        dst=rng.integers(num_states, size=num_arcs),
        pdf=rng.integers(num_pdfs, size=num_arcs),
        weight=rng.normal(size=num_arcs),
        initial=initial,
        final=final,
    )


def hmm_fsa(rng: np.random.Generator, num_states: int, num_arcs: int, num_pdfs: int) -> Fsa:
    """Like `random_fsa`, but every state is entered through one pdf, as in HMM graphs."""
    fsa = random_fsa(rng, num_states, num_arcs, num_pdfs)
    entered = rng.integers(num_pdfs, size=num_states)
    return dataclasses.replace(fsa, pdf=entered[fsa.dst])


def mixed_fsa(rng: np.random.Generator, num_states: int, num_arcs: int, num_pdfs: int) -> Fsa:
    """Like `hmm_fsa`, but every fourth state is entered through two pdfs."""
    fsa = hmm_fsa(rng, num_states, num_arcs, num_pdfs)
    other = (fsa.dst % 4 == 0) & (fsa.src % 2 == 0)
    return dataclasses.replace(fsa, pdf=np.where(other, (fsa.pdf + 1) % num_pdfs, fsa.pdf))


def awkward_fsa(rng: np.random.Generator) -> Fsa:
    """A cycle, parallel arcs (one pdf or two), self loops, two initial and two final states, a dead
    end (3) and a state that nothing reaches (4), in 5 states, 10 arcs and 3 pdfs."""
    weights = rng.normal(size=14)
    return Fsa(
        src=[0, 0, 0, 0, 1, 2, 2, 2, 4, 4],
        dst=[0, 1, 1, 1, 2, 1, 2, 3, 0, 4],
        pdf=[0, 1, 1, 2, 0, 1, 2, 0, 1, 0],
        weight=weights[:10],
        initial=[weights[10], weights[11], NEG_INF, NEG_INF, NEG_INF],
        final=[NEG_INF, weights[12], weights[13], NEG_INF, 0.3],
    )


def lattice_fsa(rng: np.random.Generator, frames: int, num_pdfs: int, width: int = 3) -> Fsa:
    """States stand between two frames, one before the first, `width` after every other; every state
    has two arcs out, so some are dead ends or unreachable; several final states."""
    src, dst = [], []
    for t in range(frames):
        here = [0] if t == 0 else range(1 + (t - 1) * width, 1 + t * width)
        for state in here:
            src += [state, state]
            dst += list(1 + t * width + rng.integers(width, size=2))
    num_states = 1 + frames * width
    initial = np.where(np.arange(num_states) == 0, 0.2, NEG_INF)
    final = np.where(np.arange(num_states) >= num_states - width, 0.0, NEG_INF)
    final[-width:] = rng.normal(size=width)
    pdf = rng.integers(num_pdfs, size=len(src))
    return Fsa(src, dst, pdf, rng.normal(size=len(src)), initial, final)


@st.composite
def fsas(draw, max_states: int = 5, max_arcs: int = 12, num_pdfs: int = 3) -> Fsa:
    """Small random acceptors, of either kind."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    make = draw(st.sampled_from([random_fsa, hmm_fsa]))
    states = draw(st.integers(1, max_states))
    return make(rng, states, draw(st.integers(1, max_arcs)), num_pdfs)


def check(log_z, gamma, scores, lengths, fsas, leaky=0.0, reference=forward_backward):
    """Every utterance within 1e-5: relative in value, absolute in occupancy."""
    for b, fsa in enumerate(fsas):
        n = lengths[b]
        args = (leaky,) if reference is forward_backward else ()
        want_z, want_gamma = reference(scores[b, :n], fsa, *args)
        if np.isfinite(want_z):
            assert abs(log_z[b] - want_z) <= 1e-5 * max(1.0, abs(want_z))
        else:
            assert log_z[b] == want_z
        np.testing.assert_allclose(gamma[b, :n], want_gamma, atol=1e-5)
        assert not np.any(gamma[b, n:])
