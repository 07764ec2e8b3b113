r"""Aligns the transcripts of a Kaldi data directory with its recordings, by a trained run.

    python launch/align.py --workdir=DIR --data=KALDI_DIR --out=DIR \
        [--lexicon=FILE] [--reference=phones.ctm --tolerance_ms=30] [--allow_pipes]

Writes pdfs and phones per frame (`ali.ark`, `phones.ark` with `phones.txt`, Kaldi text archives at
the network's output rate), `words.ctm`, `phones.ctm`, `states.ctm`, and a Praat TextGrid per
utterance. With a reference it says which share of the phone boundaries lies within the tolerance of
the given ones. The last line is JSON.
"""

import json
import logging
import sys

from absl import app, flags
from absl import logging as absl_logging

from seqtrain.training import errors, force_align

_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'The folder of a run of launch/train.py.', required=True
)
_DATA = flags.DEFINE_string('data', None, 'Kaldi data directory with `text`.', required=True)
_OUT = flags.DEFINE_string('out', None, 'Folder for the alignments.', required=True)
_LEXICON = flags.DEFINE_string(
    'lexicon', '', "Pronunciations of words that the run's lexicon lacks, in its phones."
)
_REFERENCE = flags.DEFINE_string('reference', '', 'CTM of phones to compare with.')
_TOLERANCE_MS = flags.DEFINE_float(
    'tolerance_ms', 30.0, 'How far apart boundaries may lie.', lower_bound=0.0
)

_PIPES = flags.DEFINE_bool(
    'allow_pipes', False, 'Run the shell commands in wav.scp: for a directory that you trust.'
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'Unknown arguments: {argv[1:]}.')
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger('seqtrain').setLevel(logging.INFO)
    try:
        result = force_align.run(
            _WORKDIR.value,
            _DATA.value,
            _OUT.value,
            lexicon_file=_LEXICON.value,
            reference=_REFERENCE.value,
            tolerance_ms=_TOLERANCE_MS.value,
            allow_pipes=_PIPES.value,
        )
    except errors.FOR_USERS as error:
        sys.exit(f'{type(error).__name__}: {error}')
    print(json.dumps(result))


if __name__ == '__main__':
    app.run(main)
