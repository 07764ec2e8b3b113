"""Replicas in processes of their own: what they are told, their batches, and their faults."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from remote_runs import (
    CACHE,
    LATTICES,
    REMOTE,
    ROOT,
    TIED,
    assert_nothing_of_an_utterance,
    assert_replays,
    processes,
)

from seqtrain.data.utterance import DataError
from seqtrain.exchange import LocalServer, Partition, eventlog
from seqtrain.graphs import relabel
from seqtrain.training import (
    align,
    assembly,
    bootstrap,
    experiment,
    holdings,
    hosts,
    monitor,
    remote,
    steps,
    tying,
)
from seqtrain.training import config as config_lib
from seqtrain.training.batching import Batcher
from seqtrain.training.leasing import lease_book, parts


def test_a_brief_holds_models_and_numbers_but_nothing_of_an_utterance(prepared):
    config, data, *_ = prepared
    brief = hosts.make_brief(config, data)
    assert_nothing_of_an_utterance(config, data, brief)
    with pytest.raises(AssertionError):  # it would be seen
        assert_nothing_of_an_utterance(config, data, brief, data.features.features[3])


def test_nothing_that_goes_to_or_from_a_process_holds_an_utterance(prepared, monkeypatch):
    config, data, _, params = prepared
    said, deliver, mail = [], LocalServer.deliver, LocalServer._mail
    monkeypatch.setattr(
        LocalServer, 'deliver', lambda *args: (said.append(args[2]), deliver(*args))[1]
    )
    monkeypatch.setattr(LocalServer, '_mail', lambda *args: (said.append(args[2]), mail(*args))[1])
    replicas, server = processes(config, data, params)
    book = lease_book(config, data)
    with server:
        for number, replica in enumerate(replicas):
            prior = np.zeros(data.topology.num_pdfs, np.float32)
            said.append(replica.open('ce-0', 'ce', 0, prior, None))
            for position in range(2):
                lease = book.acquire(number)
                said.extend([lease, replica.train([lease], position)])
            said.append(replica.finish())
    kinds = {type(one).__name__ for one in said}
    assert {'Join', 'Pull', 'Push', 'Leave', 'Params', 'Ack', 'Lease', 'list'} <= kinds
    assert_nothing_of_an_utterance(config, data, *said)


@pytest.fixture(params=['flat start', 'tied'])
def begun(request, prepared):
    """The same, the first alignments, and what processes are given of these."""
    config, data, network, params = prepared
    labels = align.flat_start(data)
    if request.param == 'flat start':
        return config, data, network, params, labels, None
    config.graph.update(context='biphone', num_tied=60, min_count=8)
    tied = tying.tie(config.graph, data, labels)
    labels = [relabel(one, data.topology, tied) for one in labels]
    data = assembly.training_data(config, tied)
    network, params = assembly.network(config, data.features.dim, tied.num_pdfs)
    first = hosts.first_labels(hosts.make_brief(config, data), labels)
    return config, data, network, params, labels, first


def test_processes_make_the_batches_and_alignments_that_the_driver_would(begun):
    config, data, network, params, expected, first = begun
    (flat,) = Partition.make(params, 1).split(params)
    device, places = jax.devices()[0], parts(config, data)
    replicas, _ = processes(config, data, params, first)
    tasks = [(0, 0), (0, 1)] if config.data.split_by == 'utterance' else [(0, 0), (1, 0)]
    book, batcher = lease_book(config, data), assembly.batcher(config, data)
    for rounds in range(3):  # what the first alignment finds no path for keeps round 0
        if rounds:
            expected = align.realign(
                steps.make_align(network), params, Batcher(data, config.seed), expected,
                [device] * 2, places,
            )  # fmt: skip
        counts = [replicas[n].count(*task, *[flat] * rounds) for n, task in enumerate(tasks)]
        np.testing.assert_array_equal(
            sum(counts), bootstrap.count_labels(expected, data.topology.num_pdfs)
        )
        for number in (0, 1, 0, 1):
            lease = book.acquire(number)
            held = replicas[number].holdings
            mine = held.batcher.make(lease, device, held.labels)
            whole = batcher.make(lease, device, expected)
            assert mine.shape == whole.shape
            np.testing.assert_array_equal(mine.indices, whole.indices)
            jax.tree.map(np.testing.assert_array_equal, mine.device, whole.device)


def test_a_process_holds_only_its_own_speakers_until_it_inherits_others(prepared, monkeypatch):
    config, data, _, params = prepared
    if config.data.split_by != 'speaker':
        pytest.skip('in utterance mode everybody holds everything')
    read, asked = [], []
    first = hosts.first_labels(hosts.make_brief(config, data), align.flat_start(data))
    real = holdings.feature_lib.compute_copies

    def compute(utterances, *args):
        read.extend(u.speaker for u in utterances)
        return real(utterances, *args)

    monkeypatch.setattr(holdings.feature_lib, 'compute_copies', compute)

    class First:
        def __getitem__(self, pool):
            asked.append(pool)
            return first[pool]

    (process, _), _ = processes(config, data, params, First())
    book = lease_book(config, data)
    held = process.holdings
    held.batcher.make(book.acquire(0), jax.devices()[0], held.labels)
    mine = {data.features.speakers[i] for i in book.members(0)}
    assert set(read) == mine
    assert asked == [0]
    book.release(1)  # replica 1 is gone; its pool comes here
    leases = [book.acquire(0) for _ in range(4)]
    assert {lease.id[0] for lease in leases} == {0, 1}
    for lease in leases:
        held.batcher.make(lease, jax.devices()[0], held.labels)
    assert set(read) == set(data.features.speakers)
    assert asked == [0, 1]


def test_a_process_with_another_corpus_is_found_out(prepared):
    config, data, *_ = prepared
    brief = hosts.make_brief(config, data)
    brief.config['data']['max_train'] = 12
    process = remote.ReplicaProcess(0, brief, None)
    with pytest.raises(DataError, match='same corpus on every machine'):
        process.count(0, 0)


def test_a_process_with_longer_recordings_is_found_out(prepared):
    config, data, _, params = prepared
    brief = hosts.make_brief(config, data)
    shorter = [one[1:] for one in hosts.first_labels(brief, align.flat_start(data))]
    (process, _), _ = processes(config, data, params, shorter)
    with pytest.raises(DataError, match='not as long as the driver'):
        process.count(0, 0)


def test_a_process_trains_and_what_it_raises_can_travel(prepared, monkeypatch):
    config, data, _, params = prepared
    (first, _), server = processes(config, data, params)
    prior = np.zeros(data.topology.num_pdfs, np.float32)
    book = lease_book(config, data)
    with server:
        opened = first.open('ce-0', 'ce', 3, prior, None)
        assert (opened.next_seq, opened.wanted, opened.horizon) == (0, 1, 0)
        leases = [book.acquire(0) for _ in range(2)]
        assert first.train(leases[:1], 0) == ([], 1)
        (update,), _ = first.train(leases[1:], 1)
        assert (update.lease, update.life, update.seq) == (leases[0].id, 3, 0)
        (update,) = first.finish()
        assert update.lease == leases[1].id
        assert server.params().versions.numbers == (2,)
        first.open('ce-1', 'ce', 4, prior, None)
        monkeypatch.setattr(Batcher, 'make', lambda *args: 1 / 0)
        with pytest.raises(remote.ReplicaError, match='ZeroDivisionError'):
            first.train(leases[:1], 2)
        first._client.kill()


@pytest.mark.slow
@pytest.mark.parametrize('split_by', ['utterance', 'speaker'])
def test_a_replica_process_is_killed_and_training_goes_on(
    ray_here, make_config, tmp_path, split_by, send
):
    send({5: signal.SIGKILL})
    means = {'bootstrap__average': 0.5, 'sequence__average': 0.3}
    config = make_config(**REMOTE, **means, exchange__num_shards=2, data__split_by=split_by)
    result = experiment.run(config, tmp_path, quiet=True)
    assert result['updates'] == 14
    assert 0 <= result['wer'] <= 2
    assert result['replica_failures'] == 1
    (failure,) = [monitor.Failure(**row) for row in monitor._read(tmp_path / monitor.FAILURES)]
    assert (failure.replica, failure.action) == (1, 'is started again')
    assert 'process died' in failure.error
    events = eventlog.read(tmp_path / monitor.EVENTS)[1]
    assert {event.worker for event in events if event.kind == 'applied'} == {0, 1}
    notes = [event.note for event in events if event.kind == 'rule' and event.shard == 0]
    assert notes == ['mean of ce', 'mmi', 'mean of sequence']
    assert_replays(tmp_path)


@pytest.mark.slow
def test_nobody_waits_for_a_process_that_is_paused_beyond_its_lease(
    ray_here, make_config, tmp_path, send
):
    # By replica 0's updates: 4 before the last stage, 6 of that one's 12 in it. When its first
    # there is reported, round 4 is the last that the paused one can have pushed to; it goes on
    # when replica 0 has done round 6, which would never come if it waited.
    send({5: signal.SIGSTOP, 10: signal.SIGCONT}, of=0)
    config = make_config(
        **REMOTE, exchange__mode='sync', exchange__lease_s=1.0, sequence__updates=12
    )
    result = experiment.run(config, tmp_path, quiet=True)
    assert (result['updates'], result['replica_failures']) == (20, 0)
    events = eventlog.read(tmp_path / monitor.EVENTS)[1]
    assert 'left' in {event.kind for event in events if event.worker == 1}
    assert_replays(tmp_path)


INTERRUPTED = """
import os, runpy, signal, sys
stop_at = int(sys.argv.pop(1))
from seqtrain.training import monitor
real, seen = monitor.Monitor.add, []
def add(self, update):
    real(self, update)
    seen.append(update)
    if len(seen) == stop_at:
        os.kill(os.getpid(), signal.SIGINT)
monitor.Monitor.add = add
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
sys.argv = ['launch/train.py', *sys.argv[1:]]
runpy.run_path('launch/train.py', run_name='__main__')
"""


def launched(arguments, fields, *script):
    flags = [f'--config.{name.replace("__", ".")}={value}' for name, value in fields.items()]
    return subprocess.run(
        [sys.executable, *script, *arguments, *flags],
        cwd=ROOT, env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': CACHE},
        capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(('fields', 'after'), [({}, 6), (LATTICES, 11), (TIED, 10)])
def test_a_stopped_run_with_replica_processes_goes_on(
    ray_here, arguments, tmp_path, caplog, fields, after
):
    stopped = launched(arguments, {**REMOTE, **fields}, '-c', INTERRUPTED, str(after))
    assert stopped.returncode == 130, stopped.stderr
    folder = tmp_path / 'run'
    config = config_lib.from_json(json.loads((folder / 'config.json').read_text()))
    caplog.set_level('INFO')
    result = experiment.run(config, folder, quiet=True)
    assert 'Continuing from update' in caplog.text
    assert result['updates'] == 14
    assert 0 <= result['wer'] <= 2
    assert_replays(folder)


@pytest.mark.slow
def test_a_criterion_on_lattices_from_another_run_with_replica_processes(
    ray_here, arguments, tmp_path
):
    fields = {**REMOTE, **TIED, 'bootstrap__mono_offsets': (), 'data__split_by': 'speaker'}
    fields |= {'bootstrap__average': 0.5}
    before = launched(arguments, {**fields, 'sequence__updates': 0}, 'launch/train.py')
    assert before.returncode == 0, before.stderr
    fields |= {**LATTICES, 'sequence__criterion': 'smbr', 'bootstrap__rounds': 0}
    fields['start_from'] = tmp_path / 'run'
    folder = tmp_path / 'smbr'
    after = launched([*arguments, f'--workdir={folder}'], fields, 'launch/train.py')
    assert after.returncode == 0, after.stderr
    first, result = (json.loads(one.stdout.splitlines()[-1]) for one in (before, after))
    assert (result['updates'], result['replica_failures']) == (6, 0)
    assert result['wer_ce'] == first['wer']
    assert_replays(folder)
