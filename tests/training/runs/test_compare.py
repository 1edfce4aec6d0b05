"""`python -m training runs`: lists run folders, and compares some."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from contract.document import Contract, ImageSpec, Novelty, Origin
from training.__main__ import main
from training.errors import TrainingError
from training.runs.folder import read_run, record_release

ARCHITECTURE = "[small]" * 12  # is not cut at 80 columns where the output is no terminal


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs of a model that differ in their weights and dropout, one that was stopped, one of another release."""
    for time, dropout, accuracy in (("20260101-000000", 0.3, 0.91), ("20260102-000000", 0.5, 0.89)):
        run = tmp_path / "runs" / "clothing" / time
        (run / "golden").mkdir(parents=True)
        origin = Origin(ARCHITECTURE, f"{dropout}[/b].h5", training_s=90, recipe={"dropout": dropout, "seed": 0})
        contract = Contract("clothing", ("a", "b"), ImageSpec(8, 8), origin, {"validation_accuracy": accuracy})
        (run / "contract.json").write_bytes(contract.to_json())
    for name, number in (("clothing", 1), ("clothing", 2), ("other", 1), ("clothing", 10)):  # of the last run
        record_release(run, Path(name, str(number)), "0123456789abcdef")
        with (run / "releases.jsonl").open("a") as history:
            history.write('{"identity": "01')  # a release was killed
    for name in ("20260103-000000", "20260104-000000"):
        (tmp_path / "runs" / "clothing" / name / "golden").mkdir(parents=True)
    (tmp_path / "runs" / "clothing" / name / "contract.json").write_text('{"contract_version": 0}')
    return tmp_path / "runs"


def test_runs_are_listed_newest_first(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line for each: the path that other commands take, its figures and versions, or why it has none."""
    monkeypatch.chdir(runs.parent)
    assert main(["runs"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["runs/clothing/20260104-000000", "unreadable", "contract"],
        ["runs/clothing/20260103-000000", "not", "finished"],
        ["runs/clothing/20260102-000000", ARCHITECTURE, "0.89", "1.5", "…", "2,", "other/1,", "10"],
        ["runs/clothing/20260101-000000", ARCHITECTURE, "0.91", "1.5"],
    ]


def test_compared_runs_show_figures_and_what_differs(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights and the dropout differ; the seed and the architecture do not, so they are not shown."""
    monkeypatch.chdir(runs / "clothing" / "20260101-000000")
    assert main(["runs", ".", "../20260102-000000"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["clothing/20260101-000000", "clothing/20260102-000000"],
        ["validation_accuracy", "0.91", "0.89"],
        ["weights", "0.3[/b].h5", "0.5[/b].h5"],
        ["recipe.dropout", "0.3", "0.5"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "{runs}/none"], "Expected runs in {runs}/none/NAME/TIME, where train leaves them. Received: none"),
        (["--runs", "{runs}/clothing"], "Expected runs in {runs}/clothing/NAME/TIME, where train leaves them. Rec"),
        (["{runs}/none"], "Expected a run folder that train has finished; `python -m training runs` lists them. Rec"),
        (["{runs}/clothing/20260103-000000"], "lists them. Received: {runs}/clothing/20260103-000000 ("),
        (["{runs}/clothing/20260104-000000"], "{runs}/clothing/20260104-000000 cannot be read, as it is damaged or of"),
    ],
)
def test_missing_and_unfinished_runs_are_refused(
    runs: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """A folder without runs or of one model, no such run, one that was stopped, one of another release."""
    assert main(["runs", *(argument.format(runs=runs) for argument in arguments)]) == 1
    assert message.format(runs=runs) in capsys.readouterr().err


@pytest.mark.tensorflow
@pytest.mark.parametrize("damaged", ["novelty.npy", "model.keras"])
def test_a_run_with_a_damaged_file_is_refused(tmp_path: Path, damaged: str) -> None:
    """NumPy's and Keras' errors for a file that is empty, or has lost its parts, are no traceback."""
    contract = Contract("m", ("a", "b"), ImageSpec(8, 8), novelty=Novelty(0.5, 0.0, 30))
    (tmp_path / "contract.json").write_bytes(contract.to_json())
    (tmp_path / "golden").mkdir()
    np.save(tmp_path / "novelty.npy", np.ones((4, 2)))
    zipfile.ZipFile(tmp_path / "model.keras", "w").close()
    if damaged == "novelty.npy":
        (tmp_path / damaged).write_bytes(b"")
    with pytest.raises(TrainingError, match=f"Expected a run folder that train has finished. Received {tmp_path}: "):
        read_run(tmp_path)
