"""Any corpus in Kaldi data directories; `feats.scp` is used where there is one, else `wav.scp`.

    python launch/train.py --config=configs/kaldi.py --workdir=DIR \
        --config.data.train=KALDI_DIR --config.data.test=KALDI_DIR --config.data.lexicon=FILE

With feats.scp: '--config.data.speeds=(1.0,)', other speeds need audio; of MFCC, as chain recipes
have them, --config.features.given=mfcc.

Measured (RESULTS.md): fsdd_unseen 10.7 ± 1.1 % WER (three seeds); speechocean 60.1 % PER, with
a Kneser-Ney bigram (graph.word_lm_smoothing=kneser-ney) 63.2 % WER.
"""

from seqtrain.training import config as config_lib


def get_config():
    config = config_lib.default()
    config.name = 'kaldi'
    config.data.corpus = 'kaldi'
    config.data.batch_size = 16
    config.data.num_buckets = 3
    config.data.speeds = (0.9, 1.0, 1.1)
    config.data.spec_augment = True
    config.spec_augment.num_freq_masks = config.spec_augment.num_time_masks = 0
    config.spec_augment.max_warp = 0.2  # few speakers become more
    config.spec_augment.max_shift = 1
    config.features.cmvn = 'speaker'
    config.model.offsets = ((-2, -1, 0, 1, 2), (-1, 0, 1), (-1, 0, 1))
    config.model.num_hidden = 192
    config.model.dropout = 0.3
    config.exchange.num_replicas = 2
    config.exchange.overlap = False  # small network: fresher parameters beat overlap
    config.bootstrap.updates = 400
    config.sequence.updates = 2000
    return config
