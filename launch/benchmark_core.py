"""Times the numeric core: loss and gradient of log_partition, for every backend present.

    python launch/benchmark_core.py --out=DIR [--graphs=wsj,200,2k,10k] [--batches=1,8,32,128]
        [--frames=150,700] [--backends=xla,cpu] [--seconds=2]

One thread: taskset -c 0 python launch/benchmark_core.py ... (XLA sizes its pool by the CPUs it
may use). Writes DIR/benchmark_core.json and DIR/benchmark_core.png. For every case: median time,
GFMA/s (2·A·B·T multiply-adds per call), peak memory of the process so far, and for the C++ core
the fraction of this machine's own limit, which a loop with the same gathers, but without
dependencies, reaches in the same run.
"""

import dataclasses
import json
import os
import pathlib
import platform
import resource
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from seqtrain import ops
from seqtrain.fsa import Fsa
from seqtrain.ops import cpu

_OUT = flags.DEFINE_string('out', 'benchmark', 'Folder for the JSON and the plot.')
_GRAPHS = flags.DEFINE_list('graphs', ['wsj', '200', '2k', '10k'], 'Graphs; see GRAPHS.')
_BATCHES = flags.DEFINE_list('batches', ['1', '8', '32', '128'], 'Utterances per batch, B.')
_FRAMES = flags.DEFINE_list('frames', ['150', '700'], 'Frames per utterance, T.')
_BACKENDS = flags.DEFINE_list('backends', [], 'Backends; empty for all present.')
_SECONDS = flags.DEFINE_float('seconds', 2.0, 'Time to spend on every case after compiling.')
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


# States, arcs and pdfs; 'r': every arc has a pdf of its own.
GRAPHS: dict[str, Callable[[], Fsa]] = {
    'wsj': lambda: Fsa.read(_WSJ.value),
    '200': lambda: generated(200, 2_000, 84),
    '2k': lambda: generated(2_000, 20_000, 500),
    '10k': lambda: generated(10_000, 100_000, 3_000),
    '2kr': lambda: generated(2_000, 20_000, 500, per_state=False),
    '10kr': lambda: generated(10_000, 100_000, 3_000, per_state=False),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured case. Times in seconds; limit_s and fraction only for the C++ core."""

    graph: str
    states: int
    arcs: int
    pdfs: int
    batch: int
    frames: int
    backend: str
    median_s: float
    gfma_per_s: float
    peak_mib: float
    limit_s: float | None = None
    fraction_of_limit: float | None = None


def median_time(function: Callable[[], object]) -> float:
    """Median seconds of a call, after one that compiles."""
    jax.block_until_ready(function())
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - begin < _SECONDS.value and len(times) < 50):
        start = time.perf_counter()
        jax.block_until_ready(function())
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def measure(name: str, graph: ops.Graph, batch: int, frames: int, backend: str, arcs: int) -> Row:
    """Times loss and gradient of one case."""
    pdfs = graph.num_pdfs
    rng = np.random.default_rng(1)
    scores = jnp.asarray(rng.normal(size=(batch, frames, pdfs)), jnp.float32)
    lengths = jnp.full(batch, frames, jnp.int32)

    @jax.jit
    def step(scores, graph):
        def total(x):
            return ops.log_partition(x, lengths, graph, backend=backend).sum()

        return jax.value_and_grad(total)(scores)

    seconds = median_time(lambda: step(scores, graph))
    limit = None
    if backend == 'cpu' and not graph.batched:
        bare = jax.jit(lambda g: cpu.gather_limit(g, batch, frames, pdfs))
        limit = median_time(lambda: bare(graph))
    return Row(
        graph=name,
        states=graph.num_states,
        arcs=arcs,
        pdfs=pdfs,
        batch=batch,
        frames=frames,
        backend=backend,
        median_s=seconds,
        gfma_per_s=2 * arcs * frames * (1 if graph.batched else batch) / seconds / 1e9,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        limit_s=limit,
        fraction_of_limit=limit / seconds if limit else None,
    )


def numerators(batch: int, pdfs: int) -> tuple[ops.Graph, int]:
    """Left-to-right graphs of about 450 states with self loops and skips; and all their arcs."""
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
    graphs = ops.pack_batch(fsas, num_pdfs=pdfs, device=jax.devices()[0])
    return graphs, sum(f.num_arcs for f in fsas)


def report(row: Row) -> None:
    share = f'{row.fraction_of_limit:6.0%}' if row.fraction_of_limit else '     -'
    print(
        f'{row.graph:8s}B={row.batch:<4d}T={row.frames:<5d}{row.backend:5s}'
        f'{row.median_s * 1e3:10.2f} ms {row.gfma_per_s:8.2f} GFMA/s {share} of the limit '
        f'{row.peak_mib:7.0f} MiB',
        flush=True,
    )


def plot(rows: list[Row], path: pathlib.Path) -> None:
    """GFMA/s over the batch size, one panel per graph and T."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    panels = sorted({(r.graph, r.frames) for r in rows})
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(3.2 * len(panels), 3), sharey=True, squeeze=False
    )
    for axis, (graph, frames) in zip(axes[0], panels, strict=True):
        for backend in sorted({r.backend for r in rows}):
            line = [r for r in rows if (r.graph, r.frames, r.backend) == (graph, frames, backend)]
            axis.loglog([r.batch for r in line], [r.gfma_per_s for r in line], 'o-', label=backend)
        axis.set(title=f'{graph}, T = {frames}', xlabel='utterances per batch')
    axes[0][0].set_ylabel('GFMA/s')
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
    backends = _BACKENDS.value or list(ops.backends())
    if unknown := [name for name in _GRAPHS.value if name not in GRAPHS]:
        raise app.UsageError(f'Unknown graphs {unknown}; there are {list(GRAPHS)}.')
    rows: list[Row] = []
    for name in _GRAPHS.value:
        fsa = GRAPHS[name]()
        graph = ops.pack(fsa)
        for frames in map(int, _FRAMES.value):
            for batch in map(int, _BATCHES.value):
                for backend in backends:
                    rows.append(measure(name, graph, batch, frames, backend, fsa.num_arcs))
                    report(rows[-1])
    if _NUMERATORS.value:
        for backend in backends:
            graphs, arcs = numerators(32, 84)
            rows.append(measure('num32', graphs, 32, 150, backend, arcs))
            report(rows[-1])
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
