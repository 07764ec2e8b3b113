"""yesno (OpenSLR SLR1): eight Hebrew words an utterance, one speaker.

    python launch/train.py --config=configs/yesno.py --workdir=workdir/yesno

Downloads the archive (4.7 MB); a local copy: --config.data.source=waves_yesno.tar.gz

Measured (RESULTS.md): test WER 0.43, 0.00, 0.00 % for seeds 0, 1, 2 of 232 words; 13 to 15 s of
training on two cores.
"""

from seqtrain.training import config as config_lib


def get_config():
    config = config_lib.default()
    config.name = 'yesno'
    config.data.corpus = 'yesno'
    config.graph.word_lm_order = 0  # every training utterance begins with NO, every test one not
    config.data.spec_augment = True
    config.features.dither = 400.0  # hides the digital silence at the edges of some recordings
    config.model.num_hidden = 96
    config.exchange.num_replicas = 2
    config.exchange.overlap = False  # small network: fresher parameters beat overlap
    return config
