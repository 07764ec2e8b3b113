"""Known answers for every backend present: closed forms, listed paths, an independent float64 sum.

    python -m seqtrain.ops.selfcheck        # wherever seqtrain is installed

A check is a function of a backend that returns its largest error; it passes if that is at most the
limit. `launch/selfcheck.py` is the same with a real graph.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse import csr_matrix

from seqtrain.fsa import Fsa
from seqtrain.ops import cpu
from seqtrain.ops.dispatch import backends
from seqtrain.ops.expectation import expected_accuracy
from seqtrain.ops.forward_backward import occupancies
from seqtrain.ops.graph import pack, pack_batch
from seqtrain.ops.viterbi import viterbi

PDFS = 5
FRAMES = 8
BATCH = 3


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the table."""

    check: str
    backend: str
    error: float
    limit: float

    @property
    def ok(self) -> bool:
        return bool(self.error <= self.limit)  # a NaN is not ok


def run(graph: Fsa | None = None) -> Iterator[Result]:
    """Runs every check on every backend present; 'gpu' runs interpreted where there is no GPU.

    Args:
      graph: a real denominator to check against an independent float64 recursion; None skips it,
        and so does a backend that is only interpreted here.

    Yields:
      A `Result` per check and backend; a check that raises has error inf.
    """
    checks: dict[str, tuple[Callable[[str], float], float]] = {
        'free loop: Σ log-sum-exp, softmax occupancies': (_free_loop, 1e-5),
        'leaky HMM: (T + 1) log(1 + leaky)': (_leaky, 1e-5),
        'random graphs: listed paths, value and occupancies': (_listed, 1e-5),
        'underflow: two paths that cross at e^-2000': (_underflow, 1e-5),
        'underflow: a path that both directions lose': (_twice_lost, 1e-5),
        'bad utterances: -inf, NaN, and the others untouched': (_bad_ones, 1e-6),
        'expected accuracy: closed form': (_expectation, 1e-5),
        'best path: listed paths': (_best_path, 1e-5),
    }
    for (name, check), backend in itertools.product(checks.items(), backends(interpreted=True)):
        yield _result(name, backend, *check)
    if graph is not None:
        for backend in backends():
            name = 'real denominator: float64 forward pass'
            yield _result(name, backend, lambda b: _real(graph, b), 1e-5)


def report(graph: Fsa | None = None) -> int:
    """Prints what can run here and a line for every check.

    Args:
      graph: as in `run`.

    Returns:
      How many checks failed.
    """
    native = f'cpu ({cpu.instructions()})' if cpu.available() else 'no C++ core'
    print(f'Backends: {", ".join(backends())}; {native}')
    if 'gpu' not in backends() and 'gpu' in backends(interpreted=True):
        print('No GPU here: the kernels of the gpu backend are checked interpreted.')
    failed = 0
    for result in run(graph):
        failed += not result.ok
        print(
            f'{"ok" if result.ok else "FAILED":7s}{result.backend:5s}'
            f'{result.error:9.1e} <= {result.limit:.0e}  {result.check}',
            flush=True,
        )
    print('All checks passed.' if not failed else f'{failed} checks FAILED.')
    return failed


def _result(name: str, backend: str, check: Callable[[str], float], limit: float) -> Result:
    try:
        error = float(check(backend))
    except Exception as problem:  # a check that breaks is a line in the table, not the end
        name, error = f'{name} ({type(problem).__name__}: {problem})', float('inf')
    return Result(name, backend, error, limit)


def _fsa(*columns) -> Fsa:
    """src, dst, pdf, weight, initial, final as any sequences."""
    return Fsa(*map(np.asarray, columns))


def _scores(batch: int, scale: float = 1.0):
    rng = np.random.default_rng(0)
    return (scale * rng.normal(size=(batch, FRAMES, PDFS))).astype(np.float32)


def _loop() -> Fsa:
    zeros = np.zeros(PDFS)
    return _fsa(zeros, zeros, range(PDFS), zeros, [0.0], [0.0])


def _occupancies(scores, lengths, fsas: list[Fsa], backend: str):
    """On one graph per utterance; always of one size, because compiling takes the time."""
    graphs = pack_batch(fsas, num_states=4, num_arcs=10)
    lengths = jnp.asarray(lengths, jnp.int32)
    return occupancies(jnp.asarray(scores), lengths, graphs, backend=backend)


def _gap(got, want) -> float:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.max(np.abs(got - want) / np.maximum(1.0, np.abs(want))))


def _free_loop(backend: str) -> float:
    scores, lengths = _scores(BATCH), np.array([FRAMES, 4, 0])
    log_z, gamma = _occupancies(scores, lengths, [_loop()] * BATCH, backend)
    valid = np.arange(FRAMES) < lengths[:, None]
    total = np.log(np.exp(scores.astype(np.float64)).sum(-1))
    softmax = np.exp(scores - total[:, :, None]) * valid[:, :, None]
    return max(_gap(log_z, (total * valid).sum(1)), _gap(gamma, softmax))


def _leaky(backend: str) -> float:
    fsa = _fsa([0], [0], [0], [0.0], [0.0], [0.0])
    scores, lengths = np.zeros((2, FRAMES, PDFS), np.float32), jnp.array([FRAMES, 2], jnp.int32)
    log_z, _ = occupancies(jnp.asarray(scores), lengths, pack(fsa), leaky=0.1, backend=backend)
    return _gap(log_z, (np.asarray(lengths) + 1) * np.log1p(0.1))


def _random_fsas(count: int) -> list[Fsa]:
    rng = np.random.default_rng(1)
    return [
        _fsa(
            rng.integers(3, size=8),
            rng.integers(3, size=8),
            rng.integers(PDFS, size=8),
            rng.normal(size=8),
            rng.normal(size=3),
            rng.normal(size=3),
        )
        for _ in range(count)
    ]


def _paths(fsa: Fsa, scores: np.ndarray) -> list[tuple[float, tuple[int, ...]]]:
    """Log-weight and arcs of every path of len(scores) arcs, by trying all sequences of arcs."""
    found = []
    for arcs in itertools.product(range(fsa.num_arcs), repeat=len(scores)):
        if any(fsa.dst[a] != fsa.src[b] for a, b in itertools.pairwise(arcs)):
            continue
        weight = float(fsa.initial[fsa.src[arcs[0]]]) + float(fsa.final[fsa.dst[arcs[-1]]])
        weight += sum(
            float(fsa.weight[a]) + float(s[fsa.pdf[a]]) for a, s in zip(arcs, scores, strict=True)
        )
        found.append((weight, arcs))
    return found


def _listed(backend: str) -> float:
    fsas, frames = _random_fsas(BATCH), 4
    scores = _scores(BATCH)
    log_z, gamma = _occupancies(scores, [frames] * BATCH, fsas, backend)
    error = 0.0
    for b, fsa in enumerate(fsas):
        found = _paths(fsa, scores[b, :frames])
        total = np.logaddexp.reduce([w for w, _ in found])
        want = np.zeros((frames, PDFS))
        for weight, arcs in found:
            want[np.arange(frames), fsa.pdf[list(arcs)]] += np.exp(weight - total)
        error = max(error, _gap(log_z[b], total), _gap(gamma[b, :frames], want))
    return error


def _underflow(backend: str) -> float:
    both = _fsa([0, 1], [0, 1], [0, 1], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    half = np.array([[0.0, -500.0]] * 4)
    scores = np.zeros((BATCH, FRAMES, PDFS), np.float32)
    scores[:, :, :2] = np.concatenate([half, half[:, ::-1]])
    log_z, gamma = _occupancies(scores, [FRAMES] * BATCH, [both] * BATCH, backend)
    return max(_gap(log_z, np.log(2) - 2000), _gap(gamma[:, :, :2], 0.5))


def _twice_lost(backend: str) -> float:
    both = _fsa([0, 1], [0, 1], [0, 1], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    scores = np.zeros((BATCH, FRAMES, PDFS), np.float32)
    scores[:, :, 0] = 60.0 * np.repeat([-1, 1, -1], [FRAMES // 4, FRAMES // 2, FRAMES // 4])
    log_z, gamma = _occupancies(scores, [FRAMES] * BATCH, [both] * BATCH, backend)
    return max(_gap(log_z, np.log(2)), _gap(gamma[:, :, :2], 0.5))


def _bad_ones(backend: str) -> float:
    chain = _fsa([0, 1], [1, 2], [0, 1], [0, 0], [0, -np.inf, -np.inf], [-np.inf, -np.inf, 0])
    scores, lengths = _scores(BATCH), [1, FRAMES, FRAMES]
    fsas = [chain, _loop(), _loop()]
    clean = _occupancies(scores, lengths, fsas, backend)[1]
    scores[1, 2, 0] = np.nan
    log_z, gamma = _occupancies(scores, lengths, fsas, backend)
    as_they_should = log_z[0] == -np.inf and np.isnan(log_z[1]) and not np.any(gamma[:2])
    return _gap(gamma[2], clean[2]) if as_they_should else float('inf')


def _expectation(backend: str) -> float:
    scores, accuracy = _scores(2), _scores(2)[:, ::-1].copy()
    lengths = jnp.full(2, FRAMES, jnp.int32)

    graph = pack(_loop())

    def total(s):
        value, _ = expected_accuracy(s, lengths, graph, jnp.asarray(accuracy), backend=backend)
        return value.sum()

    value, gradient = jax.value_and_grad(total)(jnp.asarray(scores))
    prob = np.exp(scores.astype(np.float64))
    prob /= prob.sum(-1, keepdims=True)
    mean = (prob * accuracy).sum(-1, keepdims=True)
    return max(_gap(value, mean.sum()), _gap(gradient, prob * (accuracy - mean)))


def _best_path(backend: str) -> float:
    fsa, frames = _random_fsas(1)[0], 4
    scores = _scores(1)[:, :frames]
    lengths = jnp.array([frames], jnp.int32)
    best, labels = viterbi(jnp.asarray(scores), lengths, pack(fsa), backend=backend)
    weight, arcs = max(_paths(fsa, scores[0]))
    wrong = labels[0].tolist() != fsa.pdf[list(arcs)].tolist()
    return float('inf') if wrong else _gap(best, [weight])


def _real(fsa: Fsa, backend: str, frames: int = 40) -> float:
    """Against a scaled float64 forward pass, one sparse product per frame and pdf."""
    graph, pdfs = pack(fsa), fsa.num_pdfs
    scores = np.random.default_rng(2).normal(size=(2, frames, pdfs)).astype(np.float32)
    lengths = jnp.array([frames, frames // 2], jnp.int32)
    log_z, gamma = occupancies(jnp.asarray(scores), lengths, graph, backend=backend)
    error = float(
        np.abs(np.asarray(gamma.sum(-1)) - (np.arange(frames) < np.asarray(lengths)[:, None])).max()
    )
    for b, length in enumerate(lengths.tolist()):
        alpha, log_total = np.exp(fsa.initial.astype(np.float64)), 0.0
        for t in range(length):
            prob = np.exp(fsa.weight.astype(np.float64) + scores[b, t, fsa.pdf])
            step = csr_matrix((prob, (fsa.dst, fsa.src)), (fsa.num_states, fsa.num_states))
            alpha = step @ alpha
            log_total += np.log(alpha.sum())
            alpha /= alpha.sum()
        want = log_total + np.log(alpha @ np.exp(fsa.final.astype(np.float64)))
        error = max(error, _gap(log_z[b], want))
    return error


if __name__ == '__main__':
    sys.exit(1 if report() else 0)
