"""What a run on lattices says of them: numbers, curves, and one of them drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from seqtrain.lattices import oracle_errors
from seqtrain.lattices.drawing import to_svg
from seqtrain.training import lattice
from seqtrain.training.lattice_source import LatticeWork
from seqtrain.training.monitor import Update

CURVES = (
    *('lattice_depth', 'oracle_wer', 'rival_occupancy'),
    *('lattice_speed', 'lattice_idle_s'),
)


def summary(updates: Sequence[Update], stage: str) -> dict[str, Any]:
    """Rates of a stage on lattices; empty where it was on none.

    `lattice_speed` is audio that got lattices over search seconds, times real time, of one
    replica's thread; `lattice_depth` the mean over batches; batches without a lattice count in
    neither. `lattice_oracle_wer` is errors over words (or phones, if they are of phones) of the
    utterances that were looked at, one of each batch; `device_idle_share` the share of the time
    that replicas' devices waited for lattices.
    """
    rows = [u for u in updates if u.stage == stage and 'lattice_s' in u.metrics]
    if not rows:
        return {}
    rates = lattice.rates([u.metrics for u in rows])
    depths = [u.metrics['lattice_depth'] for u in rows if 'lattice_depth' in u.metrics]
    return {
        'lattice_speed': rates.get('lattice_speed', 0.0),
        'lattice_depth': float(np.mean(depths)) if depths else 0.0,
        'lattice_oracle_wer': rates.get('oracle_wer'),
        'lattices_failed': len({index for u in rows for index, _ in u.reasons}),
        'lattices_pruned': int(sum(u.metrics['lattice_pruned'] for u in rows)),
        'device_idle_share': _idle_share(rows),
    }


def _idle_share(rows: Sequence[Update]) -> float:
    """Without the first batch of each replica, which holds the compilation."""
    by_replica: dict[int, list[Update]] = {}
    for row in sorted(rows, key=lambda u: u.started_s):
        by_replica.setdefault(row.replica, []).append(row)
    later = [some[1:] for some in by_replica.values() if len(some) > 1]
    whole = sum(max(u.finished_s for u in some) - some[0].started_s for some in later)
    idle = sum(u.metrics['lattice_idle_s'] for some in later for u in some)
    return idle / whole if whole else 0.0


def picture(work: LatticeWork, params: Any) -> tuple[str, str] | None:
    """Caption and SVG of the lattice of an utterance of middle length; None if it has none."""
    data = work.maker.data
    by_length = np.argsort(data.features.num_frames, kind='stable')
    index = int(by_length[len(data) // 2])
    bucket = data.buckets.of(int(data.features.num_frames[index]))
    batch = data.buckets.batch(bucket, [index], data.features.features)
    logits, lengths = (np.asarray(x) for x in work.forward(params, batch.features, batch.lengths))
    found = work.maker.generator.decode(logits[0, : lengths[0]])
    if found is None:
        return None
    text, unit = work.maker.text(index), work.maker.unit
    caption = (
        f'{data.features.ids[index]}: {text}. {found.depth():.1f} arcs per frame; the best path '
        f'that it holds has {oracle_errors(found, text)} errors in {len(text.split())} {unit}s.'
    )
    return caption, to_svg(found)
