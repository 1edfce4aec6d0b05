"""Which folders of a folder of photos are its splits, by the names that archives give them."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from contract.photos import SUFFIXES, is_hidden
from training.errors import DataError
from training.words import counted

SPLIT_NAMES = {  # in English, German, French, Spanish, Italian and Portuguese
    "train": (
        *("train", "training", "trainings", "entrainement", "apprentissage", "entrenamiento"),
        *("addestramento", "treino", "treinamento"),
    ),
    "validation": (
        *("validation", "validate", "valid", "val", "development", "dev", "evaluation", "eval"),
        *("validierung", "validierungs", "validacion", "validazione", "validacao"),
    ),
    "test": ("test", "testing", "holdout", "essai", "prueba", "pruebas", "prova", "teste"),
}
# What stands around them in training_set, seg_train, test-images, val2017, trainset and Testdaten.
_AROUND = (
    "(?:dataset|data|set|images?|imgs?|photos?|pictures|pics|samples|split|folder|dir|seg|daten|bilder|donnees|datos)*"
)
_PATTERNS = {split: re.compile(f"{_AROUND}(?:{'|'.join(names)}){_AROUND}") for split, names in SPLIT_NAMES.items()}
_EVALUATION = re.compile(f"{_AROUND}(?:evaluation|eval){_AROUND}")  # a test split beside one for validation


@dataclass(frozen=True)
class Splits:
    """Where the class folders are.

    Attributes:
        root: The folder, or the one inside that an archive wrapped in it.
        folders: The folder of each split that there is, in the order of `SPLIT_NAMES`; none if the classes are in root.
        remarks: What was left out, or taken for a class although it reads like a split, and why.
    """

    root: Path
    folders: dict[str, Path]
    remarks: tuple[str, ...]


def split_of(name: str) -> str | None:
    """Return the split that a folder's name stands for, or None."""
    return _split_of_words(_words(name))


def _split_of_words(words: Iterable[str]) -> str | None:
    letters = "".join(words)
    return next((split for split, pattern in _PATTERNS.items() if pattern.fullmatch(letters)), None)


def _words(name: str) -> list[str]:
    """Return the words of `train_small`, `TestPhotos` or `Entraînement`, in lower case and without accents."""
    letters = re.sub(r"(?<=[a-z])(?=[A-Z])|[\d_]", " ", unicodedata.normalize("NFKD", name))
    plain = "".join(each for each in letters.lower() if not unicodedata.combining(each))
    return re.findall(r"\w+", plain)


def splits_of(names: Collection[str], unlabelled: Container[str] = ()) -> dict[str, str]:
    """Return the splits that folders beside each other, or the values of a column, stand for, by name.

    Where a name has other words too, those that all such names share do not count: `pets-train` and `pets-test`.
    `evaluation` beside `validation` is the test split, or none if there is another that is not `unlabelled`.
    """
    found = {name: split for name in names if (split := split_of(name))}
    longer = {name: _words(name) for name in names if name not in found and splits_in(name)}
    shared = set.intersection(*map(set, longer.values())) if len(longer) > 1 else set()
    rests = {name: [word for word in words if word not in shared] for name, words in longer.items()}
    more = {name: split for name, rest in rests.items() if (split := _split_of_words(rest))}
    if not set(more.values()) & set(found.values()):  # or they are others: `train_small` and `val_small`
        found |= more
    validations = {name for name, split in found.items() if split == "validation"}
    evaluations = {name for name in validations if any(map(_EVALUATION.fullmatch, _words(name)))}
    if evaluations == validations:
        return found
    others = {name: split for name, split in found.items() if name not in evaluations}
    has_test = any(split == "test" and name not in unlabelled for name, split in others.items())
    return others if has_test else others | dict.fromkeys(evaluations, "test")


def read_like_splits(names: Collection[str]) -> bool:
    """Tell whether each name has the word of a split, and not all of the same: `train_cat`, `test_cat`."""
    found = [splits_in(name) for name in names]
    return all(found) and len(set().union(*found)) > 1


def several_splits(names: Collection[str]) -> list[str]:
    """Return the names that stand for splits, if these are more than one; all names, if they read like splits."""
    found = splits_of(names)
    if len(set(found.values())) > 1:
        return sorted(found)
    return sorted(names) if read_like_splits(names) else []


def splits_in(name: str) -> set[str]:
    """Return the splits that a name, or a word of it, stands for."""
    return {split for word in (*_words(name), name) if (split := split_of(word))}


def find_splits(folder: Path) -> Splits:
    """Find the split folders, which have class folders inside.

    A folder that only reads like a split is a class: `train` beside `bus` and `car`, if these have photos. `test`
    beside them, without class folders inside, is more probably a split that has no labels.

    Raises:
        DataError: There is no such folder, or one that may be a split or a class.
    """
    if not folder.is_dir():
        received = "a file" if folder.exists() else "a path where there is none"
        raise DataError(f"Expected a folder of photos. Received {received}: {folder}")
    folder = _root(folder)
    inside = class_folders(folder)
    classes_in = {path: {each.name for each in class_folders(path)} for path in inside if splits_in(path.name)}
    unlabelled = {path.name for path, names in classes_in.items() if not names}
    split_names = splits_of([path.name for path in classes_in], unlabelled)
    others = [path for path in inside if path.name not in split_names]
    named = {path: names for path, names in classes_in.items() if path.name in split_names}
    named_with_classes = {path: names for path, names in named.items() if names}
    if not named_with_classes:
        held_out = [path.name for path in named if split_names[path.name] != "train"]
        if held_out and len(others) > 1:  # beside one, as `valid` beside `invalid`, it has to be a class
            raise DataError(
                f"Expected splits, or class folders. Received both in {folder}: {held_out[0]}/ reads like a split, but"
                f" has no class folders. If {held_out[0]} is a split, move it elsewhere; if it is a class, rename it."
            )
        flat = [f"{path.name}/ is taken for a class, not for a split: it has no class folders" for path in named]
        return Splits(folder, {}, tuple(flat))
    if _are_classes(named_with_classes, others):
        classes = [f"{path.name}/ is taken for a class: folders beside it have photos" for path in named_with_classes]
        return Splits(folder, {}, tuple(classes))
    folders: dict[str, Path] = {}
    remarks = left_out_photos(folder, "split folders")
    remarks += [f"Left out {path.name}/: it is taken for no split" for path in others]
    for path in sorted(named, key=lambda path: (path.name.lower() not in SPLIT_NAMES, len(path.name), path.name)):
        split = split_names[path.name]
        if path not in named_with_classes:
            remarks.append(f"Left out {path.name}/: it has no class folders")
        elif split in folders:
            remarks.append(f"Left out {path.name}/: {folders[split].name}/ is taken for {split}")
        else:
            folders[split] = path
    known: set[str] = set()  # the classes of train, which is unwrapped first
    for split in (split for split in SPLIT_NAMES if split in folders):
        folders[split] = _unwrap(folders[split], known)
        known |= _class_names(folders[split])
    return Splits(folder, {split: folders[split] for split in SPLIT_NAMES if split in folders}, tuple(remarks))


def _root(folder: Path) -> Path:
    """Return a folder, or the one inside that an archive wrapped in it."""
    _check_links(folder)
    while len(only := class_folders(folder)) == 1 and not _has_photos(folder):
        if split_of(only[0].name) or not class_folders(only[0]):
            break
        folder = only[0]
        _check_links(folder)
    return folder


def _are_classes(named: dict[Path, set[str]], others: Collection[Path]) -> bool:
    """Tell whether folders that read like splits are classes, as the `others` beside them.

    Raises:
        DataError: Only one folder beside them has photos: it may be a class, or photos without labels.
    """
    seen = Counter(name for names in named.values() for name in names)
    # A class stands in several splits, or beside the split; what is inside a class called train does not.
    if any(count > 1 for count in seen.values()) or {path.name for path in others} & set(seen):
        return False
    with_photos = [path for path in others if _has_photos(path)]
    if len(with_photos) == 1 and len(seen) > 1:
        name = next(iter(named)).name
        raise DataError(
            f"Expected splits, or class folders. Received both in {with_photos[0].parent}: {name}/ has folders with"
            f" photos, and {with_photos[0].name}/ has photos. If {name} is a split, move {with_photos[0].name}/"
            f" elsewhere; if it is a class, move its photos out of its folders."
        )
    return bool(with_photos) or (len(others) > 0 and len(seen) == 1)


def class_folders(folder: Path) -> list[Path]:
    """Return the folders inside a folder, in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path))


def _class_names(split: Path) -> set[str]:
    _check_links(split)
    return {path.name for path in class_folders(split)}


def _check_links(folder: Path) -> None:
    """Refuse a folder of class folders or splits with a broken link that may be one.

    Raises:
        DataError: Such a link has no suffix.
    """
    links = [path for path in folder.iterdir() if not (path.suffix or path.exists() or is_hidden(path))]
    if links:
        raise DataError(f"Expected class folders or splits in {folder}. Received also a broken link: {links[0]}")


def class_name(name: str) -> str:
    """Return a folder's name as a class: the same for both Unicode forms of `é`, of which macOS writes the longer."""
    return unicodedata.normalize("NFC", name).strip()


def _unwrap(split: Path, known: Collection[str]) -> Path:
    """Return the folder with the classes: some archives contain seg_train/seg_train/CLASS, or train/images/CLASS."""
    inside = class_folders(split)
    is_wrapped = len(inside) == 1 and inside[0].name not in known and class_folders(inside[0])
    return inside[0] if is_wrapped and not _has_photos(split) else split


def left_out_photos(folder: Path, beside: str) -> list[str]:
    """Return a line with the photos beside the folders in a folder, if there are any."""
    paths = sorted(_photos(folder))
    return [f"Left out {counted(len(paths), 'photo')} beside the {beside}, such as {paths[0]}"] if paths else []


def _has_photos(folder: Path) -> bool:
    return any(_photos(folder))


def _photos(folder: Path) -> Iterator[Path]:
    files = (path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return (path for path in files if not (path.is_dir() or is_hidden(path)))
