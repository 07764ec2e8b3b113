"""Times the numeric core: loss and gradient of log_partition, and best paths, on every backend.

    python launch/benchmark_core.py --out=DIR [--graphs=wsj,200,2k,10k] [--batches=1,8,32,128]
        [--frames=150,700] [--backends=xla,cpu] [--seconds=2] [--kernels=loss,viterbi]
        [--leaky=1e-5] [--other=NAME=COMMAND]

One thread: taskset -c 0 python launch/benchmark_core.py ... (XLA sizes its pool by the CPUs it
may use). Every case runs in a process of its own. Writes DIR/benchmark_core.json and
DIR/benchmark_core.png. For every case: median and least time of a call, its least processor time
(all threads; it hardly changes when other programs use the machine), GFMA/s (2·A·B·T multiply-adds
per call, A the arcs of the graph as packed, after states with the same future were merged), peak
memory of its process, and for the C++ core the fraction of this machine's own limit: processor time
of a loop with the same gathers, but without dependencies, over that of the call, in one process.

Another's program beside ours, on the same inputs: --other="k2=PYTHON launch/k2_denominator.py";
what it reads and leaves stands in that file. In 'wsj_open' every state is final.
"""

import dataclasses
import json
import multiprocessing
import os
import pathlib
import platform
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from seqtrain import ops
from seqtrain.fsa import Fsa
from seqtrain.ops import cpu

_OUT = flags.DEFINE_string('out', 'benchmark', 'Folder for the JSON and the plot.')
_GRAPHS = flags.DEFINE_list(
    'graphs', ['wsj', '200', '2k', '10k'], 'Of wsj, wsj_open, 200, 2k, 10k, 2kr, 10kr.'
)
_BATCHES = flags.DEFINE_list('batches', ['1', '8', '32', '128'], 'Utterances per batch, B.')
_FRAMES = flags.DEFINE_list('frames', ['150', '700'], 'Frames per utterance, T.')
_BACKENDS = flags.DEFINE_list('backends', [], 'Backends; empty for all present.')
_SECONDS = flags.DEFINE_float('seconds', 2.0, 'Time to spend on every case after compiling.')
_KERNELS = flags.DEFINE_list('kernels', ['loss', 'viterbi'], 'Of loss, viterbi.')
_XLA_WORK = flags.DEFINE_float(
    'xla_work', 1e9, 'Leaves out cases of the xla backend with more arcs times frames than this.'
)
_LEAKY = flags.DEFINE_float('leaky', 0.0, "Coefficient of Kaldi's leaky HMM, of the loss.")
_OTHER = flags.DEFINE_multi_string('other', [], "NAME=COMMAND: another's program, for the loss.")
_NUMERATORS = flags.DEFINE_bool('numerators', True, 'Also 32 numerators of about 450 states each.')
_WSJ = flags.DEFINE_string(
    'wsj',
    os.path.join(os.environ.get('SEQTRAIN_DATA', '../shared/data'), 'wsj_den/den_fsm_wsj.txt'),
    'The WSJ denominator in OpenFst text.',
)


def generated(states: int, arcs: int, pdfs: int, per_state: bool = True) -> Fsa:
    """A random graph; every state is entered through one pdf (as in HMMs) if per_state."""
    rng = np.random.default_rng(0)
    dst = rng.integers(states, size=arcs)
    entered = rng.integers(pdfs, size=states)
    return Fsa(
        src=rng.integers(states, size=arcs),
        dst=dst,
        pdf=entered[dst] if per_state else rng.integers(pdfs, size=arcs),
        weight=np.full(arcs, -np.log(arcs / states)),
        initial=np.full(states, -np.log(states)),
        final=np.zeros(states),
    )


def opened(fsa: Fsa) -> Fsa:
    """The same with every state final, as Kaldi's chain training takes it."""
    return dataclasses.replace(fsa, final=np.zeros(fsa.num_states))


# States, arcs and pdfs; 'r': every arc has a pdf of its own.
GRAPHS: dict[str, Callable[[], Fsa]] = {
    'wsj': lambda: Fsa.read(_WSJ.value),
    'wsj_open': lambda: opened(Fsa.read(_WSJ.value)),
    '200': lambda: generated(200, 2_000, 84),
    '2k': lambda: generated(2_000, 20_000, 500),
    '10k': lambda: generated(10_000, 100_000, 3_000),
    '2kr': lambda: generated(2_000, 20_000, 500, per_state=False),
    '10kr': lambda: generated(10_000, 100_000, 3_000, per_state=False),
}

KERNELS = ('loss', 'viterbi')


@dataclasses.dataclass(frozen=True)
class Case:
    """What to time: a graph by name ('num32': 32 numerators), sizes, a backend and a kernel."""

    graph: str
    batch: int
    frames: int
    backend: str
    kernel: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Of one case. Times in seconds; the limit only for the C++ core's loss.

    peak_mib: of the case's process, of which base_mib were there before its arrays and its program.
    log_z_error, gradient_error: of another's program, the largest relative difference of a log Z
    and the largest difference of an occupancy.
    """

    median_s: float
    least_s: float
    processor_s: float
    peak_mib: float
    base_mib: float
    limit_processor_s: float | None = None
    fraction_of_limit: float | None = None
    log_z_error: float | None = None
    gradient_error: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row(Case, Timing):
    """One measured case. states, arcs: of the graph as packed; of all graphs of a batch."""

    states: int
    arcs: int
    pdfs: int
    gfma_per_s: float


def times(function: Callable[[], object], seconds: float) -> tuple[np.ndarray, float]:
    """Seconds of calls, after one that compiles; and the least processor time of one."""
    jax.block_until_ready(function())
    taken: list[float] = []
    worked: list[float] = []
    begin = time.perf_counter()
    while len(taken) < 3 or (time.perf_counter() - begin < seconds and len(taken) < 50):
        start, work_start = time.perf_counter(), time.process_time()
        jax.block_until_ready(function())
        taken.append(time.perf_counter() - start)
        worked.append(time.process_time() - work_start)
    return np.array(taken), min(worked)


def memory_mib(field: str) -> float:
    """A field of this process's status: 'VmRSS' (now), 'VmHWM' (peak)."""
    try:
        status = pathlib.Path('/proc/self/status').read_text()
    except OSError:  # not Linux: the peak is all there is
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = re.search(rf'{field}:\s+(\d+) kB', status)
    assert found is not None, status
    return int(found[1]) / 1024


def packed(name: str) -> ops.Graph:
    return numerators(32, 84) if name == 'num32' else ops.pack(GRAPHS[name]())


def measure(case: Case, seconds: float, settings: list[str]) -> Row:
    """Times one case; in a fresh process, to which `settings` bring the flags."""
    flags.FLAGS(settings)
    graph = packed(case.graph)
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((case.batch, case.frames, graph.num_pdfs), np.float32)
    other = others().get(case.backend)
    given = case, graph, scores, seconds
    timing = time_other(other, *given) if other else time_ours(*given)
    arcs = int(np.isfinite(graph.weight).sum())
    work = 2 * arcs * case.frames * (1 if graph.batched else case.batch)
    return Row(
        **dataclasses.asdict(case),
        **dataclasses.asdict(timing),
        states=int(np.prod(graph.initial.shape)),
        arcs=arcs,
        pdfs=graph.num_pdfs,
        gfma_per_s=work / timing.median_s / 1e9,
    )


def time_ours(case: Case, graph: ops.Graph, scores: np.ndarray, seconds: float) -> Timing:
    base = memory_mib('VmRSS')
    on_device = jnp.asarray(scores)
    lengths = jnp.full(case.batch, case.frames, jnp.int32)

    def total(x, graph):
        loss = ops.log_partition(x, lengths, graph, leaky=_LEAKY.value, backend=case.backend)
        return loss.sum()

    def best(x, graph):
        return ops.viterbi(x, lengths, graph, backend=case.backend)

    step = jax.jit(jax.value_and_grad(total) if case.kernel == 'loss' else best)
    taken, worked = times(lambda: step(on_device, graph), seconds)
    peak = memory_mib('VmHWM')
    limit = None
    if case.backend == 'cpu' and case.kernel == 'loss' and not graph.batched:
        bare = jax.jit(lambda g: cpu.gather_limit(g, case.batch, case.frames, graph.num_pdfs))
        limit = times(lambda: bare(graph), seconds)[1]
    return Timing(
        median_s=float(np.median(taken)),
        least_s=float(taken.min()),
        processor_s=worked,
        peak_mib=peak,
        base_mib=base,
        limit_processor_s=limit,
        fraction_of_limit=limit / worked if limit else None,
    )


def others() -> dict[str, str]:
    """Commands of other people's programs by name."""
    pairs = [pair.partition('=') for pair in _OTHER.value]
    if wrong := [''.join(pair) for pair in pairs if not (pair[0] and pair[2])]:
        raise app.UsageError(f'--other is NAME=COMMAND; got {wrong}.')
    if taken := [name for name, _, _ in pairs if name in ('xla', 'cpu', 'gpu')]:
        raise app.UsageError(f'--other: {taken} are names of our backends; choose others.')
    return {name: command for name, _, command in pairs}


def time_other(
    command: str, case: Case, graph: ops.Graph, scores: np.ndarray, seconds: float
) -> Timing:
    """Times another's program and compares what it leaves with ours; see k2_denominator.py."""
    fsa = GRAPHS[case.graph]()
    arcs = np.stack([fsa.src, fsa.dst, fsa.pdf], 1)
    parts = {'arcs.i32': arcs, 'weight.f32': fsa.weight, 'scores.f32': scores}
    parts |= {'initial.f32': fsa.initial, 'final.f32': fsa.final}
    sizes = (*scores.shape, fsa.num_states, fsa.num_arcs, _LEAKY.value)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / 'sizes.txt').write_text(' '.join(map(str, sizes)) + '\n')
        for file, array in parts.items():
            array.tofile(folder / file)
        words = [*shlex.split(command), name, str(seconds)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f'{words} failed with {done.returncode}:\n{done.stderr[-2000:]}')
        log_z = np.fromfile(folder / 'log_z.f64')
        gradient = np.fromfile(folder / 'gradient.f32', np.float32).reshape(scores.shape)
    calls = np.array([line.split() for line in done.stdout.splitlines()], np.float64)
    lengths = jnp.full(case.batch, case.frames, jnp.int32)
    expected, back = jax.vjp(
        lambda x: ops.log_partition(x, lengths, graph, leaky=_LEAKY.value), jnp.asarray(scores)
    )
    occupancies = back(jnp.ones(case.batch))[0]
    return Timing(
        median_s=float(np.median(calls[:, 0])),
        least_s=float(calls[:, 0].min()),
        processor_s=float(calls[:, 1].min()),
        peak_mib=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
        base_mib=0.0,
        log_z_error=float(np.abs(log_z / np.asarray(expected) - 1).max()),
        gradient_error=float(np.abs(gradient - np.asarray(occupancies)).max()),
    )


def numerators(batch: int, pdfs: int) -> ops.Graph:
    """Left-to-right graphs of about 450 states with self loops and skips."""
    fsas = []
    for seed in range(batch):
        rng = np.random.default_rng(seed)
        states = int(rng.integers(430, 470))
        here = np.arange(states)
        src, dst = np.r_[here, here[:-1], here[:-2]], np.r_[here, here[1:], here[2:]]
        ends = np.where(here == 0, 0.0, -np.inf)
        final = np.where(here > states // 4, 0.0, -np.inf)
        pdf = rng.integers(pdfs, size=states)[dst]
        fsas.append(Fsa(src, dst, pdf, np.full(len(src), -1.1), ends, final))
    return ops.pack_batch(fsas, num_pdfs=pdfs, device=jax.devices()[0])


def report(row: Row) -> None:
    share = f'{row.fraction_of_limit:6.0%}' if row.fraction_of_limit else '     -'
    print(
        f'{row.graph:8s}B={row.batch:<4d}T={row.frames:<5d}{row.kernel:8s}{row.backend:4s}'
        f'{row.median_s * 1e3:10.2f} ms, least {row.least_s * 1e3:9.2f}, '
        f'processor {row.processor_s * 1e3:9.2f} '
        f'{row.gfma_per_s:8.2f} GFMA/s {share} of the limit {row.peak_mib:7.0f} MiB',
        flush=True,
    )
    if row.log_z_error is not None:
        print(
            f'    log Z differs by {row.log_z_error:.1e}, occupancies by {row.gradient_error:.1e}'
        )


def numbers(flag: flags.FlagHolder) -> list[int]:
    """The whole numbers of a flag, each 1 or more."""
    if wrong := [word for word in flag.value if not (word.isdecimal() and int(word) > 0)]:
        raise app.UsageError(f'--{flag.name} are numbers from 1 on; got {wrong}.')
    return [int(word) for word in flag.value]


def work(name: str, batch: int, frames: int) -> float:
    """Arcs × utterances × frames."""
    return GRAPHS[name]().num_arcs * batch * frames


def measured(cases: list[Case], settings: list[str]) -> Iterator[Row]:
    """Every case in a process of its own; they start from one that has the libraries loaded."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['jax', 'seqtrain.ops'])
    for case in cases:
        with context.Pool(1) as pool:
            row = pool.apply(measure, (case, _SECONDS.value, settings))
        report(row)
        yield row


def plot(rows: list[Row], path: pathlib.Path) -> None:
    """Multiply-adds per second of one processor, over the batch size; dashed: the limit."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    def rate(row: Row, seconds: float) -> float:
        return row.gfma_per_s * row.median_s / seconds

    graphs = list(dict.fromkeys(row.graph for row in rows if row.graph != 'num32'))
    lengths = sorted({row.frames for row in rows if row.graph != 'num32'})
    if not graphs:
        return
    lines = sorted({(row.backend, row.kernel) for row in rows})
    size = (3 * len(graphs) + 1.5, 2.7 * len(lengths))
    figure, grid = pyplot.subplots(
        len(lengths), len(graphs), figsize=size, sharex=True, sharey=True, squeeze=False
    )
    panels = [(graph, frames) for frames in lengths for graph in graphs]
    for axis, (graph, frames) in zip(grid.flat, panels, strict=True):
        here = [row for row in rows if (row.graph, row.frames) == (graph, frames)]
        for backend, kernel in lines:
            line = [row for row in here if (row.backend, row.kernel) == (backend, kernel)]
            rates = [rate(row, row.processor_s) for row in line]
            axis.loglog([row.batch for row in line], rates, 'o-', label=f'{backend} {kernel}')
        bound = [(r.batch, rate(r, r.limit_processor_s)) for r in here if r.limit_processor_s]
        axis.loglog(*(zip(*bound, strict=True) if bound else ([], [])), 'k--', label='limit')
        axis.set_title(f'{graph}, T = {frames}')
        axis.set_xticks(sizes := sorted({row.batch for row in rows}), map(str, sizes))
        axis.minorticks_off()
    figure.supxlabel('utterances per batch')
    figure.supylabel('GFMA/s of one processor')
    grid[0][-1].legend(bbox_to_anchor=(1.02, 1), loc='upper left')
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'Unknown arguments: {argv[1:]}.')
    choices = ((_GRAPHS, GRAPHS), (_KERNELS, KERNELS), (_BACKENDS, ops.backends()))
    for flag, known in choices:
        if unknown := [name for name in flag.value if name not in known]:
            raise app.UsageError(f'Unknown {flag.name} {unknown}; there are {list(known)}.')
    if {'wsj', 'wsj_open'} & set(_GRAPHS.value) and not pathlib.Path(_WSJ.value).is_file():
        raise app.UsageError(
            f'There is no WSJ denominator at {_WSJ.value}: name it with --wsj, or leave it '
            'out with --graphs=200,2k,10k.'
        )
    backends = _BACKENDS.value or ops.backends()
    cases = [
        Case(name, batch, frames, backend, kernel)
        for name in _GRAPHS.value
        for frames in numbers(_FRAMES)
        for batch in numbers(_BATCHES)
        for kernel in _KERNELS.value
        for backend in (*backends, *(others() if kernel == 'loss' else ()))
        if backend != 'xla' or work(name, batch, frames) <= _XLA_WORK.value
    ]
    if _NUMERATORS.value:
        cases += [Case('num32', 32, 150, b, k) for k in _KERNELS.value for b in backends]
    rows = list(measured(cases, sys.argv))
    out = pathlib.Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    machine = {
        'processor': platform.processor() or platform.machine(),
        'cpus': len(os.sched_getaffinity(0)),
        'instructions': cpu.instructions() if cpu.available() else None,
        'jax': jax.__version__,
    }
    content = {'machine': machine, 'rows': [dataclasses.asdict(r) for r in rows]}
    (out / 'benchmark_core.json').write_text(json.dumps(content, indent=1) + '\n')
    plot(rows, out / 'benchmark_core.png')
    print(f'Wrote {out / "benchmark_core.json"} and {out / "benchmark_core.png"}.')


if __name__ == '__main__':
    app.run(main)
