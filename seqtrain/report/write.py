"""Writes a report: `report.html`, which needs no other file, and `figures/*.png`."""

from __future__ import annotations

import base64
import html
import io
import math
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from seqtrain import extras
from seqtrain.report import style
from seqtrain.report.record import RunRecord, Wer

PNG_DPI = 160
MAX_OPEN_SKIPPED = 12

ABOUT = {
    'wer': 'Errors against the reference transcripts. Errors of one utterance go together: the '
    'intervals come from drawing utterances again and again.',
    'curves': 'Each point is one update as a replica saw it; the line is a running mean.',
    'staleness': 's1 counts the versions that a shard applied between a replica’s pull and its '
    'push. s2 counts the versions between the parameters that gave the outer derivatives and '
    'those that back-propagated them.',
    'timeline': 'Replicas do not wait for each other: a gap in one row is no gap in the others.',
}
HEADS = {
    'wer': 'Error rates',
    'curves': 'Curves',
    'staleness': 'Staleness',
    'timeline': 'What the replicas did',
}
EMPTY = {
    'wer': 'Nothing was decoded.',
    'curves': 'No scalars were recorded.',
    'staleness': 'No push was recorded.',
    'timeline': 'No time line was recorded.',
}


def write(workdir: str | os.PathLike, run: RunRecord) -> pathlib.Path:
    """Writes `report.html` and `figures/{wer,curves,staleness,timeline}.png`.

    Args:
      workdir: an existing or new folder; files of an earlier report are replaced.
      run: what to show. Figures without data are left out, and the page says so.

    Returns:
      The path of the page.
    """
    # Here, so that a program that writes no report does not wait for matplotlib.
    extras.load('matplotlib')
    from seqtrain.report import figures

    folder = pathlib.Path(workdir)
    (folder / 'figures').mkdir(parents=True, exist_ok=True)
    images = {}
    for name in HEADS:
        (folder / 'figures' / f'{name}.png').unlink(missing_ok=True)
    for name, figure in figures.draw_all(run).items():
        figure.savefig(folder / 'figures' / f'{name}.png', dpi=PNG_DPI)
        images[name] = _data_uri(figure)
    page = folder / 'report.html'
    unfinished = page.with_suffix('.tmp')
    # Names of files, and so of utterances, may hold bytes that are no text.
    unfinished.write_text(compose(run, images), encoding='utf-8', errors='backslashreplace')
    unfinished.replace(page)
    return page


def compose(run: RunRecord, images: dict[str, str]) -> str:
    """The page; `images` maps a figure's name to what goes into `src`."""
    sections = [_section(name, run, images.get(name)) for name in HEADS]
    body = [
        f'<h1>{html.escape(run.title)}</h1>',
        *(f'<p class="about">{html.escape(note)}</p>' for note in run.notes),
        _tiles(run),
        *sections,
        *map(_picture, run.pictures),
        _skipped(run.skipped),
        _config(run.config),
        '<footer>Written by seqtrain.</footer>',
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{html.escape(run.title)}</title>\n<style>{style.PAGE}</style></head>\n'
        '<body><main>\n' + '\n'.join(part for part in body if part) + '\n</main></body></html>\n'
    )


def _section(name: str, run: RunRecord, image: str | None) -> str:
    parts = [f'<h2>{HEADS[name]}</h2>']
    table = _wer_table(run.wer) if name == 'wer' and run.wer else ''
    if image is None and not table:
        parts.append(f'<p class="about">{EMPTY[name]}</p>')
    else:
        parts += [f'<p class="about">{ABOUT[name]}</p>', table]
    if image is not None:
        parts.append(f'<figure><img alt="{HEADS[name]}" src="{image}"></figure>')
    return '<section>' + '\n'.join(parts) + '</section>'


def _picture(picture: tuple[str, str]) -> str:
    caption, svg = picture
    return (
        '<section><h2>A lattice</h2>'
        f'<p class="about">{html.escape(caption)}</p>'
        f'<figure style="overflow-x:auto">{svg}</figure></section>'
    )


def _tiles(run: RunRecord) -> str:
    """The numbers one looks for first."""
    tiles: dict[str, str] = {}
    if run.wer and run.wer[-1].words:
        last = run.wer[-1]
        tiles[f'{last.unit.removesuffix("s")} error rate, {last.name}'] = f'{100 * last.rate:.2f} %'
    ages = [np.asarray(values, float) for values in run.s1.values() if len(values)]
    if ages:
        pooled = np.concatenate(ages)
        if np.isfinite(pooled).any():
            mean = pooled[np.isfinite(pooled)].mean()
            tiles['mean staleness s1, versions'] = f'{mean:.2f}'
        tiles['pushes applied, all shards'] = f'{len(pooled):,}'
        tiles['replicas'] = str(len(ages))
    tiles |= dict(run.summary)
    tiles['utterances skipped'] = f'{len(run.skipped):,}'
    items = [
        f'<div><dt>{html.escape(label)}</dt><dd>{html.escape(value)}</dd></div>'
        for label, value in tiles.items()
    ]
    return f'<dl class="tiles">{"".join(items)}</dl>'


def _wer_table(rows: Sequence[Wer]) -> str:
    head = ['', 'error rate', '95 % interval', 'errors', 'of', 'inserted', 'deleted', 'substituted']
    lines = []
    for row in rows:
        low, high = row.interval
        rate = f'{100 * row.rate:.2f} %' if row.words else 'empty set'
        known = row.words and math.isfinite(high)
        interval = f'{100 * low:.2f} – {100 * high:.2f} %' if known else ''
        counts = [
            f'{row.errors:,}',
            f'{row.words:,} {row.unit}',
            f'{row.insertions:,}',
            f'{row.deletions:,}',
            f'{row.substitutions:,}',
        ]
        lines.append([row.name, rate, interval, *counts])
    return _table(head, lines, ['main', 'n main', *['n'] * 6])


def _skipped(skipped: Sequence[tuple[str, str]]) -> str:
    if not skipped:
        return '<h2>Skipped utterances</h2>\n<p class="about">None: every utterance was used.</p>'
    about = f'{len(skipped):,} left out; the others were not touched by it.'
    table = _table(['utterance', 'why'], [list(pair) for pair in skipped], ['id', ''])
    if len(skipped) > MAX_OPEN_SKIPPED:
        table = f'<details><summary>Show all {len(skipped):,}</summary>{table}</details>'
    return f'<h2>Skipped utterances</h2>\n<p class="about">{about}</p>\n{table}'


def _config(config: str) -> str:
    if not config:
        return ''
    return (
        '<h2>Configuration</h2>\n<details><summary>Show the resolved configuration</summary>'
        f'<pre>{html.escape(config)}</pre></details>'
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str]) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        return ''.join(
            f'<{tag} class="{kind}">{html.escape(value)}</{tag}>'
            for value, kind in zip(values, classes, strict=True)
        )

    body = ''.join(f'<tr>{cells("td", row)}</tr>\n' for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead>\n'
        f'<tbody>\n{body}</tbody></table></div>'
    )


def _data_uri(figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format='svg', metadata={'Date': None})
    # Sizes in points would fix the width on paper; the page decides it.
    svg = re.sub(rb'(<svg\b[^>]*?)\s(width|height)="[^"]*pt"', rb'\1', file.getvalue())
    return 'data:image/svg+xml;base64,' + base64.b64encode(svg).decode()
