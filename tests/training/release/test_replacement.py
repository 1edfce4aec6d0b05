"""training/release/replacement.py: a name keeps its classes, unless somebody says otherwise."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from contract.document import Contract
from contract.release import Release
from contract.store import versions_of
from tests.programs.small_training import draw
from training.__main__ import main
from training.errors import ExportError, TrainingError
from training.release.replacement import refuse_other_classes, version_of
from training.runs.folder import record_release

pytestmark = pytest.mark.tensorflow


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("cat", "dog"), r"has 3 classes, this model 2: 1 missing \(bird\)\. Nothing was released"),
        (("cat", "dog", "bird", "cow"), r"this model 4: 1 new \(cow\)\."),
        (tuple("abcdefg"), r"7 new \(a, b, c, d, e, …\) and 3 missing \(cat, dog, bird\)\."),
        (("Cat", "dog", "bird"), r"1 new \(Cat\) and 1 missing \(cat\)\. .*--name.*--replace-classes"),
        (("dog", "cat", "bird"), "in another order"),
        (("cat", "dog", "bird", "bird"), "this model 4: the same names, in another order or number"),
    ],
)
def test_other_classes_are_refused(tiny_store: Path, classes: tuple[str, ...], said: str) -> None:
    """The message counts and names those that differ, and says what can be done."""
    with pytest.raises(ExportError, match=said):
        refuse_other_classes(tiny_store, "tiny", classes)


def test_classes_are_compared_with_the_version_that_answers(tiny_store: Path, tmp_path: Path) -> None:
    """A newer one that nobody promoted neither stands in the way of a release, nor lets others through."""
    shutil.copytree(tiny_store / "tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / "2").mkdir()
    (tmp_path / "tiny" / "2" / "saved_model.pb").touch()
    (tmp_path / "tiny" / "release.json").write_text(Release(stable=1).to_json())
    refuse_other_classes(tmp_path, "tiny", ("cat", "dog", "bird"))
    with pytest.raises(ExportError, match="Version 1 of 'tiny', which answers, has 3 classes, this model 2"):
        refuse_other_classes(tmp_path, "tiny", ("a", "b"))


def test_what_replaces_no_classes_is_accepted(tiny_store: Path, tmp_path: Path) -> None:
    """The same ones, a new name, and a name whose version that answers has no contract."""
    refuse_other_classes(tiny_store, "tiny", ("cat", "dog", "bird"))
    refuse_other_classes(tiny_store, "other", ("a", "b"))
    (tmp_path / "plain" / "1").mkdir(parents=True)
    (tmp_path / "plain" / "1" / "saved_model.pb").touch()
    refuse_other_classes(tmp_path, "plain", ("a", "b"))


def test_a_contract_of_another_program_stops_no_release(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its classes are unknown; whoever asks for that version gets its name, and what helps."""
    from training.judge.predictors import StoredVersion

    monkeypatch.setattr("contract.document.CONTRACT_VERSION", 2)
    refuse_other_classes(tiny_store, "tiny", ("a", "b"))
    with pytest.raises(TrainingError, match=r"^tiny 1, tflite has another contract: .* Received: 1. Use the"):
        StoredVersion(tiny_store, "tiny", 1, "tflite")


def test_a_release_asks_again(tiny_store: Path, tmp_path: Path) -> None:
    """While a model is trained, others may release one under its name, or the first one."""
    from tests.programs.tiny_model import SPEC, build
    from training.release.sources import Source, release

    shutil.copytree(tiny_store / "tiny", tmp_path / "tiny")
    with pytest.raises(ExportError, match=r"'tiny', which answers, has 3 classes, this model 2: .*--replace-classes"):
        release(Source(build(0, classes=2), Contract("tiny", ("a", "b"), SPEC)), tmp_path)
    assert list(versions_of(tmp_path, "tiny")) == [1]


def test_of_versions_of_a_run_the_one_that_answers_is_found(tiny_store: Path, tmp_path: Path) -> None:
    """Or else the newest: whoever exports a run twice need not promote it again."""
    from training.judge.predictors import StoredVersion

    identity = StoredVersion(tiny_store, "tiny", 1, "tflite").contract.identity
    assert version_of(tmp_path, tiny_store, "tiny") is None
    for number in ("1", "2", "3"):
        shutil.copytree(tiny_store / "tiny" / "1", tmp_path / "tiny" / number)
        record_release(tmp_path, tmp_path / "tiny" / number, identity if number != "3" else "another")
    for stable, found in ((1, 1), (2, 2), (3, 2)):
        (tmp_path / "tiny" / "release.json").write_text(Release(stable=stable).to_json())
        assert version_of(tmp_path, tmp_path, "tiny") == found


def test_commands_ask_before_they_work(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` before it reads a photo, `export` before it writes; with the option it is released."""
    released: list[object] = []
    monkeypatch.setattr("training.release.sources.release", lambda *_, **given: released.append(given))
    store = ["--name", "tiny", "--store", str(tiny_store)]
    assert main(["train", str(draw(tmp_path / "photos")), "--preset", "plain-cnn", *store]) == 1
    (tmp_path / "classes.txt").write_text("a\nb\n")
    export = ["export", "--architecture", "plain-cnn", "--weights", "none", "--classes", str(tmp_path / "classes.txt")]
    assert main([*export, *store]) == 1
    out, err = capsys.readouterr()
    assert " photos for " not in out and err.count("--replace-classes") == 2
    assert main([*export, *store, "--replace-classes"]) == 0 and released == [{"replace_classes": True}]
