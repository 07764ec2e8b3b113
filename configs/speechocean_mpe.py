"""Lattice MPE on English by Mandarin speakers: as speechocean_smbr, but phones count, not frames.

    python launch/train.py --config=configs/speechocean_mpe.py --workdir=workdir/speechocean_mpe

The recordings are looked for in $SEQTRAIN_DATA/speechocean (../shared/data where it is not set).
From the CE network of another run: --config.start_from=DIR --config.bootstrap.rounds=0

Measured over two seeds (RESULTS.md): 55.5 ± 0.7 % phone and 66.4 ± 0.2 % word errors after
cross-entropy, 53.2 ± 0.0 % and 64.3 ± 0.5 % after MPE.
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
