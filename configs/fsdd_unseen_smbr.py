"""Lattice sMBR on digit strings, tested on two unseen speakers.

    python launch/train.py --config=configs/fsdd_unseen_smbr.py --workdir=workdir/fsdd_unseen_smbr

The recordings are looked for in $SEQTRAIN_DATA/fsdd_unseen (../shared/data where it is not set).
sMBR is smoothed by boosted MMI. Other criteria: --config.sequence.criterion=mpe; boosted MMI alone:
--config.sequence.criterion=mmi --config.sequence.mmi_weight=0.

Measured over three seeds (RESULTS.md): 5.5 ± 0.7 % word errors after cross-entropy, 5.4 ± 0.4 %
after smoothed sMBR. From three other CE networks, 5.7 ± 0.3 %: 5.5 % after smoothed sMBR or MPE,
5.6 to 5.7 % after sMBR, boosted MMI, MMI and MPE.
"""

from seqtrain.training import config as config_lib


def get_config():
    config = config_lib.default()
    config.name = 'fsdd_unseen_smbr'
    config.data.train = '$SEQTRAIN_DATA/fsdd_unseen/train'
    config.data.test = '$SEQTRAIN_DATA/fsdd_unseen/test'
    config.data.lexicon = '$SEQTRAIN_DATA/fsdd_unseen/lexicon.txt'
    config.data.batch_size = 16
    config.data.num_buckets = 3
    config.data.speeds = (0.9, 1.0, 1.1)
    config.data.vtln = (0.8, 0.9, 1.0, 1.1, 1.2)  # four speakers are few
    config.data.spec_augment = True
    config.spec_augment.num_freq_masks = config.spec_augment.num_time_masks = 0
    config.spec_augment.max_warp = 0.2
    config.features.num_mel_bins = 23  # the default of Kaldi
    config.features.cmvn = 'speaker'
    config.graph.topology = 'hmm3'  # three states and an output every 10 ms, as a GMM has them
    config.model.subsampling = 1
    config.model.offsets = ((-2, -1, 0, 1, 2), (-3, 0, 3), (-3, 0, 3))
    config.model.num_hidden = 192
    config.model.dropout = 0.3
    config.exchange.num_replicas = 2
    config.exchange.overlap = False  # small network: fresher parameters beat overlap
    config.bootstrap.updates = 800
    config.bootstrap.final_learning_rate = 1e-3  # high, since the network is a mean:
    config.bootstrap.average = 0.4
    config.sequence.graph = 'lattice'
    config.sequence.criterion = 'smbr'
    config.sequence.mmi_weight = 1.0
    config.sequence.boost = 0.5
    config.sequence.updates = 200
    config.sequence.learning_rate = 5e-6  # four speakers are soon learned by heart
    config.sequence.final_learning_rate = 2.5e-6
    config.lattice.acoustic_scale = 0.1
    config.decode.acoustic_scale = 0.12
    config.decode.ce_acoustic_scale = 0.12
    return config
