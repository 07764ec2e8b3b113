"""Boosted lattice MMI on English by Mandarin speakers: as speechocean_smbr, with another criterion.

    python launch/train.py --config=configs/speechocean_mmi.py --workdir=workdir/speechocean_mmi

The recordings are looked for in $SEQTRAIN_DATA/speechocean (../shared/data where it is not set).
From the CE network of another run: --config.start_from=DIR --config.bootstrap.rounds=0
Without lattices: --config.sequence.graph=lattice_free --config.sequence.acoustic_scale=0.3
--config.graph.phone_lm_order=2

Measured over three seeds (RESULTS.md): 55.7 ± 0.6 % phone and 66.3 ± 0.1 % word errors after
cross-entropy, 52.4 ± 0.2 % and 63.9 ± 0.6 % after boosted MMI. As few word errors, more phone
errors in about a third of the time: configs/kaldi.py.
"""

import pathlib
import runpy

smbr = runpy.run_path(str(pathlib.Path(__file__).with_name('speechocean_smbr.py')))


def get_config():
    config = smbr['get_config']()
    config.name = 'speechocean_mmi'
    config.sequence.criterion = 'mmi'
    config.sequence.mmi_weight = 0.0
    config.sequence.ce_weight = 0.1
    config.decode.phone_acoustic_scale = 0.4
    return config
