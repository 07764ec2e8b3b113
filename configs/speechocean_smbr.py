"""Lattice sMBR on English by Mandarin speakers: cross-entropy, then lattices made on the fly.

    python launch/train.py --config=configs/speechocean_smbr.py --workdir=workdir/speechocean_smbr

The recordings are looked for in $SEQTRAIN_DATA/speechocean (../shared/data where it is not set).
Other criteria and modes: --config.sequence.criterion=mmi --config.lattice.mode=epoch; from the end
of another run, without a bootstrap: --config.start_from=DIR --config.bootstrap.rounds=0

Measured (RESULTS.md), words by a weaker language model than the config has now: seed 0, 57.9 %
phone and 74.4 % word errors after cross-entropy, 56.8 and 73.6 % after lattice sMBR. Three seeds,
400 updates of the criterion: 57.8 ± 0.7 % phone errors after cross-entropy, 56.5 ± 0.5 % after
sMBR, 56.7 to 56.9 % after MMI, boosted MMI (sequence.boost=0.1, sequence.max_silence_error=1) and
MPE. Fewer errors: configs/speechocean_mmi.py.
"""

from seqtrain.training import config as config_lib


def get_config():
    config = config_lib.default()
    config.name = 'speechocean_smbr'
    config.data.train = '$SEQTRAIN_DATA/speechocean/train'
    config.data.test = '$SEQTRAIN_DATA/speechocean/dev'
    config.data.lexicon = '$SEQTRAIN_DATA/speechocean/lexicon.txt'
    config.data.batch_size = 8
    config.data.num_buckets = 3
    config.data.speeds = (0.9, 1.0, 1.1)
    config.data.spec_augment = True
    config.spec_augment.num_freq_masks = config.spec_augment.num_time_masks = 0
    config.spec_augment.max_warp = 0.1  # 41 speakers are few
    config.spec_augment.max_shift = 1
    config.features.cmvn = 'speaker'
    config.graph.context = 'triphone'
    config.graph.num_tied = 400
    config.graph.word_lm_smoothing = 'kneser-ney'
    config.model.num_hidden = 256
    config.model.dropout = 0.15
    config.exchange.num_replicas = 2
    config.exchange.overlap = False  # small network: fresher parameters beat overlap
    config.bootstrap.mono_offsets = ((-2, -1, 0, 1, 2), (0,))
    config.bootstrap.mono_rounds = 12
    config.bootstrap.mono_updates = 50
    config.bootstrap.rounds = 3
    config.bootstrap.updates = 1400
    config.bootstrap.final_learning_rate = 1e-4
    config.sequence.graph = 'lattice'
    config.sequence.criterion = 'smbr'
    config.sequence.updates = 1200
    config.sequence.learning_rate = 1e-3
    config.sequence.final_learning_rate = 1e-4
    config.sequence.ce_weight = 0.1
    config.lattice.acoustic_scale = 0.3  # a third of Kaldi's frames, three times its scale
    config.decode.acoustic_scale = 0.2
    config.decode.ce_acoustic_scale = 0.2
    config.decode.phone_acoustic_scale = 0.5  # a phone bigram says less than a word bigram
    config.decode.phone_error_rate = True
    return config
