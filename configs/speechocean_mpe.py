"""Lattice MPE on English by Mandarin speakers: as speechocean_smbr, but phones count, not frames.

    python launch/train.py --config=configs/speechocean_mpe.py --workdir=workdir/speechocean_mpe

The recordings are looked for in $SEQTRAIN_DATA/speechocean (../shared/data where it is not set).
From the CE network of another run: --config.start_from=DIR --config.bootstrap.rounds=0

Measured over three seeds with the bootstrap and the language model of before
(docs/experiments.md): 57.9 ± 0.8 % phone errors after cross-entropy, 55.3 ± 0.3 % after MPE,
73.8 ± 1.1 and 73.2 ± 1.4 % word errors. Fewer of either kind: configs/speechocean_mmi.py.
"""

import pathlib
import runpy

smbr = runpy.run_path(str(pathlib.Path(__file__).with_name('speechocean_smbr.py')))


def get_config():
    config = smbr['get_config']()
    config.name = 'speechocean_mpe'
    config.sequence.criterion = 'mpe'
    config.sequence.mmi_weight = config.sequence.boost = 0.0
    config.sequence.updates = 1500
    config.sequence.ce_weight = 0.02  # phones count, not frames: all is a sixth as large
    config.decode.phone_acoustic_scale = 0.5
    return config
