"""The demo of `make demo`: digit strings spoken by espeak-ng, unseen voices in the test set.

    python launch/train.py --config=configs/demo.py --workdir=workdir/demo

Needs no data and no network: the corpus is made on first use. Formant speech proves the machinery,
not accuracy on people.

Measured (RESULTS.md): test WER 0.6, 0.2, 0.4 % for seeds 0, 1, 2 of 500 words; synchronous 0.0,
0.2, 0.0 %; 34 to 49 s of training on two cores.
"""

from seqtrain.training import config as config_lib


def get_config():
    config = config_lib.default()
    config.name = 'demo'
    config.data.corpus = 'synth_digits'
    config.data.batch_size = 16
    config.data.speeds = (0.9, 1.0, 1.1)
    config.data.spec_augment = True
    config.bootstrap.rounds = 6
    config.bootstrap.updates = 100
    config.sequence.updates = 600
    config.exchange.num_replicas = 4
    config.exchange.overlap = False  # the devices are the host: nothing to overlap
    config.exchange.num_shards = 2
    return config
