"""Boosted lattice MMI on English by Mandarin speakers: as speechocean_mpe, with another criterion.

    python launch/train.py --config=configs/speechocean_mmi.py --workdir=workdir/speechocean_mmi

The recordings are looked for in $SEQTRAIN_DATA/speechocean (../shared/data where it is not set).
From the CE network of another run: --config.start_from=DIR --config.bootstrap.rounds=0
sMBR smoothed by MMI: --config.sequence.criterion=smbr --config.sequence.mmi_weight=1.0 (and
--config.sequence.boost=0.1); without lattices: --config.sequence.graph=lattice_free
--config.sequence.acoustic_scale=0.3 --config.graph.phone_lm_order=2

Measured over three seeds (RESULTS.md): 57.9 ± 0.6 % phone and 69.7 ± 0.7 % word errors after
cross-entropy, 53.1 ± 0.8 and 66.0 ± 1.5 % after boosted MMI. Fewer word errors, more phone errors
in about a third of the time: configs/kaldi.py.
"""

import pathlib
import runpy

mpe = runpy.run_path(str(pathlib.Path(__file__).with_name('speechocean_mpe.py')))


def get_config():
    config = mpe['get_config']()
    config.name = 'speechocean_mmi'
    config.sequence.criterion = 'mmi'
    config.sequence.boost = 0.5
    config.sequence.updates = 3000
    config.sequence.ce_weight = 0.1
    config.decode.phone_acoustic_scale = 0.4
    config.decode.ce_phone_acoustic_scale = 0.5
    return config
