"""training/release/store.py: a version appears whole or not at all, and its number is never used twice."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from contract.store import versions_of
from tests.programs.stack import wait_until
from training.errors import ExportError
from training.release.store import check_name, publish, staged_version


def release(store, model="tiny"):
    """Release a version of one file, and return its number."""
    with staged_version(store, model) as staging:
        (staging / "model").write_text("content")
        return int(publish(staging).name)


def test_versions_are_numbered_from_one(tmp_path):
    """Each release is the next number, whole, and nothing else is left beside it that a server could take for one."""
    assert [release(tmp_path) for _ in range(3)] == [1, 2, 3]
    assert list(versions_of(tmp_path, "tiny")) == [1, 2, 3]
    assert (tmp_path / "tiny" / "3" / "model").read_text() == "content"
    assert all(path.name.startswith(".") or path.name.isdigit() for path in (tmp_path / "tiny").iterdir())


def test_numbers_are_not_reused(tmp_path):
    """Whoever removes all of a model goes on counting, since gateways and people know the numbers that were."""
    release(tmp_path), release(tmp_path)
    shutil.rmtree(tmp_path / "tiny")
    assert release(tmp_path) == 3
    assert release(tmp_path, "other") == 1


def test_releases_never_get_the_number_of_what_an_image_makes_by_itself(tmp_path):
    """That is 0, wherever the image puts it."""
    (tmp_path / "tiny" / "0").mkdir(parents=True)
    assert release(tmp_path) == 1


def test_numbers_follow_versions_of_others(tmp_path):
    """A version that somebody copied into the store is counted, also if it came while the new one was written."""
    with staged_version(tmp_path, "tiny") as staging:
        (tmp_path / "tiny" / "17").mkdir()
        assert publish(staging).name == "18"


def test_failed_export_releases_nothing(tmp_path):
    """An exception takes the staging folder with it, and its number is free."""
    with pytest.raises(RuntimeError), staged_version(tmp_path, "tiny"):
        raise RuntimeError
    assert list(versions_of(tmp_path, "tiny")) == [] and not (tmp_path / "tiny" / ".staging").exists()
    assert release(tmp_path) == 1


def test_leftovers_of_a_killed_export_are_cleared(tmp_path):
    """What a killed export had written is in no later version."""
    leftover = tmp_path / "tiny" / ".staging" / "leftover"
    leftover.mkdir(parents=True)
    release(tmp_path)
    assert not leftover.exists() and [path.name for path in (tmp_path / "tiny" / "1").iterdir()] == ["model"]


def test_second_export_of_a_model_waits(tmp_path, monkeypatch, lines):
    """One export at a time writes a model, and the next one waits for its end; another model does not wait."""
    with ThreadPoolExecutor() as pool, staged_version(tmp_path, "tiny") as staging:
        with monkeypatch.context() as patch, pytest.raises(ExportError, match="Another export of 'tiny' is running"):
            patch.setattr("training.release.store.WAIT_S", 0)
            release(tmp_path)
        lines.clear()
        later = pool.submit(release, tmp_path)
        wait_until(lambda: lines, 60)  # that it waits
        assert lines == ["Waiting until another export of 'tiny' has ended"]
        assert staging.is_dir()
        assert release(tmp_path, "other") == 1
        publish(staging)
    assert later.result(60) == 2


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "my model", "-x", "ä", "a\n"])
def test_bad_names_are_refused(tmp_path, name):
    """A name that could leave the store, or that a URL or a flag would garble, creates nothing."""
    with pytest.raises(ExportError, match="Expected a model name"), staged_version(tmp_path / "store", name):
        pass
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["imagenet", "Clothing-2", "v1.5_small", "7"])
def test_good_names_are_taken(name):
    """Letters, digits, dots, underscores and hyphens make a name."""
    check_name(name)
