"""The README's example runs as it stands, and is the one of the package's docstring."""

import pathlib
import re

import numpy as np

from seqtrain import exchange

README = pathlib.Path(exchange.__file__).with_name('README.md')


def code(text):
    """The lines of a program without its layout: comments and blank lines say nothing."""
    kept = (re.sub(r'\s+# .*', '', line).rstrip() for line in text.splitlines())
    return [line for line in kept if line]


def test_the_example_runs_as_it_stands():
    (example, *_) = re.findall(r'```python\n(.*?)```', README.read_text(encoding='utf-8'), re.S)
    assert len(code(example)) <= 22
    names = {}
    exec(compile(example, str(README), 'exec'), names)  # as its reader would
    assert names['versions'].numbers == (400, 400)
    np.testing.assert_allclose(names['trained']['kernel'], [1.0, -2.0, 0.5], atol=0.01)
    np.testing.assert_allclose(names['trained']['bias'], 3.0, atol=0.01)


def test_the_docstring_holds_the_same_example():
    (example, *_) = re.findall(r'```python\n(.*?)```', README.read_text(encoding='utf-8'), re.S)
    shown = re.findall(r'^(?:>>>|\.\.\.) ?(.*)$', exchange.__doc__, re.M)
    here = [line.replace('_ = ', '') for line in code('\n'.join(shown))]
    assert code(example) == here[: len(code(example))]
