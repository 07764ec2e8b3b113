"""What a run on lattices says of all its updates together."""

import pytest

from seqtrain.training import lattice, lattice_report, monitor
from seqtrain.training.lattice import Made


def update(number, made, seconds, audio_s):
    """An update of one replica, with the metrics of its batch's lattices."""
    metrics = {**lattice.summary(made, made, seconds, audio_s), 'lattice_idle_s': 0.0}
    reasons = [(number, one.reason) for one in made if one.reason]
    times = (float(number), number + 0.5, number + 1.0)
    return monitor.Update(
        'smbr', 0, number, 0, (0, 0, number), (0,), 1, metrics, [], *times, reasons=reasons
    )


def test_rates_are_those_of_all_batches_with_lattices():
    failed = [Made(reason='no path')] * 4
    updates = [
        update(0, [Made(depth=40.0, words=1, oracle_errors=1)], 1.0, 10.0),
        update(1, failed, 1e-4, 0.0),
        update(2, [Made(depth=20.0, words=9)], 3.0, 6.0),
    ]
    found = lattice_report.summary(updates, 'smbr')
    assert found['lattice_oracle_wer'] == pytest.approx(0.1)
    assert found['lattice_depth'] == pytest.approx(30.0)
    assert found['lattice_speed'] == pytest.approx(4.0)
    assert found['lattices_failed'] == 1


def test_a_stage_without_a_lattice_has_no_rates():
    found = lattice_report.summary([update(0, [Made(reason='no path')], 1.0, 0.0)], 'smbr')
    assert (found['lattice_speed'], found['lattice_depth']) == (0.0, 0.0)
    assert found['lattice_oracle_wer'] is None
    assert lattice_report.summary([], 'smbr') == {}
