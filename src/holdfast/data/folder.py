"""An image folder: one sub-folder a class."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np

from holdfast.data.classes import read_classes
from holdfast.data.files import printable
from holdfast.data.images import ENDINGS, Resizing
from holdfast.data.pictures import Pictures
from holdfast.errors import InputError, suggest


class Folder(Pictures):
    """Pictures with labels int64 by the sorted names of the sub-folders.

    Where the folder holds `train` and `test`, `split` chooses, and classes are numbered over both,
    so that a class absent from one keeps its number.

    Args:
        classes: a file that says the number of each sub-folder: see `classes.read_classes`.
        resizing: how images come to one size.

    Raises:
        InputError: no classes, a class without images, an unreadable image, or, when its shape or
            rows are asked for, images that differ in size.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        split: str,
        scale: bool,
        classes: Path | None = None,
        resizing: Resizing | None = None,
    ) -> None:
        found = labelled_files(folder, split, classes, ENDINGS, "images (PNG, JPEG, ...)")
        paths, self._y, self.class_names = found
        super().__init__(paths, name, scale, resizing)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        return self._images(start, stop), self.labels(start, stop)

    def labels(self, start: int, stop: int) -> np.ndarray:
        return self._y[start:stop].copy()


def labelled_files(
    folder: Path, split: str, classes: Path | None, endings: Collection[str], what: str
) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """The paths of the files of a folder with one sub-folder a class, in the order of the classes,
    the class of each [n] int64, and the names of the classes.

    Args:
        split: chooses, where the folder holds `train` and `test`; classes are numbered over both.
        classes: a file that says the number of each sub-folder; None: their sorted names.
        endings: of the files that count, in lower case.
        what: such files are called, with examples in brackets.

    Raises:
        InputError: no classes, or a class without such files.
    """
    root, parts = _split(folder, split)
    names = sorted({printable(path.name) for part in parts for path in _folders(part)})
    numbers, class_names = {text: i for i, text in enumerate(names)}, tuple(names)
    if classes is not None:
        numbers, class_names = read_classes(classes, names)
    kind, _, examples = what.partition(" ")
    paths: list[str] = []  # texts: a million of objects would take half a gigabyte
    labels: list[int] = []
    for home in sorted(_folders(root), key=lambda home: (numbers[printable(home.name)], home.name)):
        found = [
            os.path.join(parent, name)
            for parent, folders, files in os.walk(home)
            for name in (*folders, *files)  # what is named as a file but is none is refused later
            if os.path.splitext(name)[1].lower() in endings and not name.startswith(".")
        ]
        if not found:
            raise InputError(
                f"{home} has no {kind}; expected at least one {examples} in the folder of each "
                "class."
            )
        paths += sorted(found, key=lambda path: path.replace(os.sep, "\0"))  # folder by folder
        labels += [numbers[printable(home.name)]] * len(found)
    if not paths:
        raise InputError(f"{root} has no {kind}; expected a sub-folder of {what} for each class.")
    return paths, np.array(labels, np.int64), class_names


def _split(folder: Path, split: str) -> tuple[Path, list[Path]]:
    parts = {path.name: path for path in _folders(folder)}
    if not {"train", "test"} <= parts.keys():
        return folder, [folder]
    if split not in parts:
        raise InputError(f"{folder} has no split {split!r}; {suggest(split, parts)}")
    return parts[split], [parts["train"], parts["test"], parts[split]]


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
