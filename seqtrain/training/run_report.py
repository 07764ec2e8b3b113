"""A finished run as the last line of JSON and as a report page."""

from __future__ import annotations

import collections
import os
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import yaml

from seqtrain import losses, report
from seqtrain.exchange import Event, eventlog
from seqtrain.ops import cpu
from seqtrain.training import lattice_report
from seqtrain.training.monitor import Update

if TYPE_CHECKING:
    from seqtrain.training.experiment import Experiment

_MODES = {'async': 'asynchronous', 'sync': 'synchronous'}
_MODELS = {
    'start': 'start',
    'ce': 'cross-entropy',
    'mmi': 'LF-MMI',
    'smbr': 'LF-sMBR',
    'mpe': 'LF-MPE',
}


def beginning(run: Experiment, params: Any) -> str:
    """What will be trained on what, for the log."""
    sizes = {
        'training utterances': len(run.data),
        'phones': len(run.data.lexicon.phones),
        'pdfs': run.data.topology.num_pdfs,
        'weights': sum(leaf.size for leaf in jax.tree.leaves(params)),
    }
    listed = ', '.join(f'{size:,} {name}' for name, size in sizes.items())
    exchange = run.config.exchange
    return f'{run.workdir.path}: {listed}; {exchange.num_replicas} {exchange.mode} replicas.'


def summary(run: Experiment) -> dict[str, Any]:
    """The last line of JSON: JSON types only, rates as fractions, times in seconds."""
    scores = {(s.model, s.unit): s for s in run.evaluator.scores}
    first, criterion = run.first_model, run.final_model
    final = scores[criterion, 'word']
    events = eventlog.standing(run.monitor.events)
    applied = _of_kind(events, 'applied')
    result = {
        'wer': final.wer,
        'words': final.words,
        'errors': final.errors,
        'insertions': final.insertions,
        'deletions': final.deletions,
        'substitutions': final.substitutions,
        'wer_interval': [final.low, final.high],
        # None: its file was deleted.
        f'wer_{first}': scores[first, 'word'].wer if (first, 'word') in scores else None,
        'frames_per_s': run.monitor.frames_per_s(run.stages[-1].name),
        'mean_staleness': sum(e.s1 for e in applied) / max(1, len(applied)),
        'updates': len(run.monitor.updates),
        'rejected_pushes': rejected_pushes(events),
        'replica_failures': len(run.monitor.failures),
        'skipped': len(_skipped(run)),
        'redone_in_log_domain': cpu.redone() if cpu.available() else None,
        'training_s': run.monitor.updates[-1].finished_s if run.monitor.updates else 0.0,
        'decoding_s': sum(s.seconds for s in run.evaluator.scores),
        'name': run.config.name,
        'criterion': criterion,
        'mode': run.config.exchange.mode,
        'replicas': run.config.exchange.num_replicas,
        'seed': run.config.seed,
        'backend': jax.default_backend(),
    }
    result |= lattice_report.summary(run.monitor.updates, run.stages[-1].name)
    if run.development:
        planned = sum(stage.updates for stage in run.stages)
        result |= run.development.summary(to_the_end=result['updates'] >= planned)
    for (model, unit), score in scores.items():
        if unit == 'phone':
            result['per' if model == criterion else f'per_{model}'] = score.wer
            if model == criterion:
                result['per_interval'] = [score.low, score.high]
    return result | _changes(run)


def _changes(run: Experiment) -> dict[str, Any]:
    """What the sequence stage changed: 95 % interval, and how likely it is a gain."""
    result: dict[str, Any] = {}
    if run.final_model == run.first_model:
        return result
    for unit, rate in (('word', 'wer'), ('phone', 'per')):
        change = run.evaluator.change(run.final_model, run.first_model, unit)
        if change is not None:
            result[f'{rate}_change'] = [change.low, change.high]
            result[f'{rate}_improves'] = change.improves
    return result


def rejected_pushes(events: Sequence[Event]) -> int:
    """How many pushes some shard refused (a refused pull or join has no number)."""
    refused = _of_kind(events, 'rejected')
    return len({(event.worker, event.life, event.seq) for event in refused if event.seq >= 0})


def write(
    run: Experiment, result: dict[str, Any], pictures: Sequence[tuple[str, str]] = ()
) -> None:
    """Writes `report.html` and its pictures into the run's folder.

    Args:
      run: finished.
      result: from `summary`.
      pictures: captions and SVG elements of lattices.
    """
    updates = run.monitor.updates
    applied = _of_kind(eventlog.standing(run.monitor.events), 'applied')
    exchange = run.config.exchange
    record = report.RunRecord(
        title=f'{run.config.name}: {_MODES[run.config.exchange.mode]} sequence training',
        config=yaml.safe_dump(run.workdir.config, sort_keys=True),
        scalars=_curves(updates) | _looks(run),
        wer=[
            report.Wer(
                f'{_model(run, s.model)}, test',
                s.words,
                s.insertions,
                s.deletions,
                s.substitutions,
                unit=f'{s.unit}s',
                interval=(s.low, s.high),
            )
            for s in sorted(
                run.evaluator.scores, key=lambda s: (s.unit, s.model == run.final_model)
            )
        ],
        s1=_ages(applied, 's1'),
        s2=_ages(applied, 's2'),
        timeline=_timeline(updates),
        skipped=_skipped(run),
        pictures=pictures,
        notes=[
            f'seed {run.config.seed}; {exchange.num_replicas} replicas on {jax.default_backend()}, '
            f'{exchange.num_shards} shards, rule {exchange.rule}',
            f'{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, '
            f'jax {jax.__version__}',
            *_told(run, result),
            *map(str, run.monitor.failures),
        ],
        summary={
            'updates': f'{result["updates"]:,}',
            'training': f'{result["training_s"]:.0f} s',
            'frames per second': f'{result["frames_per_s"]:,.0f}',
            'utterances': f'{len(run.data):,}',
        },
    )
    report.write(run.workdir.path, record)


def _told(run: Experiment, result: dict[str, Any]) -> list[str]:
    """The changes as sentences."""
    first, final = _model(run, run.first_model), _model(run, run.final_model)
    sentences = []
    for unit, rate in (('word', 'wer'), ('phone', 'per')):
        if f'{rate}_change' in result:
            low, high = (100 * end for end in result[f'{rate}_change'])
            chance = result[f'{rate}_improves']
            sentences.append(
                f'{unit} errors, {final} against {first} on the same utterances, each at its own '
                f'acoustic scale: {low:+.2f} to {high:+.2f} points (95 %); fewer with probability '
                f'{chance:.3f}'
            )
    return sentences


def _model(run: Experiment, name: str) -> str:
    """How the table of error rates calls a model."""
    lattices = name != 'ce' and run.config.sequence.graph == 'lattice'
    return _MODELS[name].replace('LF-', 'lattice ') if lattices else _MODELS[name]


def _of_kind(events: Sequence[Event], kind: str) -> list[Event]:
    return [event for event in events if event.kind == kind]


def _curves(updates: Sequence[Update]) -> dict[str, list[tuple[float, float]]]:
    """Curves by 'criterion/quantity': the rounds of the bootstrap are one curve."""
    curves: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    for update in updates:
        for name in ('loss', 'gradient_norm', *lattice_report.CURVES):
            if name in update.metrics:
                curves[f'{update.stage.split("-")[0]}/{name}'].append(
                    (update.number, update.metrics[name])
                )
    return dict(curves)


def _looks(run: Experiment) -> dict[str, list[tuple[float, float]]]:
    looks = run.development.looks if run.development else []
    curve = [(float(look.updates), look.wer) for look in looks]
    return {f'{run.config.sequence.criterion}/development WER': curve} if curve else {}


def _ages(applied: Sequence[Event], which: str) -> dict[int, list[int]]:
    ages: dict[int, list[int]] = collections.defaultdict(list)
    for event in applied:
        ages[event.worker].append(getattr(event, which))
    return dict(ages)


def _timeline(updates: Sequence[Update]) -> list[report.Segment]:
    """Host work on a batch, and its way through the device, per replica."""
    segments = []
    free: dict[int, float] = {}  # when the replica's device finished its last step
    for u in sorted(updates, key=lambda u: u.dispatched_s):
        segments.append(report.Segment(u.replica, 'batch', u.started_s, u.dispatched_s))
        begin = max(u.dispatched_s, free.get(u.replica, 0.0))
        segments.append(report.Segment(u.replica, 'compute', begin, max(begin, u.finished_s)))
        free[u.replica] = u.finished_s
    return segments


def _skipped(run: Experiment) -> list[tuple[str, str]]:
    """Utterances left out, before training or by the criterion, each once."""
    looked_at = run.development.skipped if run.development else ()
    skipped = (*run.data.features.skipped, *run.evaluator.skipped, *looked_at)
    found = {s.id: s.reason for s in skipped}
    for update in run.monitor.updates:
        for index, reason in update.invalid:
            name = losses.Reason(reason).name.lower().replace('_', ' ')
            found[run.data.features.ids[index]] = f'no value in {update.stage}: {name}'
        for index, sentence in update.reasons:
            found[run.data.features.ids[index]] = f'no lattice in {update.stage}: {sentence}'
    return list(found.items())
