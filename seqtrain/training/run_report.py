"""A finished run as the last line of JSON and as `report.html`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from seqtrain.training.experiment import Experiment


def summary(experiment: Experiment) -> dict[str, Any]:
    """The last line of JSON: JSON types only, rates as fractions."""
    scores = {(s.model, s.unit): s for s in experiment.evaluator.scores}
    final = scores['mmi', 'word']
    applied = [e for e in experiment.monitor.events if e.kind == 'applied']
    rejected = [e for e in experiment.monitor.events if e.kind == 'rejected']
    result = {
        'wer': final.wer,
        'words': final.words,
        'errors': final.errors,
        'insertions': final.insertions,
        'deletions': final.deletions,
        'substitutions': final.substitutions,
        'wer_ce': scores['ce', 'word'].wer,
        'frames_per_s': experiment.monitor.frames_per_s('mmi'),
        'mean_staleness': sum(e.s1 for e in applied) / max(1, len(applied)),
        'updates': len(experiment.monitor.updates),
        'rejected_pushes': len(rejected),
        'skipped': len(experiment.data.features.skipped) + len(experiment.evaluator.skipped),
        'training_s': experiment.monitor.updates[-1].finished_s,
        'decoding_s': sum(s.seconds for s in experiment.evaluator.scores),
        'name': experiment.config.name,
        'mode': experiment.config.exchange.mode,
        'replicas': experiment.config.exchange.num_replicas,
        'seed': experiment.config.seed,
        'backend': jax.default_backend(),
    }
    for (model, unit), score in scores.items():
        if unit == 'phone':
            result['per' if model == 'mmi' else f'per_{model}'] = score.wer
    return result


def write(experiment: Experiment) -> None:
    pass
