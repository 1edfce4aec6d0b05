"""docs/deploy.md: each command is run by a test, or says what it needs; what it names exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
BLOCKS = [block.replace("\\\n", "").splitlines() for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)]
MARKED = [block for block in BLOCKS if block[0].startswith("# needs ")]
RUN = {line for block in BLOCKS if block not in MARKED for line in block}
# Where each command is run. test_docker.py is marked `docker`.
RUN_BY = {
    "make images": "deploy/test_docker.py",
    "make up": "deploy/test_docker.py",
    "kubectl kustomize kube/overlays/local": "deploy/test_kube.py",
}


def test_every_command_is_run_by_a_test_or_says_what_it_needs() -> None:
    """A new command needs a test, or the mark."""
    assert set(RUN_BY) == RUN
    assert len(MARKED) >= 8
    assert [name for name in RUN_BY.values() if not (ROOT / "tests" / name).exists()] == []


@pytest.mark.parametrize("command", sorted({line for block in BLOCKS for line in block if line.startswith("make ")}))
def test_make_verbs_exist(command: str) -> None:
    """Each `make` line is a target that make can plan."""
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_files_and_places_exist() -> None:
    """Each path and each anchor that the page names is there."""
    named = re.findall(r"`((?:kube|tests|image-|docker-compose)[\w./-]*)`", TEXT)
    assert len(named) >= 6
    assert [path for path in named if not Path(ROOT, path).exists()] == []
    headings = {
        re.sub(r"[^a-z -]", "", line.removeprefix("## ").lower()).replace(" ", "-")
        for line in TEXT.splitlines()
        if line.startswith("## ")
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) <= headings
