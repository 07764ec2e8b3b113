"""Checks the numeric core of this installation: known answers on every backend, in seconds.

    python launch/selfcheck.py [--graph=FILE.txt]

Prints a table; the exit status is 1 if a check fails.
"""

import os
import pathlib
import sys

from absl import app, flags

from seqtrain import ops
from seqtrain.fsa import Fsa
from seqtrain.ops import cpu, selfcheck

_DATA = os.environ.get('SEQTRAIN_DATA', '../shared/data')
_GRAPH = flags.DEFINE_string(
    'graph',
    str(pathlib.Path(_DATA) / 'wsj_den' / 'den_fsm_wsj.txt'),
    'A real denominator graph in OpenFst format; left out where the file is absent.',
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
    native = f'cpu ({cpu.instructions()})' if cpu.available() else 'no C++ core'
    print(f'Backends: {", ".join(ops.backends())}; {native}')
    if 'gpu' not in ops.backends() and 'gpu' in ops.backends(interpreted=True):
        print('No GPU here: the kernels of the gpu backend are checked interpreted.')
    graph = Fsa.read(_GRAPH.value) if pathlib.Path(_GRAPH.value).is_file() else None
    if graph is None:
        print(f'No graph at {_GRAPH.value}: the check on a real denominator is left out.')
    failed = 0
    for result in selfcheck.run(graph):
        failed += not result.ok
        print(
            f'{"ok" if result.ok else "FAILED":7s}{result.backend:5s}'
            f'{result.error:9.1e} <= {result.limit:.0e}  {result.check}',
            flush=True,
        )
    print('All checks passed.' if not failed else f'{failed} checks FAILED.')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    app.run(main)
