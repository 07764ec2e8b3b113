"""What holds for every criterion, with a shared denominator and with lattices: values and
derivatives in float64, JAX's transformations, devices and threads, compilations."""

import concurrent.futures
import contextlib
import itertools
import threading

import criteria
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from backends import BACKENDS
from criteria import BOOST, CRITERIA, LABELS, LENGTHS, PDFS, PHONES

from seqtrain import losses, ops
from seqtrain.ops import cpu

NAMES = pytest.mark.parametrize('name', CRITERIA)
LATTICES = pytest.mark.parametrize('lattices', [False, True], ids=['lattice-free', 'lattices'])
SLOW_TO_COMPILE = [
    backend if backend == 'cpu' else pytest.param(backend, marks=pytest.mark.slow)
    for backend in ops.backends(interpreted=True)
]


class Listed:
    """All paths of one graph, in float64."""

    def __init__(self, fsa, frames: int):
        found = oracles.paths(np.zeros((frames, PDFS)), fsa)
        assert found
        self.weight = np.array([path.log_weight for path in found])
        self.pdf = fsa.pdf[np.array([path.arcs for path in found])]

    def sums(self, per_frame: np.ndarray) -> np.ndarray:
        """Σ_t per_frame[t, pdf_t] of every path."""
        return per_frame[np.arange(len(per_frame)), self.pdf].sum(1)

    def log_z(self, per_frame: np.ndarray) -> float:
        return float(oracles.logsumexp(self.weight + self.sums(per_frame)))


def frame_accuracy(name: str, labels: np.ndarray) -> np.ndarray:
    """By the definition: 1 for the pdf of the reference; for MPE its phone's share of a frame."""
    if name != 'mpe':
        return np.eye(PDFS)[labels]
    phones = np.array(PHONES)
    right = (phones[labels][:, None] == phones).astype(float)
    runs = [len(list(run)) for _, run in itertools.groupby(phones[labels])]
    return right / np.repeat(runs, runs)[:, None]


def by_listing(name: str, logits: np.ndarray, labels: np.ndarray, num: Listed, den: Listed):
    """The criterion of one utterance, by the definition."""
    accuracy = frame_accuracy(name, labels)
    if name in ('smbr', 'mpe'):
        return np.exp(den.weight + den.sums(logits) - den.log_z(logits)) @ den.sums(accuracy)
    if name == 'mmi':
        return num.log_z(logits) - den.log_z(logits)
    if name == 'bmmi':
        return num.log_z(logits) - den.log_z(logits - BOOST * accuracy)
    scores = logits - oracles.logsumexp(logits, axis=1)[:, None]
    return num.log_z(scores) if name == 'ctc' else 1.01 * num.log_z(scores) - den.log_z(scores)


def summed(name: str, lengths=LENGTHS, **options):
    """f(logits, numerators, denominator) -> the sum of the values, and the outcome."""

    def total(x, num, den):
        out = CRITERIA[name](x, lengths, num, den, **options)
        return out.value.sum(), out

    return total


@contextlib.contextmanager
def no_second_try(backend: str, layered: bool):
    """What the C++ core does not trust it does again, by other means, which would hide faults."""
    if backend != 'cpu':
        yield
        return
    before = cpu.redone(), cpu.layered()
    yield
    assert cpu.redone() == before[0]
    assert cpu.layered() == before[1] + layered * len(LENGTHS)


@NAMES
@LATTICES
@pytest.mark.parametrize('backend', BACKENDS)
def test_values_and_derivatives_match_listed_paths(name, lattices, backend):
    fsas, logits = criteria.graphs(lattices), criteria.logits()
    step = jax.value_and_grad(summed(name, backend=backend), has_aux=True)
    with no_second_try(backend, layered=lattices and name != 'ctc'):
        found = step(jnp.asarray(logits), *criteria.packed(*fsas, lattices))
        (_, out), gradient = jax.block_until_ready(found)
    assert np.all(out.valid)
    for b, n in enumerate(LENGTHS):
        listed = [Listed(kind[b], n) for kind in fsas]
        own, labels = logits[b, :n].astype(np.float64), LABELS[b, :n]
        want = by_listing(name, own, labels, *listed)
        np.testing.assert_allclose(out.value[b], want, rtol=1e-5, atol=1e-5)
        slope = oracles.slope(lambda x, a=(labels, *listed): by_listing(name, x, *a), own)
        np.testing.assert_allclose(gradient[b, :n], slope, atol=1e-5)
        np.testing.assert_allclose(gradient[b].sum(-1), np.zeros(len(logits[b])), atol=1e-5)
        assert not np.any(gradient[b, n:])


@NAMES
@LATTICES
@pytest.mark.parametrize('backend', SLOW_TO_COMPILE)
def test_jit_vmap_grad_and_checkpoint_compose(name, lattices, backend):
    num, den = criteria.packed(*criteria.graphs(lattices), lattices)
    stack = jnp.stack([jnp.asarray(criteria.logits(seed)) for seed in (1, 2, 3)])

    def total(x):
        return summed(name, backend=backend)(x, num, den)[0]

    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(jax.checkpoint(total))))(stack)
    for b, x in enumerate(stack):
        want, want_gradient = jax.value_and_grad(total)(x)
        np.testing.assert_allclose(value[b], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient[b], want_gradient, atol=1e-6)


@LATTICES
@pytest.mark.parametrize('backend', SLOW_TO_COMPILE)
def test_four_devices_from_four_threads(lattices, backend):
    devices = jax.devices()[:4]
    if len(devices) < 4:
        pytest.skip('needs four devices')
    graphs = criteria.packed(*criteria.graphs(lattices), lattices)
    barrier = threading.Barrier(4)

    @jax.jit
    @jax.value_and_grad
    def step(x, num, den):
        return sum(summed(name, backend=backend)(x, num, den)[0] for name in ('mmi', 'smbr'))

    def replica(number: int):
        args = jax.device_put((criteria.logits(number), *graphs), devices[number])
        barrier.wait(timeout=60)
        return [jax.block_until_ready(step(*args)) for _ in range(5)]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(replica, range(4)))
    for number, runs in enumerate(found):
        want, want_gradient = step(jnp.asarray(criteria.logits(number)), *graphs)
        for value, gradient in runs:
            assert gradient.devices() == {devices[number]}
            np.testing.assert_allclose(value, want, rtol=1e-6)
            np.testing.assert_allclose(gradient, want_gradient, atol=1e-6)


@NAMES
@LATTICES
def test_one_compilation_per_bucket(name, lattices):
    step = jax.jit(
        jax.value_and_grad(lambda x, n, *graphs: summed(name, n)(x, *graphs), has_aux=True)
    )
    shared = criteria.graphs(lattices=False)[1]
    for seed in range(3):
        numerators, denominators = criteria.graphs(lattices, seed)
        own = denominators if lattices else shared  # a run has one shared graph
        num, den = criteria.packed(numerators, own, lattices)
        for lengths in (LENGTHS, LENGTHS[::-1].copy()):
            step(jnp.asarray(criteria.logits(seed)), lengths, num, den)
    assert step._cache_size() == 1
    larger = jnp.zeros((len(LENGTHS), 2 * criteria.FRAMES, PDFS))
    if name not in ('bmmi', 'smbr', 'mpe'):  # these have labels of the first bucket
        step(larger, LENGTHS, num, den)
        assert step._cache_size() == 2


@pytest.mark.parametrize('name', [*CRITERIA, 'f_smoothing', 'out_of_range'])
def test_numpy_scalars_where_jax_uses_64_bits_are_plain_numbers(name):
    num, den = criteria.packed(*criteria.graphs(lattices=False), lattices=False)
    x = jnp.asarray(criteria.logits())
    accuracy = losses.frame_accuracy(LABELS, PDFS)

    def value(x, number):
        if name == 'f_smoothing':
            return losses.f_smoothing(x[:, 0, 0], x[:, 0, 1], number(0.3))
        if name == 'out_of_range':
            return losses.out_of_range(x, LENGTHS, limit=number(0.3))
        if name == 'bmmi':
            options = {'boost': number(0.3), 'accuracy': accuracy, 'denominator_scale': number(0.9)}
            return losses.lf_mmi(x, LENGTHS, num, den, **options).value
        options = {'ctc': {}, 'ctc_crf': {'ctc_weight': number(0.3)}}
        options = options.get(name, {'acoustic_scale': number(0.3)})
        return CRITERIA[name](x, LENGTHS, num, den, **options).value

    want, slope = jax.vjp(lambda x: value(x, float), x)
    with jax.enable_x64(True):
        got, wide_slope = jax.vjp(lambda x: value(x, np.float64), x)
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(wide_slope(got)[0], slope(want)[0])
