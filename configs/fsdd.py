"""Free Spoken Digit Dataset v1.0.9: isolated digits; recordings 0 to 4 of each are the test.

    python launch/train.py --config=configs/fsdd.py --workdir=workdir/fsdd

Downloads the archive (12 MB); a local copy:
--config.data.source=free-spoken-digit-dataset-1.0.9.tar.gz

Measured (RESULTS.md): test WER 0.4, 1.2, 0.4 % for seeds 0, 1, 2 of 250 words; 36 to 49 s of
training on two cores.
"""

from seqtrain.training import config as config_lib


def get_config():
    config = config_lib.default()
    config.name = 'fsdd'
    config.data.corpus = 'fsdd'
    config.data.batch_size = 32
    config.data.spec_augment = True
    config.spec_augment.max_freq_width = 5
    config.features.cmvn = 'speaker'  # half a second of speech is too little to normalise by
    config.bootstrap.updates = 100
    config.sequence.updates = 800
    config.graph.word_lm_order = 1
    config.exchange.num_replicas = 2
    config.exchange.overlap = False  # small network: fresher parameters beat overlap
    return config
