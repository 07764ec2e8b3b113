"""The self-check passes here, and says so when a kernel is broken."""

import numpy as np

from seqtrain import ops
from seqtrain.ops import forward_backward, selfcheck


def test_every_check_passes_on_every_backend():
    results = list(selfcheck.run())
    assert {r.backend for r in results} == set(ops.backends(interpreted=True))
    assert [r for r in results if not r.ok] == []


def test_a_broken_kernel_fails_the_check(monkeypatch):
    right = forward_backward.occupancies

    def wrong(*args, **options):
        log_z, gamma = right(*args, **options)
        return log_z * (1 + 1e-3), gamma

    monkeypatch.setattr(selfcheck, 'occupancies', wrong)
    assert sum(not r.ok for r in selfcheck.run()) >= 4 * len(ops.backends())


def test_nan_and_exceptions_are_failures():
    assert not selfcheck.Result('x', 'xla', float('nan'), 1.0).ok
    assert not selfcheck.Result('x', 'xla', float('inf'), 1.0).ok
    assert selfcheck.Result('x', 'xla', np.float64(0.5), 1.0).ok
