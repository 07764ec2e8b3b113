"""What an extra of the installation brings: named where it is missing, and needed by no import."""

import subprocess
import sys

import pytest

from seqtrain import extras
from seqtrain.training import errors

# A Python in which the packages of all extras are missing.
BARE = """
import sys
from seqtrain import extras
for module in extras._EXTRAS:
    sys.modules[module] = None
"""


@pytest.mark.parametrize('module', sorted(extras._EXTRAS))
def test_a_missing_package_says_what_to_install(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(errors.FOR_USERS, match=r"pip install '\.\[(kaldi|report)\]'"):
        extras.load(module)


def test_a_package_that_is_there_is_loaded():
    assert extras.load('kaldifst').StdVectorFst


def test_training_is_imported_without_any_extra():
    code = BARE + 'from seqtrain.training import experiment, decode, force_align, replay, problem'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
