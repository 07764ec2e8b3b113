"""Any corpus in Kaldi data directories; `feats.scp` is used where there is one, else `wav.scp`.

    python launch/train.py --config=configs/kaldi.py --workdir=DIR \
        --config.data.train=KALDI_DIR --config.data.test=KALDI_DIR --config.data.lexicon=FILE

With feats.scp: '--config.data.speeds=(1.0,)', other speeds need audio; of MFCC, as chain recipes
have them, --config.features.given=mfcc. Tied triphones on top of that run, with a flat scale and a
boost: --config.start_from=DIR --config.bootstrap.rounds=2 --config.graph.context=triphone
--config.graph.num_tied=400 --config.graph.phone_lm_order=2 --config.sequence.acoustic_scale=0.3
--config.sequence.boost=0.5 --config.sequence.ce_weight=0.1 --config.decode.acoustic_scale=0.3
--config.decode.phone_acoustic_scale=0.4

Measured over three seeds (RESULTS.md): fsdd_unseen 10.8 ± 1.0 % WER; speechocean 64.6 ± 0.9 % WER
with a Kneser-Ney bigram (graph.word_lm_smoothing=kneser-ney), 57.9 ± 0.4 % PER with
decode.phone_acoustic_scale=2; triphones on top of seed 0 of it 63.6 and 55.2 %.
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
