"""k2's total score and its derivatives, for launch/benchmark_core.py to time beside ours.

    python launch/benchmark_core.py --out=DIR --other="k2=PYTHON launch/k2_denominator.py" ...

PYTHON is an interpreter that has k2 and PyTorch; nothing of seqtrain is needed. --beam=B is k2's
output_beam: arcs that are worse than the best path by more than B are left out.

Any program can stand here. It gets a folder and seconds as its last arguments. It reads sizes.txt
(B T P S A and the leaky coefficient, in one line), arcs.i32 [A, 3] (source, destination, pdf),
weight.f32 [A], initial.f32 and final.f32 [S] (log-weights), scores.f32 [B, T, P]; calls its loss
and gradient for about so many seconds; prints wall and processor seconds of each call but the
first, a line each; leaves log_z.f64 [B] and gradient.f32 [B, T, P] in the folder.
"""

import argparse
import pathlib
import sys
import time

import numpy as np

try:
    import k2
    import torch
except ImportError as error:
    sys.exit(f'{__doc__}\n{error.name} is not installed for {sys.executable}.')


def acceptor(folder: pathlib.Path, num_states: int) -> k2.Fsa:
    """The graph with one start, which has a copy of every arc that leaves an initial state."""
    src, dst, pdf = np.fromfile(folder / 'arcs.i32', np.int32).reshape(-1, 3).T
    weight = np.fromfile(folder / 'weight.f32', np.float32)
    initial = np.fromfile(folder / 'initial.f32', np.float32)
    final = np.fromfile(folder / 'final.f32', np.float32)
    first = np.flatnonzero(np.isfinite(initial[src]))
    last = np.flatnonzero(np.isfinite(final))
    sources = np.concatenate([np.zeros_like(first), src + 1, last + 1])
    ends = np.full_like(last, num_states + 1)
    destinations = np.concatenate([dst[first] + 1, dst + 1, ends])
    labels = np.concatenate([pdf[first], pdf, np.full_like(last, -1)])
    weights = np.concatenate([weight[first] + initial[src[first]], weight, final[last]])
    arcs = np.stack([sources, destinations, labels, weights.view(np.int32)], 1).astype(np.int32)
    return k2.Fsa(torch.from_numpy(arcs[np.argsort(sources, kind='stable')]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('folder', type=pathlib.Path)
    parser.add_argument('seconds', type=float)
    parser.add_argument('--beam', type=float, default=20.0)
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    *sizes, leaky = (args.folder / 'sizes.txt').read_text().split()
    if float(leaky):
        parser.error('k2 has no leaky HMM; use --leaky=0.')
    batch, frames, pdfs, states, _ = map(int, sizes)
    graph = acceptor(args.folder, states)
    graphs = k2.create_fsa_vec([graph] * batch)
    own = torch.arange(batch, dtype=torch.int32)
    segments = torch.tensor([[b, 0, frames] for b in range(batch)], dtype=torch.int32)
    scores = torch.from_numpy(np.fromfile(args.folder / 'scores.f32', np.float32))
    scores = scores.reshape(batch, frames, pdfs).requires_grad_()
    begin, calls = time.perf_counter(), 0
    while calls < 4 or time.perf_counter() - begin < args.seconds:
        scores.grad = None
        start, worked = time.perf_counter(), time.process_time()
        dense = k2.DenseFsaVec(scores, segments)
        lattice = k2.intersect_dense(graphs, dense, output_beam=args.beam, a_to_b_map=own)
        total = lattice.get_tot_scores(log_semiring=True, use_double_scores=True)
        total.sum().backward()
        if calls:
            print(time.perf_counter() - start, time.process_time() - worked, flush=True)
        calls += 1
    total.detach().numpy().tofile(args.folder / 'log_z.f64')
    scores.grad.numpy().tofile(args.folder / 'gradient.f32')


if __name__ == '__main__':
    main()
