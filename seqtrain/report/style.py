"""How figures and page look: one palette, one type scale."""

from typing import Any

INK = '#1f2933'
MUTED = '#66727f'
RULE = '#d9dee4'
ACCENT = '#2f5fb3'

# Distinct in print and for the colour-blind; replicas take them in order.
PALETTE = (
    '#4269d0',
    '#efb118',
    '#ff725c',
    '#6cc5b0',
    '#3ca951',
    '#a463f2',
    '#9c6b4e',
    '#ff8ab7',
    '#97bbf5',
    '#9498a0',
)
# The usual kinds of work keep their colours from report to report.
KINDS = {
    'compute': '#4269d0',
    'batch': '#efb118',
    'wait': '#d5dae0',
    'idle': '#d5dae0',
    'pull': '#6cc5b0',
    'push': '#efb118',
    'decode': '#a463f2',
    'evaluate': '#a463f2',
}

MATPLOTLIB: Any = {
    'font.family': 'DejaVu Sans',
    'font.size': 9,
    'text.color': INK,
    'axes.edgecolor': RULE,
    'axes.labelcolor': MUTED,
    'axes.titlecolor': INK,
    'axes.titlesize': 10,
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'axes.titlepad': 10,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': '#eceff2',
    'grid.linewidth': 0.8,
    'xtick.color': MUTED,
    'ytick.color': MUTED,
    'xtick.labelsize': 8.5,
    'ytick.labelsize': 8.5,
    'xtick.major.size': 0,
    'ytick.major.size': 0,
    'legend.frameon': False,
    'legend.fontsize': 8.5,
    'figure.facecolor': 'white',
    'figure.constrained_layout.hspace': 0.06,
    'figure.constrained_layout.wspace': 0.04,
    'savefig.facecolor': 'white',
    'svg.hashsalt': 'seqtrain',
}

PAGE = """
:root { --ink: #1f2933; --muted: #66727f; --rule: #d9dee4; --wash: #f6f7f9; --accent: #2f5fb3; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 3rem 0 .3rem; padding-top: 1rem;
  border-top: 1px solid var(--rule); }
p { margin: .3rem 0 .9rem; max-width: 46rem; }
.about { color: var(--muted); font-size: .92rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem;
  margin: 1.6rem 0 0; padding: 0; }
.tiles div { background: var(--wash); border-radius: .5rem; padding: .8rem 1rem; }
.tiles dt { color: var(--muted); font-size: .8rem; }
.tiles dd { margin: .1rem 0 0; font-size: 1.45rem; font-weight: 600; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0 0; }
figure img { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; margin: .8rem 0;
  font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; color: var(--muted); font-size: .8rem; }
th, td { padding: .45rem .8rem .45rem 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); }
th.n, td.n { text-align: right; white-space: nowrap; }
td.main { font-weight: 600; }
td.id { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .86rem;
  overflow-wrap: anywhere; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--wash); border-radius: .5rem; padding: 1rem; overflow-x: auto;
  font: .82rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
footer { margin-top: 3rem; color: var(--muted); font-size: .82rem; }
@media print {
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  h2 { break-after: avoid; margin-top: 1.6rem; } section, tr, .tiles { break-inside: avoid; }
  .tiles div { border: 1px solid var(--rule); } pre { white-space: pre-wrap; }
}
"""
