"""Each command of the documents is run by a test, or says what it needs; those of the tutorial by test_tutorial.py."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.documents.pages import PAGES, blocks, commands

# Blocks that begin so need what tests do not have.
MARKED = [line for page in PAGES for block in blocks(page) if block[0].startswith("# needs ") for line in block]
COMMANDS = {page: [line for line in commands(page) if line not in MARKED] for page in PAGES}
ROWS = [
    f"python -m training {row}"
    for row in re.findall(
        r"^\| `((?:explore|tune|train|evaluate|predict|explain|runs|export)\b[^`]*)` \|",
        PAGES["README.md"],
        re.MULTILINE,
    )
]
TRAINING = {line for lines in COMMANDS.values() for line in lines if line.startswith("python -m training ")}
TRAINING |= {each for text in PAGES.values() for each in re.findall(r"`(python -m training \w+ [^`…]+)`", text)}
MAKE = sorted({line for lines in COMMANDS.values() for line in lines if line.startswith("make ")})
# Where each other command is run. test_docker.py is marked `docker`.
RUN_BY = {
    "curl -s http://localhost:8501/v1/models/imagenet": "deploy/test_docker.py",
    "curl -s http://localhost:8501/v1/models/imagenet:predict": "deploy/test_docker.py",
    "kubectl kustomize kube/overlays/local": "deploy/test_kube.py",
    ". .venv/bin/activate": "documents/test_tutorial.py",
    "python -c 'from types import SimpleNamespace; from serverless.handler": "documents/test_commands.py",
    'python -m pytest -m "not tensorflow and not processes"': "documents/test_commands.py",  # and by all of this suite
}


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_each_target(command: str) -> None:
    """Make can plan it."""
    subprocess.run([*shlex.split(command), "--dry-run"], cwd=ROOT, check=True, capture_output=True)


def test_targets_that_the_text_names_exist() -> None:
    """`make …` in a sentence or a table is a target too."""
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for text in PAGES.values() for name in re.findall(r"`(?:\w+=\S+ )*make ([a-z-]+)", text)}
    assert len(named) >= 10 and named <= targets


@pytest.mark.parametrize("command", sorted({*ROWS, *TRAINING}))
def test_training_takes_the_arguments(command: str) -> None:
    """Each row of the README's table, and each `python -m training` line or mention on any page."""
    from training.__main__ import _parser

    _parser().parse_args(shlex.split(command)[3:])


@pytest.mark.parametrize("command", [each for page in COMMANDS.values() for each in page if "gateway.batch" in each])
def test_batch_takes_the_arguments(command: str) -> None:
    """Each `python -m gateway.batch` line of the documents."""
    from gateway.batch.__main__ import _parser

    arguments = shlex.split(command)
    _parser().parse_args(arguments[arguments.index("gateway.batch") + 1 :])


RELEASES = re.findall(r"`((?:promote|try|rollback|status|history|at)\b[^`]*)`", PAGES["README.md"])


@pytest.mark.parametrize("command", RELEASES)
def test_release_takes_the_arguments(command: str) -> None:
    """Each `python -m gateway.release clothing …` of the README's table."""
    from gateway.release.__main__ import _parser

    _parser().parse_args(["clothing", *shlex.split(command)])


@pytest.mark.processes
def test_the_lambda_function_answers_here(tiny_store: Path) -> None:
    """The command of docs/deploy.md prints the answer last."""
    (command,) = (line for line in COMMANDS["docs/deploy.md"] if line.startswith("python -c 'from types"))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {**os.environ, "PATH": path, "MODEL_STORE": str(tiny_store), "GATEWAY_MODEL_NAME": "tiny"}
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environ, check=True, capture_output=True, text=True)
    assert ast.literal_eval(done.stdout.splitlines()[-1])["model"]["name"] == "tiny"


# What copies a version to another machine. The first copy breaks off.
CONNECTION = {
    "scp": 'copy "$2" "${3#*:}"',
    "ssh": 'shift; "$@"',
    "kubectl": 'case $3 in get) echo pod/model ;; cp) copy "$4" "${5#*:}" ;; exec) shift 5; "$@" ;; esac',
    "copy": '[ -e tried ] || { mkdir "$2"; touch tried "$2/half.pb"; exit 1; }; cp -r "$1" "$2"',
}


@pytest.mark.parametrize(("program", "model"), [("scp", "imagenet"), ("kubectl", "clothing")])
def test_a_copy_that_broke_off_is_made_again(program: str, model: str, tmp_path: Path) -> None:
    """By the commands of docs/deploy.md: what is half there gets no number, and a number no second version."""
    scripts = map("\n".join, blocks("docs/deploy.md"))
    (script,) = (each for each in scripts if program in each and f"{model}/draft" in each)
    source, there = tmp_path / "model-store" / model / "2", tmp_path / "image-classifier" / "model-store" / model
    for folder in (source, there):
        folder.mkdir(parents=True)
    (source / "model.tflite").touch()
    for name, line in CONNECTION.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    seen = []
    for _ in range(3):
        command = script.replace("/models/", "image-classifier/model-store/")
        subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environ, capture_output=True)
        seen.append(sorted(str(path.relative_to(there)) for path in there.rglob("*.*")))
    assert seen == [["draft/half.pb"], ["2/model.tflite"], ["2/model.tflite", "draft/model.tflite"]]


def test_commands_of_clouds_say_what_they_change() -> None:
    """AWS asks for the function's name, and gcloud for the service and its region."""
    text = re.sub(r"\\\n *", "", "".join(PAGES.values()))
    functions = re.findall(r"aws lambda [a-z]\S* (?:[a-z]\S* )?(--[^`\n]*)", text)
    services = re.findall(r"gcloud run [a-z ]+(-[^`\n]*|--[^`\n]*)", text)
    assert len(functions) >= 6 and [each for each in functions if "--function-name" not in each] == []
    assert len(services) >= 2 and [each for each in services if "--region REGION" not in each] == []


def test_every_command_has_a_test() -> None:
    """A new kind of command needs a test, or the mark."""
    known = ("make ", "python -m training ", "python -m gateway.batch ", *RUN_BY)
    others = [line for page, lines in COMMANDS.items() if page != "docs/tutorial.md" for line in lines]
    assert [line for line in others if not line.startswith(known)] == []
    assert [name for name in RUN_BY.values() if not (ROOT / "tests" / name).exists()] == []
    assert len(RELEASES) >= 6 and len(others) >= 15 and len(ROWS) >= 10 and len(MARKED) >= 30
