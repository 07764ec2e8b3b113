"""Pictures of simulated runs side by side: updates, staleness, loss, against virtual time."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from seqtrain.exchange.scenario import Result


def compare(results: Mapping[str, Result], path: str | os.PathLike) -> None:
    """Writes one PNG with three panels: pushes applied, staleness, loss (where there is one).

    Args:
      results: name of the run -> what came out of it.
      path: the PNG to write.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, (updates, staleness, loss) = plt.subplots(1, 3, figsize=(15, 4.2))
    for name, result in results.items():
        thin = slice(None, None, max(1, len(result.time_s) // 2000))
        updates.plot(result.time_s[thin], np.arange(len(result.time_s))[thin], label=name)
        if result.staleness.any():  # a synchronous run is all zeros: a bar that hides the rest
            staleness.hist(result.staleness, bins=40, histtype='step', density=True, label=name)
        if result.loss:
            times, values = zip(*result.loss, strict=True)
            loss.semilogy(times, values, label=name)
    updates.set(xlabel='virtual time (s)', ylabel='pushes applied', title='throughput')
    staleness.set(xlabel='s1 (versions)', ylabel='density', title='staleness')
    loss.set(xlabel='virtual time (s)', ylabel='loss', title='loss')
    for axis in (updates, staleness, loss):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize='small')
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
