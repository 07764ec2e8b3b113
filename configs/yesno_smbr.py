"""yesno by cross-entropy, then by lattice sMBR: the shortest way through training on lattices.

    python launch/train.py --config=configs/yesno_smbr.py --workdir=workdir/yesno_smbr

The recordings are looked for in $SEQTRAIN_DATA/yesno (../shared/data where it is not set).
Other criteria: --config.sequence.criterion=mmi (or mpe).

Measured over three seeds (RESULTS.md): 0.0 % of 232 words after cross-entropy, 0.0 % after lattice
sMBR.
"""

from seqtrain.training import config as config_lib


def get_config():
    config = config_lib.default()
    config.name = 'yesno_smbr'
    config.data.train = '$SEQTRAIN_DATA/yesno/train'
    config.data.test = '$SEQTRAIN_DATA/yesno/test'
    config.data.lexicon = '$SEQTRAIN_DATA/yesno/lexicon.txt'
    config.graph.word_lm_order = 0  # every training utterance begins with NO, every test one not
    config.features.dither = 400.0  # hides the digital silence at the edges of some recordings
    config.model.num_hidden = 96
    config.exchange.num_replicas = 2
    config.exchange.overlap = False  # small network: fresher parameters beat overlap
    config.sequence.graph = 'lattice'
    config.sequence.criterion = 'smbr'
    config.sequence.updates = 60
    config.sequence.learning_rate = 5e-5
    config.sequence.final_learning_rate = 2e-5
    config.lattice.acoustic_scale = 0.1
    config.decode.acoustic_scale = 0.3
    return config
