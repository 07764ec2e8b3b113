"""Lattice sMBR on digit strings spoken by espeak-ng; needs no data and no network.

    python launch/train.py --config=configs/synth_digits_smbr.py --workdir=workdir/synth_digits_smbr

Other criteria: --config.sequence.criterion=mmi (or mpe). Formant speech proves the machinery, not
accuracy on people.

Measured (RESULTS.md): 2.0, 0.6, 1.4 % of 500 words after cross-entropy and 0.6, 0.4, 0.6 % after
lattice sMBR for seeds 0, 1, 2.
"""

from seqtrain.training import config as config_lib


def get_config():
    config = config_lib.default()
    config.name = 'synth_digits_smbr'
    config.data.corpus = 'synth_digits'
    config.data.batch_size = 16
    config.data.speeds = (0.9, 1.0, 1.1)
    config.bootstrap.updates = 100
    config.exchange.num_replicas = 4
    config.exchange.overlap = False  # the devices are the host: nothing to overlap
    config.sequence.graph = 'lattice'
    config.sequence.criterion = 'smbr'
    config.sequence.updates = 300
    config.sequence.learning_rate = 2e-4
    config.sequence.final_learning_rate = 5e-5
    config.lattice.acoustic_scale = 0.3
    config.decode.acoustic_scale = 0.3
    return config
