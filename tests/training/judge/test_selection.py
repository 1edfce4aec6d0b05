"""training/judge/selection.py: which photos tell most about a model, and which class each of them should have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract.document import ImageSpec
from tests.programs.photos import encode, photo
from training.judge import selection
from training.judge.selection import Scored, choose_sections, find_photos, score

CLASSES = ("hat", "shoes", "train")


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("hat/a.jpg", ".", "hat"),
        ("validation/hat/a.jpg", ".", "hat"),
        ("train/hat/a.jpg", ".", "hat"),
        ("train/train/a.jpg", ".", "train"),
        ("hat/shoes/a.jpg", ".", "hat"),
        ("hat/new/a.jpg", "hat", "hat"),
        ("hat/a.jpg", "hat/a.jpg", "hat"),
        ("unsorted/a.jpg", ".", None),
        ("hat.jpg/a.jpg", "hat.jpg/a.jpg", None),
        ("a.jpg", ".", None),
    ],
)
def test_the_true_class_is_that_of_the_class_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, source: str, expected: str | None
) -> None:
    """Splits, folders inside a class, and single photos included; other folders give none."""
    monkeypatch.chdir(tmp_path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(b"")
    assert find_photos([source], CLASSES) == {path: None if expected is None else CLASSES.index(expected)}


def test_the_folder_where_one_stands_is_a_class_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is known, although `.` does not say it."""
    (tmp_path / "shoes").mkdir()
    (tmp_path / "shoes" / "a.jpg").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "shoes")
    assert find_photos(["."], CLASSES) == find_photos(["a.jpg"], CLASSES) == {"a.jpg": 1}


def scored(count: int, label: int | None) -> list[Scored]:
    """Return photos of growing probability for the first of two classes."""
    rows = np.linspace(0.01, 0.99, count, dtype=np.float32)
    return [Scored(f"{label}-{i:03}", label, np.array([p, 1 - p])) for i, p in enumerate(rows)]


def test_labelled_photos_are_shown_by_what_is_remarkable_once_each() -> None:
    """The mistakes of which the model is surest, the least probable right ones, and the same random ones each time."""
    photos = scored(40, 0)
    sections = choose_sections(photos)
    assert list(sections) == [
        "Most confident mistakes", "Lowest probability of the true class among the others", "At random"
    ]  # fmt: skip
    mistakes, lowest, drawn = ([photo.path for photo in section] for section in sections.values())
    assert mistakes == [photo.path for photo in photos[:10]] and lowest == [photo.path for photo in photos[10:20]]
    assert len({*mistakes, *lowest, *drawn}) == 30 and sections == choose_sections(photos)


def test_photos_without_a_class_are_shown_from_the_least_certain() -> None:
    """And at random; few photos are all shown, as they come."""
    sections = choose_sections(scored(40, None))
    assert list(sections) == ["Least certain", "At random"]
    assert {photo.path for photo in sections["Least certain"]} == {f"None-{i:03}" for i in range(15, 25)}
    assert choose_sections(few := scored(10, 1)) == {"10 photos": few}


def test_of_many_photos_a_sample_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same one each time, in batches."""
    monkeypatch.setattr(selection, "MOST_SCORED", 40)
    for number in range(50):
        (tmp_path / f"{number}.png").write_bytes(encode(photo(8, 8, number), "PNG"))
    asked: list[int] = []

    def predict(pixels: np.ndarray) -> np.ndarray:
        asked.append(len(pixels))
        return np.ones((len(pixels), 1), np.float32)

    found = find_photos([str(tmp_path)], CLASSES)
    first, second = ([each.path for each in score(found, ImageSpec(8, 8), predict)] for _ in range(2))
    assert first == second and len(first) == 40 and asked == [32, 8, 32, 8]
