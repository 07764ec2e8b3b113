"""The rate of a stage, and what a notebook shows of it."""

import itertools
import logging
import sys

import pytest
import rich
from rich import console

from seqtrain.training.monitor import Monitor, Update
from seqtrain.training.workdir import WorkdirError


@pytest.fixture
def monitor(tmp_path):
    made = Monitor(tmp_path, total=100, quiet=True)
    yield made
    made.close()


def updates(monitor, replica, times_s, frames=100):
    """One update after the other, from each time to the next."""
    for seq, (begin, end) in enumerate(itertools.pairwise(times_s)):
        monitor.updates.append(
            Update('mmi', replica, seq, 0, (0, 0, 0), (0,), frames, {}, [], begin, begin, end)
        )
    monitor.updates.sort(key=lambda update: update.finished_s)


def test_the_rate_leaves_compilation_out(monitor):
    updates(monitor, 0, [0.0, 10.0, 11.0, 12.0, 13.0])
    assert monitor.frames_per_s('mmi') == pytest.approx(100)


def test_the_rate_of_a_stage_that_ends_with_its_slowest_compilation_is_what_was_done(monitor):
    updates(monitor, 0, [0.0, 9.0, 10.0, 11.01])
    updates(monitor, 1, [0.0, 11.0])
    assert monitor.frames_per_s('mmi') == pytest.approx(100 / 1.01)


def test_the_rate_of_several_replicas_is_their_sum(monitor):
    updates(monitor, 0, [0.0, 3.0, *range(4, 12)])
    updates(monitor, 1, [0.0, 3.5, *range(4, 12)])
    assert monitor.frames_per_s('mmi') == pytest.approx((100 * 7.5 + 100 * 8) / 7.5)


def test_without_a_second_update_there_is_no_rate(monitor):
    assert monitor.frames_per_s('mmi') == 0.0
    updates(monitor, 0, [0.0, 3.0])
    assert monitor.frames_per_s('mmi') == 0.0


def test_a_notebook_without_widgets_gets_no_warnings(tmp_path, monkeypatch):
    monkeypatch.setattr(rich, '_console', None)  # made anew, as in a notebook
    monkeypatch.setattr(console, '_is_jupyter', lambda: True)
    monkeypatch.setitem(sys.modules, 'ipywidgets', None)
    Monitor(tmp_path, total=100).close()  # a warning is an error here


@pytest.mark.parametrize(('total', 'lines'), [(100, 20), (7, 7)])
def test_a_log_that_is_no_terminal_gets_lines_of_progress(tmp_path, caplog, total, lines):
    caplog.set_level(logging.INFO, logger='seqtrain')
    made = Monitor(tmp_path, total=total)
    for seq in range(total):
        made.add(
            Update('mmi', 0, seq, 0, (0, 0, 0), (0,), 100, {'loss': 2.0}, [], seq, seq, seq + 1)
        )
    made.close()
    assert len(caplog.messages) == lines
    assert caplog.messages[-1].startswith(f'mmi: update {total} of {total}, loss 2.000, 100 frames')


def test_quiet_is_quiet(monitor, caplog, capsys):
    caplog.set_level(logging.INFO, logger='seqtrain')
    for seq in range(100):
        monitor.add(Update('mmi', 0, seq, 0, (0, 0, 0), (0,), 100, {'loss': 2.0}, [], 0, 0, 1))
    assert not caplog.messages
    assert not capsys.readouterr().out


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_disk_that_is_full_ends_the_run_with_a_sentence(monitor):
    def full(data):
        raise OSError(28, 'No space left on device')

    update = Update('mmi', 0, 0, 0, (0, 0, 0), (0,), 100, {'loss': 2.0}, [], 0, 0, 1)
    worker = monitor._writer.file_writer.event_writer._worker
    monitor._writer.file_writer.event_writer._ev_writer._py_recordio_writer.write = full
    monitor.add(update)
    worker.join()
    with pytest.raises(WorkdirError, match='is the disk full'):
        monitor.add(update)
