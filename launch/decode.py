"""Decodes a Kaldi data directory with a trained run.

    python launch/decode.py --workdir=DIR --data=KALDI_DIR [--output=FILE]

Writes hypotheses as Kaldi `text`; scores them where the directory has a `text`. The last line is
JSON.
"""

import json
import logging
import sys

from absl import app, flags
from absl import logging as absl_logging

from seqtrain.training import decode, errors

_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'The folder of a run of launch/train.py.', required=True
)
_DATA = flags.DEFINE_string('data', None, 'Kaldi data directory.', required=True)
_OUTPUT = flags.DEFINE_string('output', '', 'Hypotheses; default: WORKDIR/decode/<name>/text.')


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'Unknown arguments: {argv[1:]}.')
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger('seqtrain').setLevel(logging.INFO)
    try:
        result = decode.run(_WORKDIR.value, _DATA.value, _OUTPUT.value)
    except errors.FOR_USERS as error:
        sys.exit(f'{type(error).__name__}: {error}')
    print(json.dumps(result))


if __name__ == '__main__':
    app.run(main)
