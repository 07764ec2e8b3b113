"""Training on lattices in small: modes, criteria, failures, going on, replay."""

import math

import numpy as np
import pytest

from seqtrain.exchange import eventlog
from seqtrain.training import experiment, monitor


@pytest.fixture
def lattice_config(make_config):
    """Two replicas, eight updates by cross-entropy, six on lattices."""

    def make(**changes):
        fields = {'sequence__graph': 'lattice', 'lattice__acoustic_scale': 0.5, **changes}
        return make_config(**fields)

    return make


def rows_of(folder, stage):
    return [row for row in monitor.read_updates(folder) if row.stage == stage]


@pytest.mark.parametrize('criterion', ['mmi', 'smbr', 'mpe'])
def test_lattices_for_every_batch(lattice_config, tmp_path, criterion):
    config = lattice_config(sequence__criterion=criterion)
    result = experiment.run(config, tmp_path, quiet=True)
    rows = rows_of(tmp_path, criterion)
    assert len(rows) == 6
    assert result['skipped'] == 0
    for row in rows:
        metrics = row.metrics
        assert metrics['row_sum'] < 1e-5
        assert metrics['gradient_norm'] > 0
        assert metrics['lattice_depth'] > 1
        assert metrics['lattice_failed'] == 0
        assert 0 <= metrics['oracle_wer'] <= 1
        assert metrics['lattice_speed'] > 0
        assert not row.invalid
        assert not row.reasons
    events = eventlog.read(tmp_path / monitor.EVENTS)[1]
    ages = [e.s2 for e in events if e.kind == 'applied' and e.version > 8]
    # The first batch of a replica has lattices of its own parameters, the others older ones.
    assert 0 in ages
    assert max(ages) > 0


def test_lattices_kept_for_two_epochs(lattice_config, tmp_path):
    config = lattice_config(
        lattice__mode='epoch',
        lattice__epochs_per_lattice=2,
        lattice__ahead=False,
        exchange__num_replicas=1,
        sequence__updates=24,
    )
    experiment.run(config, tmp_path, quiet=True)
    rows = rows_of(tmp_path, 'mmi')
    epochs = {}
    for row in rows:
        epochs.setdefault(row.lease[1], []).append(row.metrics['lattice_s'])
    whole = [epoch for epoch in sorted(epochs) if epoch > min(epochs)][:-1]
    for epoch in whole:  # every other epoch costs the host nothing
        made = [seconds > 0 for seconds in epochs[epoch]]
        assert all(made) if epoch % 2 == 0 else not any(made), (epoch, made)
    events = eventlog.read(tmp_path / monitor.EVENTS)[1]
    assert max(e.s2 for e in events) >= 4


@pytest.mark.parametrize(
    ('criterion', 'correction', 'replicas'),
    [('mmi', True, 1), ('smbr', False, 1), ('mmi', False, 2)],
)
def test_cached_outer_derivatives(lattice_config, tmp_path, criterion, correction, replicas):
    config = lattice_config(
        sequence__criterion=criterion,
        exchange__num_replicas=replicas,
        sequence__ce_weight=0.1,
        sequence__updates=16,
        lattice__mode='outer',
        lattice__epochs_per_lattice=2,
        lattice__batches_per_block=2,
        lattice__correction=correction,
    )
    result = experiment.run(config, tmp_path, quiet=True)
    rows = rows_of(tmp_path, criterion)
    assert result['updates'] == 24
    assert len(rows) == 16
    assert all(math.isfinite(row.metrics['loss']) for row in rows)
    assert all(row.metrics['gradient_norm'] > 0 for row in rows)
    if not correction:
        assert max(row.metrics['row_sum'] for row in rows) < 1e-5
    if replicas == 1:  # blocks end where epochs do: every frame is there once
        frames = [row.frames for row in rows]
        totals = {sum(frames[start : start + 4]) for start in range(0, 16, 4)}
        assert len(totals) == 1
