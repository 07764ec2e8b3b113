"""Replicas in processes of their own that make their lattices themselves."""

import signal
import threading

import jax
import numpy as np
import pytest
from remote_runs import LATTICES, REMOTE, assert_nothing_of_an_utterance, assert_replays, processes

from seqtrain.exchange import Pulled, Versions, eventlog
from seqtrain.lattices import LatticeGenerator, LatticePair
from seqtrain.training import align, assembly, experiment, hosts, lattice, lattice_stage, monitor
from seqtrain.training.leasing import lease_book

NO_VERSIONS = Versions((0,), (0,))


def on_lattices(prepared, folder):
    """The same run on lattices: what its replicas would share if they were threads."""
    config, data, network, params = prepared
    config.update_from_flattened_dict({k.replace('__', '.'): v for k, v in LATTICES.items()})
    return lattice_stage.make(config, data, network, align.flat_start(data), folder, params)


@pytest.fixture
def victim(prepared, monkeypatch):
    """A transcript for which there is no path."""
    _, data, *_ = prepared
    victim, real = data.features.texts[3], LatticeGenerator.pair
    spellings = {lattice.spelt(victim, data.lexicon, unit) for unit in ('word', 'phone')}

    def pair(self, scores, words):
        return (
            LatticePair(None, None, 'no path') if words in spellings else real(self, scores, words)
        )

    monkeypatch.setattr(LatticeGenerator, 'pair', pair)
    return victim


@pytest.mark.parametrize('unit', ['word', 'phone'])
def test_processes_make_the_lattices_that_the_driver_would(prepared, victim, tmp_path, unit):
    config, data, _, params = prepared
    config.lattice.unit = unit
    work = on_lattices(prepared, tmp_path)
    replicas, _ = processes(config, data, params)
    works = [*(replica.lattices(work.maker.sizes) for replica in replicas), work]
    sources = [one.source(jax.devices()[0], lambda *_: False) for one in works]
    held = [(replica.holdings.batcher, replica.holdings.labels) for replica in replicas]
    held.append((assembly.batcher(config, data), align.flat_start(data)))

    def batch(of, lease):
        plain = held[of][0].make(lease, jax.devices()[0], held[of][1])
        return sources[of].complete(lease, plain, Pulled(params, NO_VERSIONS))

    book, reasons = lease_book(config, data), {}
    for number in (0, 1, 0, 1):
        lease = book.acquire(number)
        mine, whole = batch(number, lease), batch(-1, lease)
        jax.tree.map(np.testing.assert_array_equal, mine.device, whole.device)
        assert (mine.shape, mine.reasons) == (whole.shape, whole.reasons)
        for name in ('lattice_depth', 'lattice_failed', 'lattice_pruned', 'oracle_wer'):
            assert mine.metrics.get(name) == whole.metrics.get(name)
        reasons |= mine.reasons
    assert {(data.features.texts[n], why) for n, why in reasons.items()} == {(victim, 'no path')}
    for source in sources:
        source.close()


def test_a_process_makes_lattices_ahead_and_says_what_they_were_like(prepared, victim, tmp_path):
    config, data, _, params = prepared
    sizes = on_lattices(prepared, tmp_path).maker.sizes
    replicas, server = processes(config, data, params)
    prior = np.zeros(data.topology.num_pdfs, np.float32)
    book, updates = lease_book(config, data), []
    number = next(n for n in range(2) if 3 in book.members(n))
    first, leases = replicas[number], [book.acquire(number) for _ in range(4)]
    with server:
        assert first.open('mmi', 'sequence', 0, prior, sizes).horizon == 1
        for position, lease in enumerate(leases):
            updates += first.train([lease], position, leases[position + 1 : position + 2])[0]
        updates += first.finish()
    assert [update.lease for update in updates] == [lease.id for lease in leases]
    assert all(update.metrics['lattice_depth'] > 1 for update in updates)
    failed = {data.features.texts[n]: why for update in updates for n, why in update.reasons}
    assert failed == {victim: 'no path'}
    assert all(update.metrics['denominator_occupancy'] > 0.999 for update in updates)
    assert_nothing_of_an_utterance(config, data, hosts.make_brief(config, data), sizes, updates)
    assert not [t for t in threading.enumerate() if t.name.startswith('lattices')]


def rows_on_lattices(folder):
    return [row for row in monitor.read_updates(folder) if row.stage == 'mmi']


@pytest.mark.slow
def test_replica_processes_decode_for_themselves_and_one_is_killed(
    ray_here, make_config, tmp_path, send
):
    send({11: signal.SIGKILL})  # the stage on lattices begins after 8
    config = make_config(**REMOTE, **LATTICES, exchange__num_shards=2, sequence__updates=12)
    result = experiment.run(config, tmp_path, quiet=True)
    assert (result['updates'], result['skipped'], result['replica_failures']) == (20, 0, 1)
    assert 0 <= result['wer'] <= 2
    (failure,) = [monitor.Failure(**row) for row in monitor._read(tmp_path / monitor.FAILURES)]
    assert (failure.stage, failure.replica, failure.action) == ('mmi', 1, 'is started again')
    rows = rows_on_lattices(tmp_path)
    assert len(rows) == 12
    assert {row.replica for row in rows} == {0, 1}
    for row in rows:
        assert row.metrics['lattice_depth'] > 1
        assert row.metrics['lattice_speed'] > 0
        assert 0 <= row.metrics['oracle_wer'] <= 1
        assert row.metrics['numerator_occupancy'] == pytest.approx(1, abs=1e-5)
    events = eventlog.read(tmp_path / monitor.EVENTS)[1]
    assert max(event.s2 for event in events if event.kind == 'applied') > 0  # made ahead
    assert 'arcs per frame' in (tmp_path / 'report.html').read_text()
    assert_replays(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['epoch', 'outer'])
def test_replica_processes_keep_the_lattices_of_their_speakers(
    ray_here, make_config, tmp_path, mode
):
    kept = {
        'lattice__mode': mode,
        'lattice__epochs_per_lattice': 2,
        'lattice__batches_per_block': 2,
    }
    fields = {**REMOTE, **LATTICES, **kept, 'data__split_by': 'speaker'}
    result = experiment.run(make_config(**fields, sequence__updates=24), tmp_path, quiet=True)
    assert (result['updates'], result['replica_failures']) == (32, 0)
    rows = rows_on_lattices(tmp_path)
    assert all(row.metrics['gradient_norm'] > 0 for row in rows)
    searched = {row.lease for row in rows if row.metrics.get('lattice_s')}
    assert 0 < len(searched) < 24  # most are used again
