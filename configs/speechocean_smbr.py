"""Lattice sMBR on English by Mandarin speakers: triphones, then lattices made on the fly.

    python launch/train.py --config=configs/speechocean_smbr.py --workdir=workdir/speechocean_smbr

The recordings are looked for in $SEQTRAIN_DATA/speechocean (../shared/data where it is not set).
Monophones by cross-entropy and lattice-free MMI, triphones on their alignments by cross-entropy,
then sMBR smoothed by boosted MMI on lattices of phones. From the end of another run, without a
bootstrap: --config.start_from=DIR --config.bootstrap.rounds=0. Lattices of words for every batch:
--config.lattice.unit=word --config.lattice.word_lm_order=1 --config.lattice.mode=decode

Measured over three seeds (RESULTS.md): 55.7 ± 0.6 % phone and 65.8 ± 1.0 % word errors after
cross-entropy, 52.5 ± 0.3 % and 64.8 ± 0.1 % after sMBR, seed 0 as one program from a fresh clone.
As few phone errors and fewer word errors: configs/speechocean_mmi.py.
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
    config.bootstrap.mono_offsets = ((-2, -1, 0, 1, 2), (-1, 0, 1), (-1, 0, 1))
    config.bootstrap.mono_updates = 400
    config.bootstrap.mono_sequence_updates = 2000
    config.bootstrap.rounds = 3
    config.bootstrap.updates = 1400
    config.bootstrap.final_learning_rate = 1e-4
    config.sequence.graph = 'lattice'
    config.sequence.criterion = 'smbr'
    config.sequence.mmi_weight = 10.0  # frames count, so that risk is several times as large
    config.sequence.boost = 0.5
    config.sequence.updates = 3000
    config.sequence.learning_rate = 1e-3
    config.sequence.final_learning_rate = 1e-4
    config.sequence.ce_weight = 1.0  # a tenth of MMI's
    config.lattice.acoustic_scale = 0.3  # a third of Kaldi's frames, three times its scale
    config.lattice.unit = 'phone'
    config.lattice.word_lm_order = 2
    config.lattice.mode = 'epoch'  # phone lattices are deep: each serves twice
    config.lattice.epochs_per_lattice = 2
    config.decode.acoustic_scale = 0.2
    config.decode.ce_acoustic_scale = 0.2
    config.decode.phone_acoustic_scale = 0.3  # a phone bigram says less than a word bigram
    config.decode.ce_phone_acoustic_scale = 0.5
    config.decode.phone_error_rate = True
    return config
