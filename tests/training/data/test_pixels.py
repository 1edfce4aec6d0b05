"""training/data/pixels.py: photos as pixels, and their cache."""

import os
import re
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from contract.document import ImageSpec
from contract.image import decode
from tests.programs.photos import encode, flip_bit, photo
from training.data import pixels
from training.data.folder import Photo
from training.data.pixels import ABANDONED_S, Photos, load_pixels, spread_by_class
from training.errors import DataError

SPEC = ImageSpec(8, 8)


@pytest.fixture
def cache(tmp_path):
    """A folder for decoded pixels."""
    return tmp_path / "cache"


@pytest.fixture
def photos(fill):
    """Six photos of two classes."""
    folder = fill({"cat": 3, "dog": 3})
    return [Photo(path, int(path.parent.name == "dog")) for path in sorted(folder.rglob("*.jpg"))]


@pytest.fixture
def decoded(monkeypatch):
    """A list that grows with each image that is decoded."""
    calls = []

    def counted(image, spec):
        calls.append(image)
        return decode(image, spec)

    monkeypatch.setattr(pixels, "decode", counted)
    return calls


def test_pixels_are_the_contracts(photos, cache):
    """Each image is what contract/image.py makes of the file, beside its label and path."""
    pixels = load_pixels(photos, SPEC, cache)
    assert pixels.images.dtype == np.uint8 and pixels.images.shape == (6, 8, 8, 3)
    for each, image in zip(photos, pixels.images, strict=True):
        np.testing.assert_array_equal(image, decode(each.path.read_bytes(), SPEC).pixels)
    assert pixels.labels.tolist() == [0, 0, 0, 1, 1, 1] and pixels.paths == [each.path for each in photos]


def test_corrupt_files_are_named_and_skipped(photos, cache):
    """Pixels, labels and paths of the rest stay together, also when they come from the cache."""
    broken, link, empty, flipped = photos[1].path, photos[2].path, photos[4].path, photos[5].path
    broken.write_bytes(broken.read_bytes()[:300])
    link.unlink()
    link.symlink_to("nothing")
    empty.write_bytes(b"")
    flipped.write_bytes(flip_bit(encode(photo(24, 16), "PNG")))
    for loaded in (load_pixels(photos, SPEC, cache), load_pixels(photos, SPEC, cache)):
        assert sorted(loaded.skipped) == [str(broken), str(link), str(empty), str(flipped)]
        assert "Received: nothing" in loaded.skipped[str(empty)] and "No such file" in loaded.skipped[str(link)]
        assert loaded.labels.tolist() == [0, 1] and len(loaded.images) == 2
        np.testing.assert_array_equal(loaded.images[1], decode(loaded.paths[1].read_bytes(), SPEC).pixels)
    link.unlink()
    link.write_bytes(flipped.with_name("000.jpg").read_bytes())
    assert str(link) not in load_pixels(photos, SPEC, cache).skipped


@pytest.mark.parametrize(("split", "refused"), [("train", True), ("validation", False)])
def test_a_class_without_a_photo_that_decodes_is_refused(photos, cache, caplog, monkeypatch, split, refused):
    """Training would never see it; elsewhere it is a warning. A CSV may have absolute paths beside relative ones."""
    for each in photos[:3]:
        each.path.write_text("<html>")
    monkeypatch.chdir(photos[0].path.parent)
    photos[0] = Photo(Path(photos[0].path.name), 0)
    lost = rf"3 of 3 photos for {split} in .*cat cannot be decoded"
    with caplog.at_level("INFO"), pytest.raises(DataError, match=lost) if refused else nullcontext():
        Photos(cache, cache).read(split, photos, SPEC)
    assert refused or re.search("Warning: " + lost, caplog.text)


def test_no_photo_that_decodes_is_an_error(photos, cache):
    """Files that are all corrupt are named, and nothing is kept."""
    for each in photos:
        each.path.write_bytes(b"not a photo")
    with pytest.raises(DataError, match=r"Received 6 that cannot be decoded: .*000\.jpg"):
        load_pixels(photos, SPEC, cache)
    assert list(cache.iterdir()) == []


def test_pixels_do_not_wait_for_a_slow_disk_in_memory(photos, cache, decoded, monkeypatch):
    """A few photos are decoded ahead of the one that is written, and no more."""
    ahead = []

    def noted(positions, _):
        for position in positions:
            ahead.append(len(decoded) - position)
            yield position

    monkeypatch.setattr(pixels, "AT_ONCE", 2)
    monkeypatch.setattr(pixels, "estimated", noted)
    load_pixels(photos, SPEC, cache)
    assert len(decoded) == 6 and max(ahead) < 2


def test_second_load_decodes_nothing(photos, cache, decoded):
    """The cache gives the same pixels without a decode."""
    first = load_pixels(photos, SPEC, cache)
    assert len(decoded) == 6
    second = load_pixels(photos, SPEC, cache)
    assert len(decoded) == 6 and first.digest == second.digest
    np.testing.assert_array_equal(first.images, second.images)


def test_a_folder_by_another_path_is_the_same(photos, cache, decoded, monkeypatch):
    """Nothing is decoded again, and a photo that is skipped has the name that this call gave it."""
    photos[1].path.write_bytes(b"not a photo")
    load_pixels(photos, SPEC, cache)
    monkeypatch.chdir(photos[0].path.parent.parent)
    relative = [Photo(each.path.relative_to(Path.cwd()), each.label) for each in photos]
    found = load_pixels(relative, SPEC, cache)
    assert len(decoded) == 6 and list(found.skipped) == [str(relative[1].path)]
    assert found.paths == [each.path for each in relative if each is not relative[1]]


def test_changed_file_decodes_again(photos, cache, decoded, jpegs):
    """New content under an old name is seen, though the file is as large and as old as before."""
    path, size, stat = photos[2].path, 50_000, photos[2].path.stat()
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    before = load_pixels(photos, SPEC, cache)
    path.write_bytes(jpegs[20].ljust(size, b"\0"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = load_pixels(photos, SPEC, cache)
    assert len(decoded) == 12 and not np.array_equal(before.images[2], after.images[2])


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), PermissionError(13, "Permission denied")])
def test_a_disk_that_failed_is_read_again(photos, cache, monkeypatch, decoded, error):
    """A photo that could not be read is missing once, with what was computed from the others; not for ever."""
    read = Path.read_bytes

    def fail(path):
        if path == photos[2].path:
            raise error
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        before = load_pixels(photos, SPEC, cache)
        computed = before.file.with_suffix(".0.npy")
        computed.write_bytes(b"")
    assert str(error) == before.skipped[str(photos[2].path)] and len(before.images) == 5
    if isinstance(error, PermissionError):  # which is no accident: the others are not decoded each time
        assert len(load_pixels(photos, SPEC, cache).images) == len(decoded) == 5
        photos[2].path.chmod(0o600)
    assert len(load_pixels(photos, SPEC, cache).images) == 6
    assert computed.exists() == isinstance(error, PermissionError)


@pytest.mark.parametrize("suffix", ["json", "pixels"])
def test_a_damaged_cache_decodes_again(photos, cache, suffix):
    """A crash of the machine can leave short files under their final names."""
    before = load_pixels(photos, SPEC, cache)
    expected = np.array(before.images)
    before.file.with_suffix(f".{suffix}").write_bytes(b"")
    np.testing.assert_array_equal(load_pixels(photos, SPEC, cache).images, expected)


def test_another_decoder_decodes_again(photos, cache, decoded, monkeypatch):
    """Pixels that an older Pillow made are not those that are served."""
    load_pixels(photos, SPEC, cache)
    monkeypatch.setattr(pixels.PIL, "__version__", "0.1")
    load_pixels(photos, SPEC, cache)
    assert len(decoded) == 12


def test_other_size_decodes_again(photos, cache):
    """Pixels of one size are not given for another."""
    load_pixels(photos, SPEC, cache)
    assert load_pixels(photos, ImageSpec(10, 12), cache).images.shape == (6, 10, 12, 3)


@pytest.mark.parametrize("killed", [1, 2])
def test_cache_of_a_killed_run_is_not_used(photos, cache, decoded, monkeypatch, killed):
    """A process that ended before its last rename leaves nothing that counts."""
    renames = []

    def rename(path, target):
        renames.append(target)
        if len(renames) == killed:
            raise KeyboardInterrupt
        path.replace(target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pixels.Path, "rename", rename)
        load_pixels(photos, SPEC, cache)
    assert len(load_pixels(photos, SPEC, cache).images) == 6 and len(decoded) == 12


def test_what_a_killed_run_left_is_removed(photos, cache):
    """Its pixels take no room for ever, also of other photos; what may still be written stays, and what is not ours."""
    file = load_pixels(photos, SPEC, cache).file
    names = f"{file.name}.draft-{1:08x}", f"{1:032x}.a1.npy.draft-{1:08x}", f"{file.name}.draft-{2:08x}", "a.b.draft-1"
    drafts = [cache / name for name in names]
    for draft in drafts:
        draft.write_bytes(b"pixels")
        if draft is not drafts[2]:
            os.utime(draft, (0, time.time() - 2 * ABANDONED_S))
    load_pixels(photos, SPEC, cache)
    assert file.exists() and [draft for draft in drafts if draft.exists()] == drafts[2:]


def test_a_disk_without_room_for_the_pixels_is_refused(photos, cache, decoded, monkeypatch):
    """Before anything is decoded, with the place and the size."""
    needed = len(photos) * 8 * 8 * 3
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(DataError, match=rf"need 0\.0 GB in {cache}, where 0\.0 GB are free"):
        load_pixels(photos, SPEC, cache)
    assert not decoded
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    assert len(load_pixels(photos, SPEC, cache).images) == 6


def test_cache_that_cannot_be_written_is_named(photos, tmp_path):
    """A path that is no folder, like a full disk, is an error with the place."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"write decoded photos to .*file"):
        load_pixels(photos, SPEC, tmp_path / "file")


def test_digest_follows_content_and_labels(photos, cache, tmp_path, jpegs):
    """Time and place of files do not change it; a label or one photo's bytes do."""
    digest = load_pixels(photos, SPEC, cache).digest
    moved = photos[0].path.rename(tmp_path / "moved.jpg")
    assert load_pixels([Photo(moved, 0), *photos[1:]], SPEC, cache).digest == digest
    assert load_pixels([Photo(moved, 1), *photos[1:]], SPEC, cache).digest != digest
    moved.write_bytes(jpegs[20])
    assert load_pixels([Photo(moved, 0), *photos[1:]], SPEC, cache).digest != digest


@pytest.mark.parametrize(
    ("photos", "most", "chosen"),
    [
        ([5, 4], 20, [5, 4]),
        ([50, 0, 2, 50], 20, [9, 0, 2, 9]),
        ([60, 3, 40], 100, [57, 3, 40]),
        ([1, 1, 1, 1, 1], 3, [1, 0, 1, 0, 1]),
    ],
)
def test_of_rare_classes_all_photos_are_chosen(photos, most, chosen):
    """In whatever order they are; equally many of the others, as far as they go."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(photos)), photos))
    positions = spread_by_class(labels, most)
    assert (np.diff(positions) > 0).all() and np.bincount(labels[positions], minlength=len(photos)).tolist() == chosen
