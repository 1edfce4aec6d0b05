"""training/models/quiet.py: nothing of the libraries on the terminal, and all of it where something fails."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.programs.photos import encode, photo

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
# Two commands of a process, with a short training: import, fit, save, convert, int8, and a version that runs.
COMMANDS = """
from pathlib import Path
import os
from training.models.quiet import import_tensorflow
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import_tensorflow()  # both as the commands do, and before the next line does
from tests.programs.small_training import SMALL, draw
from training.__main__ import main
from training.models.catalogue import ARCHITECTURES
ARCHITECTURES["small"] = SMALL
draw(Path("photos"))
preset = ["--architecture", "small", "--epochs", "2"]
status = main(["train", "photos", "--name", "small", *preset])
status += main(["evaluate", "photos", "--model", "small", "--run", str(next(Path("runs/small").iterdir()))])
sys.exit(status)
"""
OURS = re.compile(
    r"Photos to train on|Held-out |Read(?:ing)? |Note: |Comput(?:ed|ing) |Fitted |Better |Not better |Divided |"
    r"Accuracy |Saved |Compared |No score |Running |Writing |Nothing to compare with|Checked |Converting |Calibrating|"
    r"Predicting |int8|No int8 file|Released |Nothing is released, as |Evaluating |Asking |Plan: |Epoch |Least loss "
)


def python(script: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, without a setting of the libraries' logs."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{script}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.tensorflow
def test_each_line_of_a_training_and_its_evaluation_is_ours(tmp_path: Path) -> None:
    """Standard error is empty, and what comes before the tables is known."""
    done = python(COMMANDS, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    steps = done.stdout.partition("\n\n")[0].splitlines()
    assert len(steps) > 12 and [line for line in steps if not OURS.match(line)] == []


@pytest.mark.parametrize("engine", ["tflite", "tensorflow"])
@pytest.mark.tensorflow
def test_a_prediction_is_one_line(tiny_store: Path, tmp_path: Path, engine: str) -> None:
    """Of any of a version's files."""
    (tmp_path / "photo.png").write_bytes(encode(photo(), "PNG"))
    arguments = ["predict", "photo.png", "--model", "tiny", "--store", str(tiny_store), "--engine", engine]
    done = python(f"from training.__main__ import main; sys.exit(main({arguments}))", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1 and done.stdout.endswith("photo.png\n")


def test_what_fails_shows_what_the_library_said() -> None:
    """Whoever has to mend it reads the cause."""
    done = python(f"{BROKEN}from training.models.quiet import import_tensorflow; import_tensorflow()")
    assert done.returncode == 1
    assert done.stderr.startswith("no such library\n") and done.stderr.endswith("ImportError: broken\n")


def test_only_what_runs_quietly_is_silent() -> None:
    """What is written afterwards is shown."""
    done = python(
        "import os\nfrom training.models.quiet import quiet\nwith quiet(): os.write(2, b'noise')\nos.write(2, b'said')"
    )
    assert (done.returncode, done.stderr) == (0, "said")


@pytest.mark.tensorflow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_memory_that_is_freed_is_kept() -> None:
    """The next large array finds it; else each takes 16,000 page faults, in which Linux fills it with zeros."""
    script = (
        "import resource\n"
        "from training.models.quiet import import_tensorflow\n"
        "import_tensorflow()\n"
        "faults = []\n"
        "for _ in range(6):\n"
        "    len(b'x' * 2**26)\n"
        "    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\n"
        "print(faults[-1] - faults[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000
