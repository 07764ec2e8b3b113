"""Checks the numeric core of this installation: known answers on every backend, in a minute.

    python launch/selfcheck.py [--graph=FILE.txt]

Prints a table; the exit status is 1 if a check fails. Without a checkout, without a real graph:
python -m seqtrain.ops.selfcheck.
"""

import os
import pathlib
import sys

from absl import app, flags

from seqtrain.fsa import Fsa
from seqtrain.ops import selfcheck

_DATA = os.environ.get('SEQTRAIN_DATA', '../shared/data')
_GRAPH = flags.DEFINE_string(
    'graph',
    str(pathlib.Path(_DATA) / 'wsj_den' / 'den_fsm_wsj.txt'),
    'A real denominator graph in OpenFst format; left out where it is empty, or nothing lies at '
    'its usual place.',
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'Unknown arguments: {argv[1:]}.')
    graph = Fsa.read(_GRAPH.value) if pathlib.Path(_GRAPH.value).is_file() else None
    if graph is None:
        if _GRAPH.present and _GRAPH.value:
            raise app.UsageError(f'--graph: there is no file {_GRAPH.value}.')
        print(f'No graph at {_GRAPH.value}: the check on a real denominator is left out.')
    sys.exit(1 if selfcheck.report(graph) else 0)


if __name__ == '__main__':
    app.run(main)
