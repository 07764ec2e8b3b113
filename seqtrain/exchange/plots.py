"""Pictures of simulated runs side by side: updates, staleness, loss, against virtual time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from seqtrain.exchange.scenario import Result

POINTS = 2000
"""Updates that are drawn of a run: more cannot be seen."""


def compare(results: Mapping[str, Result], path: str | os.PathLike) -> None:
    """Writes one PNG: pushes applied, staleness, and the loss where there is one.

    Args:
      results: name of the run -> what came out of it.
      path: the PNG to write.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    panels = [_updates, _staleness] + [_loss] * any(run.loss for run in results.values())
    size = (4.8 * len(panels), 3.8)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout='constrained')
    for axis, draw in zip(axes, panels, strict=True):
        draw(axis, {name: (run, f'C{i}') for i, (name, run) in enumerate(results.items())})
        axis.spines[['top', 'right']].set_visible(False)
        axis.legend(fontsize='small', frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _updates(axis: Any, runs: Mapping[str, tuple[Result, str]]) -> None:
    for name, (run, color) in runs.items():
        shown = np.unique(np.linspace(0, len(run.time_s) - 1, POINTS).astype(int))
        shown = shown[: len(run.time_s)]
        times = [0.0, *run.time_s[shown], run.scenario.duration_s]
        counts = [0, *(shown + 1), len(run.time_s)]
        label = f'{name}: {run.throughput:,.4g} per s'
        axis.step(times, counts, where='post', color=color, label=label)
    axis.set(xlabel='virtual time (s)', title='pushes applied', xlim=(0, None), ylim=(0, None))
    axis.yaxis.set_major_formatter('{x:,.0f}')


def _staleness(axis: Any, runs: Mapping[str, tuple[Result, str]]) -> None:
    """A run whose updates are all fresh is named but not drawn: its one bar would hide the rest."""
    ages = [run.staleness for run, _ in runs.values() if run.staleness.any()]
    most = max((np.quantile(one, 0.999) for one in ages), default=1.0)
    width = max(1, round(most / 40))
    bins = np.arange(0, most + 2 * width, width)
    for name, (run, color) in runs.items():
        if not run.staleness.any():
            what = 'none' if len(run.staleness) else 'no pushes'
            axis.plot([], [], color=color, label=f'{name}: {what}')
            continue
        label = f'{name}: mean {run.staleness.mean():,.1f}, oldest {run.staleness.max():,}'
        axis.hist(
            np.minimum(run.staleness, bins[-1]),
            bins,
            weights=np.full(len(run.staleness), 1 / len(run.staleness)),
            color=color,
            histtype='stepfilled',
            alpha=0.5,
            label=label,
        )
    axis.set(
        xlabel='age s1 (versions)', ylabel='share of pushes', title='staleness', xlim=(0, None)
    )
    axis.xaxis.set_major_formatter('{x:,.0f}')


def _loss(axis: Any, runs: Mapping[str, tuple[Result, str]]) -> None:
    for name, (run, color) in runs.items():
        if run.loss:
            times, values = zip(*run.loss, strict=True)
            axis.semilogy(times, values, color=color, label=f'{name}: {values[-1]:.3g}')
    axis.set(xlabel='virtual time (s)', title='loss', xlim=(0, None))
