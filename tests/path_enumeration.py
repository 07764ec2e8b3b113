"""Every path of a small acceptor, by brute force: what the graph tests compare with."""

import collections

import numpy as np


def enumerate_paths(fsa, num_frames):
    """All accepted paths of `num_frames` arcs as {labels: sorted list of path log-weights}."""
    out = collections.defaultdict(list)
    for src, dst, pdf, weight in zip(fsa.src, fsa.dst, fsa.pdf, fsa.weight, strict=True):
        out[int(src)].append((int(dst), int(pdf), float(weight)))
    partial = [(s, (), float(fsa.initial[s])) for s in np.flatnonzero(np.isfinite(fsa.initial))]
    for _ in range(num_frames):
        partial = [
            (dst, (*labels, pdf), total + weight)
            for state, labels, total in partial
            for dst, pdf, weight in out[int(state)]
        ]
    result = collections.defaultdict(list)
    for state, labels, total in partial:
        if np.isfinite(fsa.final[state]):
            result[labels].append(total + float(fsa.final[state]))
    return {labels: sorted(weights) for labels, weights in result.items()}


def log_sum(paths):
    """log of the summed probability of all paths."""
    weights = [weight for values in paths.values() for weight in values]
    return float(np.logaddexp.reduce(weights)) if weights else float('-inf')
