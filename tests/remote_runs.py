"""What tests of replicas in processes of their own share."""

import json
import os
import pathlib
import pickle
import subprocess
import sys

from seqtrain.exchange import LocalServer, Policy, rules
from seqtrain.exchange.transport import ray as ray_transport
from seqtrain.training import assembly, hosts, remote

ROOT = pathlib.Path(__file__).parent.parent
CACHE = str(ROOT / '.jax_cache')
REMOTE = {'exchange__transport': 'ray', 'exchange__ray_replicas': True}
LATTICES = {'sequence__graph': 'lattice', 'lattice__acoustic_scale': 0.5}
TIED = {
    'graph__context': 'biphone',
    'graph__num_tied': 60,
    'graph__min_count': 8,
    'bootstrap__mono_rounds': 2,
    'bootstrap__mono_offsets': ((-1, 0, 1),),
}


def assert_nothing_of_an_utterance(config, data, *told):
    """No name, transcript, recording or feature is among the bytes of what was told."""
    told = pickle.dumps(told)
    for utterance in assembly.load_split(config.data, 'train'):
        assert utterance.id.encode() not in told
        assert utterance.text.encode() not in told
        recording = utterance.encoded()
        assert recording[len(recording) // 2 :][:16] not in told
    for features in data.features.features:
        assert features[:1].tobytes() not in told


def processes(config, data, params, first=None):
    brief = hosts.make_brief(config, data)
    server = LocalServer(params, 1, rules.sgd(0.1), Policy(num_workers=2))
    return [remote.ReplicaProcess(number, brief, server, first) for number in range(2)], server


def assert_replays(folder):
    """As a user does it: in a process with one device, as the replicas' processes had."""
    environment = {**os.environ, **ray_transport.host_env(), 'JAX_COMPILATION_CACHE_DIR': CACHE}
    done = subprocess.run(
        [sys.executable, 'launch/replay.py', f'--workdir={folder}'],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert json.loads(done.stdout)['identical']
