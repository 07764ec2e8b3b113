import base64
import dataclasses
import html.parser
import math
import re

import numpy as np
import pytest

from seqtrain.report import RunRecord, Segment, Wer, figures, write

FIGURES = ('wer', 'curves', 'staleness', 'timeline')
PNG_HEAD = b'\x89PNG\r\n\x1a\n'


@pytest.fixture(scope='module')
def run():
    rng = np.random.default_rng(0)
    segments = [
        Segment(replica, kind, start, start + 0.9 * (kind == 'compute') + 0.05)
        for replica in range(2)
        for start in range(5)
        for kind in ('compute', 'pull')
    ]
    return RunRecord(
        title='digits <test> & more',
        config='exchange.mode = "async" <b>',
        scalars={
            'mmi/loss': [(i, math.exp(-i / 50)) for i in range(300)],
            'mmi/grad_norm': [(0, 1.0), (1, math.nan), (2, 3.0)],
        },
        wer=[Wer('CE', 200, 4, 6, 10), Wer('MMI', 200, 1, 1, 1)],
        s1={0: rng.poisson(2, 50), 1: rng.poisson(4, 50)},
        s2={0: np.zeros(50, int), 1: np.zeros(50, int)},
        timeline=segments,
        skipped=[('utt<1>', 'audio is truncated')],
        notes=['make demo'],
        summary={'frames per second': '21,000'},
    )


@pytest.fixture(scope='module')
def workdir(run, tmp_path_factory):
    """A folder with the report of `run`."""
    folder = tmp_path_factory.mktemp('report')
    assert write(folder, run) == folder / 'report.html'
    return folder


class Page(html.parser.HTMLParser):
    """Collects the text, the image sources and the balance of tags."""

    def __init__(self, text):
        super().__init__()
        self.text, self.images, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == 'img':
            self.images.append(dict(attrs)['src'])
        elif tag not in ('meta', 'link', 'br'):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_no_other_file_and_shows_everything(workdir):
    source = (workdir / 'report.html').read_text()
    page = Page(source)
    assert page.open == []
    text = ' '.join(page.text)
    for expected in (
        'digits <test> & more',
        '10.00 %',
        '1.50 %',
        'frames per second',
        'utt<1>',
        'audio is truncated',
        'make demo',
        'exchange.mode = "async" <b>',
    ):
        assert expected in text
    assert len(page.images) == 4
    for image in page.images:
        head, _, content = image.partition(',')
        assert head == 'data:image/svg+xml;base64'
        assert b'<svg' in base64.b64decode(content)
    assert not re.findall(r'(?:src|href)="(?!data:)', source)


def test_the_same_figures_as_png(workdir):
    for name in FIGURES:
        assert (workdir / 'figures' / f'{name}.png').read_bytes().startswith(PNG_HEAD)


def test_an_empty_run_says_so_and_leaves_no_old_figure(tmp_path):
    write(tmp_path, RunRecord('one', wer=[Wer('a', 10, 1, 0, 0)]))
    assert [file.name for file in (tmp_path / 'figures').iterdir()] == ['wer.png']
    path = write(tmp_path, RunRecord('nothing'))
    page = Page(path.read_text())
    text = ' '.join(page.text)
    assert page.images == []
    assert list((tmp_path / 'figures').iterdir()) == []
    for expected in ('Nothing was decoded', 'No push was recorded', 'every utterance was used'):
        assert expected in text


def test_many_skipped_utterances_are_all_named(tmp_path):
    skipped = [(f'utt-{i:04d}', 'audio is damaged') for i in range(1500)]
    text = ' '.join(Page(write(tmp_path, RunRecord('r', skipped=skipped)).read_text()).text)
    assert '1,500 left out' in text
    assert all(name in text for name, _ in skipped)


def test_rate_of_a_row():
    row = Wer('a', 1000, 10, 20, 30)
    assert (row.errors, row.rate) == (60, 0.06)


def test_a_row_without_an_interval_and_one_above_100_percent(tmp_path):
    rows = [
        Wer('worse than nothing', 100, 300, 10, 10),
        Wer('b', 100, 1, 1, 1, 'words', (0, 0.07)),
        Wer('hardly a word', 1, 1, 0, 0, 'words', (0, math.inf)),
        Wer('no word', 0, 0, 0, 0, 'words', (0, 0)),
    ]
    page = write(tmp_path, RunRecord('r', wer=rows)).read_text()
    assert '320.00 %' in page
    assert 'nan' not in page
    assert 'inf %' not in page
    assert page.count(' – ') == page.count('0.00 – 7.00 %') == 1
    ax = figures.error_rates(rows).axes[0]
    assert ax.get_xlim()[1] > 320


def test_an_empty_set_has_no_rate(tmp_path):
    assert math.isnan(Wer('a', 0, 0, 0, 0).rate)
    assert 'empty set' in write(tmp_path, RunRecord('r', wer=[Wer('a', 0, 0, 0, 0)])).read_text()


def test_curves_put_losses_first_and_drop_what_is_not_finite(run):
    figure = figures.curves(run.scalars)
    assert [ax.get_title(loc='left') or ax.get_title() for ax in figure.axes] == [
        'mmi/loss',
        'mmi/grad_norm',
    ]
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[0, 1], [2, 3]]
    assert figures.curves({'loss': [(0, math.inf)]}) is None


def test_every_curve_has_a_panel():
    names = [f'loss {n}' for n in range(9)]
    figure = figures.curves({name: [(0, 1.0), (1, 2.0)] for name in names})
    assert [ax.get_title(loc='left') or ax.get_title() for ax in figure.axes] == names


def test_names_are_shown_as_they_stand(tmp_path):
    name = 'a$\\frac{$ \udc80 <b>'
    record = RunRecord(
        'r',
        wer=[Wer(name, 10, 1, 0, 0, unit=f'{name} words')],
        scalars={name: [(0, 1.0), (1, 2.0)]},
        timeline=[Segment(0, name, 0.0, 1.0)],
        skipped=[(f'utt\udc80 {name}', name)],
    )
    text = ' '.join(Page(write(tmp_path, record).read_text()).text)
    assert 'utt\\udc80 a$\\frac{$ \\udc80 <b>' in text


def test_what_is_not_finite_is_left_out_of_ages_and_time_line(run, tmp_path):
    odd = dataclasses.replace(
        run,
        s1={0: [1.0, math.nan, 3.0], 1: [math.inf]},
        s2={0: [math.nan]},
        timeline=[
            *run.timeline,
            Segment(0, 'pull', 0.0, math.inf),
            Segment(2, 'pull', math.nan, 1),
        ],
    )
    page = write(tmp_path, odd).read_text()
    assert '<dt>mean staleness s1, versions</dt><dd>2.00</dd>' in page
    figure = figures.staleness(odd.s1, odd.s2)
    assert len(figure.axes) == 1
    assert sum(p.get_height() for p in figure.axes[0].patches) == 2
    shares = figures.timeline(odd.timeline).axes[0]
    assert [label.get_text() for label in shares.get_yticklabels()] == ['replica 0', 'replica 1']


def test_a_replica_has_one_colour_in_both_histograms():
    figure = figures.staleness({0: [1], 1: [2]}, {1: [0, 0]})
    legend = {
        text.get_text(): patch.get_facecolor()
        for text, patch in zip(
            figure.legends[0].get_texts(), figure.legends[0].get_patches(), strict=True
        )
    }
    (shown,) = {p.get_facecolor() for p in figure.axes[1].patches if p.get_height()}
    assert shown == legend['replica 1']


def test_histograms_hold_every_push(run):
    figure = figures.staleness(run.s1, run.s2)
    heights = [sum(p.get_height() for p in ax.patches) for ax in figure.axes]
    assert heights == [100, 100]


@pytest.mark.parametrize('num_replicas', [1, 30])
def test_histograms_of_one_and_of_many_replicas(num_replicas):
    ages = {r: [0, 5, 1000] for r in range(num_replicas)}
    figure = figures.staleness(ages, {})
    assert len(figure.axes) == 1
    assert sum(p.get_height() for p in figure.axes[0].patches) == 3 * num_replicas


def test_the_time_line_shows_shares_and_a_stretch():
    segments = [
        Segment(r, kind, t + shift, t + shift + length)
        for r in range(2)
        for t in range(1000)
        for kind, shift, length in (('compute', 0.0, 0.75), ('wait', 0.75, 0.25))
    ]
    shares, stretch = figures.timeline(segments).axes
    assert sorted({round(p.get_width(), 6) for p in shares.patches}) == [25.0, 75.0]
    left, right = stretch.get_xlim()
    assert 0 < left < right < 1000
    assert right - left < 100
    assert figures.timeline([Segment(0, 'compute', 1.0, 1.0)]) is None
