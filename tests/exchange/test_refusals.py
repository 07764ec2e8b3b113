"""Bad input through a client: what is refused reaches the replica's log, and training goes on."""

import dataclasses

import numpy as np
import pytest

from seqtrain import exchange
from seqtrain.exchange import Policy, rules
from seqtrain.exchange.courier import Courier

START = {'kernel': np.zeros((2, 3), np.float32), 'bias': np.zeros(3, np.float32)}
ONES = {'kernel': np.ones((2, 3), np.float32), 'bias': np.ones(3, np.float32)}
BAD = {
    'wrong shape': {'update': np.ones(7, np.float32)},
    'wrong dtype': {'update': np.ones(9, np.float64)},
    'not finite': {'update': np.full(9, np.inf, np.float32)},
    'future version': {'base_version': 99},
    'duplicate': {'seq': 0},
    'other generation': {'generation': 3},
    'bad frame count': {'frames': -1.0},
    'not joined': {},  # its lease ran out
}


@pytest.mark.parametrize('reason', BAD)
def test_every_reason_reaches_the_replicas_log_and_training_goes_on(reason, caplog, monkeypatch):
    caplog.set_level('INFO')
    real = Courier._pushes

    def spoilt(self, update, versions, seq, facts):
        ((shard, push),) = real(self, update, versions, seq, facts)
        if seq == 1:
            push = dataclasses.replace(push, **BAD[reason])
            if reason == 'not joined':
                server.expire(0)
        return [(shard, push)]

    monkeypatch.setattr(Courier, '_pushes', spoilt)
    with exchange.LocalServer(START, 1, rules.sgd(1.0)) as server, server.connect(0) as client:
        for _ in range(3):
            client.push(ONES, client.pull().versions)
            client.flush()
        refused = [e for e in server.events() if e.kind == 'rejected' and e.seq >= 0]
        assert [event.note for event in refused] == [reason]
        (line,) = [one for one in caplog.messages if one.startswith('Replica 0: Push')]
        assert line.endswith('.')
        assert server.params().versions.numbers == (2,)
        np.testing.assert_array_equal(server.params().params['bias'], -2)


def test_a_rejected_push_reaches_the_replicas_log_and_changes_nothing(caplog):
    with (
        exchange.LocalServer(START, 2, rules.sgd(1.0)) as server,
        server.connect(0) as client,
    ):
        params, versions = client.latest()
        bad = {k: np.ones_like(v) for k, v in params.items()}
        bad['bias'][1] = np.nan
        client.push(bad, versions)
        client.flush()
        assert client.stats().rejected == 1  # only the shard that got the NaN
        assert client.rejections[0].reason is exchange.Reason.NON_FINITE
        assert 'NaN' in caplog.text
        assert sorted(server.params().versions.numbers) == [0, 1]
        client.push({k: np.ones_like(v) for k, v in params.items()}, client.latest().versions)


def test_an_unknown_worker_is_told_what_to_do():
    with exchange.LocalServer(START, 1, rules.sgd(1.0), Policy(num_workers=2)) as server:
        client = server.connect(2)
        with pytest.raises(exchange.ExchangeError, match='raise num_workers'):
            client.latest()
        with pytest.raises(exchange.ExchangeError, match='raise num_workers'):
            client.close()


@pytest.mark.parametrize('wrong', [{'codec': 'int4'}, {'queue_size': 0}, {'speed': 1}], ids=str)
def test_a_client_that_cannot_be_made_replaces_nobody(wrong):
    with exchange.LocalServer(START, 1, rules.sgd(1.0)) as server:
        with server.connect(0) as client:
            versions = client.latest().versions
            with pytest.raises((ValueError, TypeError)):
                server.connect(0, **wrong)
            client.push(ONES, versions)
            client.flush()
        assert server.params().versions.numbers == (1,)
        assert server._channels == {}
