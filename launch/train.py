"""Trains and scores one experiment.

    python launch/train.py --config=configs/yesno.py --workdir=DIR [--config.field=value ...]

seqtrain/training/config.py lists the fields. The same command goes on with an interrupted run. The
last line is JSON.
"""

import json
import logging
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from seqtrain.exchange.memory import keep_freed_memory
from seqtrain.training import config, errors, experiment

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The experiment.', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run.', required=True)
_RAY_ADDRESS = flags.DEFINE_string(
    'ray_address', '', 'HOST:PORT of a Ray cluster, with --config.exchange.transport=ray.'
)
_QUIET = flags.DEFINE_bool('quiet', False, 'No progress: no bar, no lines in a log.')
flags.mark_flag_as_required('config')


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'Unknown arguments: {argv[1:]}.')
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger('seqtrain').setLevel(logging.INFO)
    keep_freed_memory()
    if _RAY_ADDRESS.value:
        _CONFIG.value.exchange.ray_address = _RAY_ADDRESS.value
    try:
        result = experiment.run(_CONFIG.value, _WORKDIR.value, quiet=_QUIET.value)
    except errors.FOR_USERS as error:
        sys.exit(f'{type(error).__name__}: {error}')
    except KeyboardInterrupt:
        print(f'Interrupted; the same command goes on from here: {_WORKDIR.value}', file=sys.stderr)
        sys.exit(130)
    print(f'Report: {_WORKDIR.value}/report.html')
    print(json.dumps(result))


if __name__ == '__main__':
    app.run(main, flags_parser=config.parse_flags)
