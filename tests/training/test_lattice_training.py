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
