"""training/release/replacement.py: a name keeps its classes, unless somebody says otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.programs.small_training import draw
from training.__main__ import main
from training.errors import ExportError
from training.release.replacement import refuse_other_classes

pytestmark = pytest.mark.tensorflow


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (("cat", "dog"), r"'tiny' has 3 classes, this model 2: 1 missing \(bird\)\. Nothing was released"),
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


def test_what_replaces_no_classes_is_accepted(tiny_store: Path, tmp_path: Path) -> None:
    """The same ones, a new name, and a name whose newest version has no contract."""
    refuse_other_classes(tiny_store, "tiny", ("cat", "dog", "bird"))
    refuse_other_classes(tiny_store, "other", ("a", "b"))
    (tmp_path / "plain" / "1").mkdir(parents=True)
    (tmp_path / "plain" / "1" / "saved_model.pb").touch()
    refuse_other_classes(tmp_path, "plain", ("a", "b"))


def test_commands_ask_before_they_work(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` before it reads a photo, `export` before it writes; with the option it is released."""
    released: list[object] = []
    monkeypatch.setattr("training.release.sources.release", lambda *arguments: released.append(arguments))
    store = ["--name", "tiny", "--store", str(tiny_store)]
    assert main(["train", str(draw(tmp_path / "photos")), "--preset", "plain-cnn", *store]) == 1
    (tmp_path / "classes.txt").write_text("a\nb\n")
    export = ["export", "--architecture", "plain-cnn", "--weights", "none", "--classes", str(tmp_path / "classes.txt")]
    assert main([*export, *store]) == 1
    out, err = capsys.readouterr()
    assert "Read " not in out and err.count("--replace-classes") == 2
    assert main([*export, *store, "--replace-classes"]) == 0 and len(released) == 1
