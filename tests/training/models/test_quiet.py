"""training/models/quiet.py: nothing of drivers on the terminal, and all of it where the import fails."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

QUIETLY = (
    "from training.models.quiet import import_tensorflow; import_tensorflow()\n"
    "import sys; print('told', file=sys.stderr)"
)
# A package in TensorFlow's place that speaks as its C++ does, then does not load.
BROKEN = (
    "import os, sys\n"
    "class Finder:\n"
    "    def find_spec(self, name, *_):\n"
    "        if name == 'tensorflow':\n"
    "            os.write(2, b'no such library\\n')\n"
    "            raise ImportError('broken')\n"
    "sys.meta_path.insert(0, Finder())\n"
)


@pytest.mark.tensorflow
def test_the_import_is_silent_and_what_comes_after_is_not() -> None:
    """Also without a GPU, and with no setting of the logs."""
    done = subprocess.run([sys.executable, "-c", QUIETLY], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "told\n")


def test_an_import_that_fails_tells_all() -> None:
    """Whoever has to mend it sees what the library said."""
    done = subprocess.run(
        [sys.executable, "-c", BROKEN + QUIETLY], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("no such library\n") and done.stderr.endswith("ImportError: broken\n")
