r"""Decodes a Kaldi data directory with a trained run.

    python launch/decode.py --workdir=DIR --data=KALDI_DIR [--output=FILE] [--unit=phone] \
        [--acoustic_scales=0.1,0.2,0.3] [--word_lm=FILE.arpa] [--average=10] \
        [--against=FILE] [--allow_pipes]

Writes hypotheses as Kaldi `text`; scores them where the directory has a `text`. Of several acoustic
scales it takes the one with the fewest errors, as Kaldi's scoring does. Another language model of
words comes as an ARPA file. --average=10 takes the mean of the networks in the last ten checkpoints
of a run that has kept as many (--config.checkpoint.keep). --against compares with the hypotheses of
another run: whether the difference is more than chance, by a paired bootstrap over utterances. The
last line is JSON.
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
_UNIT = flags.DEFINE_enum('unit', 'word', ['word', 'phone'], 'What is recognised.')
_SCALES = flags.DEFINE_list(
    'acoustic_scales', [], "Numbers; default: the one of the run's config (config.decode)."
)
_AGAINST = flags.DEFINE_string('against', '', "Another system's hypotheses, Kaldi `text`.")
_AVERAGE = flags.DEFINE_integer('average', 1, 'Checkpoints to average.', lower_bound=1)
_WORD_LM = flags.DEFINE_string('word_lm', '', "ARPA file; default: the run's language model.")

_PIPES = flags.DEFINE_bool(
    'allow_pipes', False, 'Run the shell commands in wav.scp: for a directory that you trust.'
)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f'Unknown arguments: {argv[1:]}.')
    absl_logging.set_verbosity(absl_logging.WARNING)
    logging.getLogger('seqtrain').setLevel(logging.INFO)
    try:
        scales = [float(scale) for scale in _SCALES.value]
    except ValueError as error:
        raise app.UsageError(f'--acoustic_scales must be numbers: {error}.') from None
    try:
        result = decode.run(
            _WORKDIR.value,
            _DATA.value,
            _OUTPUT.value,
            unit=_UNIT.value,
            acoustic_scales=scales,
            word_lm=_WORD_LM.value,
            average=_AVERAGE.value,
            against=_AGAINST.value,
            allow_pipes=_PIPES.value,
        )
    except errors.FOR_USERS as error:
        sys.exit(f'{type(error).__name__}: {error}')
    print(json.dumps(result))


if __name__ == '__main__':
    app.run(main)
