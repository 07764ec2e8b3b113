"""The figures of a report, each a function from a `RunRecord` to a matplotlib figure or None.

Figures are made without pyplot, so nothing global is touched and any thread may draw.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from seqtrain.report import style
from seqtrain.report.record import RunRecord, Segment, Wer

WIDTH_IN = 9.2
MAX_COLOURED_REPLICAS = len(style.PALETTE)
MAX_BARS = 40
WINDOW_SEGMENTS = 40  # segments per replica that the time line shows side by side


def draw_all(run: RunRecord) -> dict[str, Figure]:
    """All figures that the record has data for, by name."""
    with matplotlib.rc_context(style.MATPLOTLIB):
        drawn = {
            'wer': error_rates(run.wer),
            'curves': curves(run.scalars),
            'staleness': staleness(run.s1, run.s2),
            'timeline': timeline(run.timeline),
        }
        for figure in drawn.values():
            if figure is not None:
                # Layout depends on the style, so it is settled while the style is in force; it is
                # slow, so it is done once for all formats.
                figure.draw_without_rendering()
                figure.set_layout_engine('none')
    return {name: figure for name, figure in drawn.items() if figure is not None}


def error_rates(rows: Sequence[Wer]) -> Figure | None:
    """Bars of error rates with their 95 % intervals, where there are any."""
    rows = [row for row in rows if row.words]
    if not rows:
        return None
    figure, axes = _panels(1, 0.75 + 0.42 * len(rows), columns=1)
    ax = axes[0]
    rates = np.array([100 * row.rate for row in rows])
    low, high = 100 * np.array([row.interval for row in rows]).T
    high[np.isinf(high)] = np.nan
    tops = np.fmax(rates, high)  # NaN without an interval
    spread = np.maximum([rates - low, high - rates], 0)
    ax.barh(range(len(rows)), rates, height=0.55, color=style.PALETTE[0])
    ax.errorbar(
        rates, range(len(rows)), xerr=spread, fmt='none', ecolor=style.INK, elinewidth=1, capsize=3
    )
    right = max(*tops, 1e-3)
    for y, (rate, top) in enumerate(zip(rates, tops, strict=True)):
        ax.text(top + 0.012 * right, y, f'{rate:.2f} %', va='center', fontweight='bold')
    ax.set_yticks(range(len(rows)), [_plain(row.name) for row in rows])
    ax.tick_params(axis='y', labelcolor=style.INK)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.12 * right)
    ax.set_xlabel(f'errors per reference {_plain(_singular(rows))}, %; whiskers: 95 % interval')
    ax.grid(axis='y', visible=False)
    ax.spines['left'].set_visible(False)
    return figure


def curves(scalars: Mapping[str, Sequence[tuple[float, float]]]) -> Figure | None:
    """One panel per curve, losses first; the raw values pale, their running mean on top."""
    finite = {name: _finite(points) for name, points in scalars.items()}
    names = [name for name, points in finite.items() if len(points)]
    names = sorted(names, key=lambda name: 'loss' not in name)
    if not names:
        return None
    columns = min(len(names), 2 if len(names) in (2, 4) else 3)
    rows = math.ceil(len(names) / columns)
    figure, axes = _panels(len(names), 2.8 * rows, columns)
    for ax, name in zip(axes, names, strict=True):
        _curve(ax, name, finite[name])
    return figure


def _curve(ax: Axes, name: str, points: np.ndarray) -> None:
    steps, values = points.T
    width = max(1, len(values) // 25)
    smooth = np.convolve(values, np.ones(width) / width, mode='valid')
    if width > 1:
        ax.plot(steps, values, color=style.ACCENT, alpha=0.22, linewidth=0.8)
        ax.plot(steps[width - 1 :], smooth, color=style.ACCENT, linewidth=1.8)
    else:
        marker = 'o' if len(values) < 30 else None
        ax.plot(steps, values, color=style.ACCENT, linewidth=1.8, marker=marker, markersize=3.5)
    if len(values) > 10:
        # Single outliers, the first values above all, would flatten the rest.
        low, high = np.quantile(values, [0.01, 0.98])
        low, high = min(low, smooth.min()), max(high, smooth.max())
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
        ax.set_ylim(low - margin, high + margin)
    ax.set_title(_plain(name))
    ax.set_xlabel('update')
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_formatter(FuncFormatter(_number))


def staleness(s1: Mapping, s2: Mapping) -> Figure | None:
    """Histograms of both ages over all pushes, coloured by replica."""
    replicas = sorted(set(s1) | set(s2))
    colours = {replica: style.PALETTE[n % len(style.PALETTE)] for n, replica in enumerate(replicas)}
    panels = [
        ({replica: _finite_ages(values) for replica, values in ages.items()}, title)
        for ages, title in ((s1, 's1: age at the server'), (s2, 's2: age of outer derivatives'))
        if any(len(_finite_ages(values)) for values in ages.values())
    ]
    if not panels:
        return None
    figure, axes = _panels(len(panels), 3.1, columns=len(panels))
    for ax, (ages, title) in zip(axes, panels, strict=True):
        _ages(ax, ages, colours)
        ax.set_title(title)
    if 1 < len(replicas) <= MAX_COLOURED_REPLICAS:
        handles = [
            Patch(color=colour, label=f'replica {replica}') for replica, colour in colours.items()
        ]
        figure.legend(handles=handles, loc='outside lower center', ncols=min(6, len(replicas)))
    return figure


def _ages(ax: Axes, ages: Mapping[int, np.ndarray], colours: Mapping[int, str]) -> None:
    replicas = sorted(ages)
    values = [ages[replica] for replica in replicas]
    pooled = np.concatenate(values)
    mean, most = pooled.mean(), pooled.max()
    usual = np.quantile(pooled, 0.95, method='inverted_cdf')
    # A few very late pushes, as when a replica compiles, would squeeze all others into one bar.
    last = min(most, 8 + 2 * usual)
    width = max(1, math.ceil((last + 1) / MAX_BARS))
    edges = np.arange(-0.5, last + width + 0.5, width).tolist()
    counted = [np.minimum(one, last) for one in values]
    if len(replicas) > MAX_COLOURED_REPLICAS:
        ax.hist(np.concatenate(counted), edges, color=style.PALETTE[0], rwidth=0.86)
    else:
        own = [colours[replica] for replica in replicas]
        ax.hist(counted, edges, stacked=True, color=own, rwidth=0.86)
    ax.axvline(mean, color=style.INK, linewidth=1, linestyle=(0, (4, 3)))
    ax.margins(y=0.16)
    note = f'mean {mean:.2f}, 95 % ≤ {usual:.0f}, largest {most:.0f}'
    if most > last:
        note += f'\nlast bar: {last:.0f} and more'
    ax.annotate(note, (1, 0.99), xycoords='axes fraction', ha='right', va='top', color=style.INK)
    ax.set_xlim(min(-0.9, edges[0]), max(edges[-1], 3.5))
    ax.set_xlabel('versions')
    ax.set_ylabel('pushes, all shards')
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    ax.grid(axis='x', visible=False)


def timeline(segments: Sequence[Segment]) -> Figure | None:
    """Left: how each replica spent the run. Right: a stretch of it, as it happened."""
    segments = [s for s in segments if -math.inf < s.start_s < s.end_s < math.inf]
    if not segments:
        return None
    replicas = sorted({s.replica for s in segments})
    kinds = list(dict.fromkeys(s.kind for s in sorted(segments, key=lambda s: s.start_s)))
    colours = _kind_colours(kinds)
    figure, (left, right) = _panels(2, 1.35 + 0.36 * len(replicas), 2, widths=(1, 2.6))
    rows = {replica: y for y, replica in enumerate(replicas)}
    _shares(left, segments, rows, colours)
    _stretch(right, segments, rows, colours)
    handles = [Patch(color=colours[kind], label=_plain(kind)) for kind in kinds]
    figure.legend(handles=handles, loc='outside lower center', ncols=min(7, len(kinds)))
    return figure


def _shares(ax: Axes, segments, rows: Mapping[int, int], colours: Mapping[str, str]) -> None:
    spent: dict[int, dict[str, float]] = {r: collections.defaultdict(float) for r in rows}
    for s in segments:
        spent[s.replica][s.kind] += s.end_s - s.start_s
    for replica, y in rows.items():
        total, left = sum(spent[replica].values()), 0.0
        for kind, colour in colours.items():
            share = 100 * spent[replica][kind] / total
            ax.barh(y, share, left=left, height=0.62, color=colour)
            left += share
    ax.set_yticks(list(rows.values()), [f'replica {r}' for r in rows])
    ax.tick_params(axis='y', labelcolor=style.INK)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(0, 100)
    ax.set_xlabel('share of recorded time, %')
    ax.set_title('Whole run')
    ax.grid(axis='y', visible=False)
    ax.spines['left'].set_visible(False)


def _stretch(ax: Axes, segments, rows: Mapping[int, int], colours: Mapping[str, str]) -> None:
    start, end = _window(segments, len(rows))
    for kind, colour in colours.items():
        for replica, y in rows.items():
            spans = [
                (s.start_s, s.end_s - s.start_s)
                for s in segments
                if s.replica == replica and s.kind == kind and s.end_s > start and s.start_s < end
            ]
            ax.broken_barh(
                spans, (y - 0.31, 0.62), facecolor=colour, edgecolor='white', linewidth=0.4
            )
    ax.set_yticks(list(rows.values()), [''] * len(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_xlim(start, end)
    ax.set_xlabel('seconds since the run began')
    whole = start <= min(s.start_s for s in segments) and end >= max(s.end_s for s in segments)
    ax.set_title('As it happened' if whole else f'{start:.1f} s to {end:.1f} s, as it happened')
    ax.grid(axis='y', visible=False)
    ax.spines['left'].set_visible(False)


def _window(segments: Sequence[Segment], num_replicas: int) -> tuple[float, float]:
    """All of the run where it is short, else a stretch of few enough segments and usual pace."""
    ordered = sorted(segments, key=lambda s: s.start_s)
    room = WINDOW_SEGMENTS * num_replicas
    if len(ordered) <= 2 * room:
        return ordered[0].start_s, max(s.end_s for s in ordered)
    starts = [s.start_s for s in ordered]
    stretches = [(starts[i], starts[i + room]) for i in range(0, len(starts) - room, room // 2)]
    # The one of median length: not where something was compiled, nor where a run was ending.
    return sorted(stretches, key=lambda pair: pair[1] - pair[0])[len(stretches) // 2]


def _panels(count: int, height: float, columns: int, widths=None) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels in rows of `columns`; the figure's width is fixed."""
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(WIDTH_IN, height), layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False, width_ratios=widths)
    flat = list(grid.ravel())
    for spare in flat[count:]:
        spare.set_visible(False)
    return figure, flat[:count]


def _plain(text: str) -> str:
    """Shown by matplotlib as it stands: dollars begin no formula, what is no text is escaped."""
    return text.encode('utf-8', 'backslashreplace').decode().replace('$', r'\$')


def _finite_ages(values: Sequence[int] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, float)
    return array[np.isfinite(array)]


def _finite(points: Sequence[tuple[float, float]]) -> np.ndarray:
    """[n, 2] steps and values, those that are finite, by growing step."""
    array = np.asarray(list(points), float).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    return array[np.argsort(array[:, 0], kind='stable')]


def _kind_colours(kinds: Sequence[str]) -> dict[str, str]:
    taken = {style.KINDS[kind] for kind in kinds if kind in style.KINDS}
    spare = [colour for colour in style.PALETTE if colour not in taken]
    colours = {}
    for kind in kinds:
        if kind in style.KINDS:
            colours[kind] = style.KINDS[kind]
        else:
            colours[kind] = spare.pop(0) if spare else style.MUTED
    return colours


def _number(value: float, _: int) -> str:
    if abs(value) >= 10_000:
        return f'{value / 1000:,.0f} k'
    return f'{value:g}'


def _singular(rows: Sequence[Wer]) -> str:
    units = {row.unit for row in rows}
    return units.pop().removesuffix('s') if len(units) == 1 else 'unit'
