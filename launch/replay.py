"""Re-executes a recorded asynchronous run and compares its end, bit for bit.

    python launch/replay.py --workdir=DIR

Same machine, same backend as the run. The last line is JSON; exit status 1 if a bit differs.
"""

import json
import sys

from absl import app, flags
from absl import logging as absl_logging

from seqtrain.training import errors, replay

_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'The folder of a finished run of launch/train.py.', required=True
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'Unknown arguments: {argv[1:]}.')
    absl_logging.set_verbosity(absl_logging.WARNING)
    try:
        result = replay.run(_WORKDIR.value)
    except errors.FOR_USERS as error:
        sys.exit(f'{type(error).__name__}: {error}')
    print(json.dumps(result))
    sys.exit(0 if result['identical'] else 1)


if __name__ == '__main__':
    app.run(main)
