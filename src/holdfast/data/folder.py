"""An image folder: one sub-folder a class, decoded by Pillow as rows are asked for."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from functools import cached_property
from pathlib import Path

import numpy as np

from holdfast.data.classes import read_classes
from holdfast.data.files import printable
from holdfast.data.images import ENDINGS, MODES, Picture, Resizing, opened, picture_of, pixels_of
from holdfast.data.source import Source, floats
from holdfast.errors import InputError, suggest


class Folder(Source):
    """Images [1, h, w] where all are grey, else [3, h, w]; labels int64 by the sorted names of the
    sub-folders.

    Where the folder holds `train` and `test`, `split` chooses, and classes are numbered over both,
    so that a class absent from one keeps its number. Pictures are turned upright as their EXIF tag
    says, and transparency is left out.

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
        self._paths, labels, self.class_names = found
        self._y, self._scale, self.name = labels, scale, name
        self._seen = [_header(path) for path in self._paths]
        self._channels = max(picture.channels for picture in self._seen)
        self._resizing = resizing

    @cached_property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        sizes = [self._size(picture) for picture in self._seen]
        (width, height), _ = Counter(sizes).most_common(1)[0]
        odd = next((i for i, size in enumerate(sizes) if size != (width, height)), None)
        if odd is not None:
            raise InputError(
                f"{self._paths[odd]} is {sizes[odd][0]} x {sizes[odd][1]} and most images are "
                f"{width} x {height} "
                "(width, height); expected one size for all: give --resize 256 --crop 224 (or what "
                "your model takes)."
            )
        return self._channels, height, width

    @property
    def remarks(self) -> tuple[tuple[str, str], ...]:  # pyright: ignore
        usual, turned = MODES[self._channels], sum(picture.turned for picture in self._seen)
        modes = Counter(p.mode for p in self._seen if p.mode != usual)
        kinds = ", ".join(f"{count:,} of mode {mode}" for mode, count in sorted(modes.items()))
        done = {
            f"every image {self._resizing}": self._resizing is not None,
            f"{kinds} made {usual.replace('L', 'grey')}": bool(modes),
            f"{turned:,} turned upright as their EXIF tag says": turned > 0,
        }
        said = "; ".join(text for text, holds in done.items() if holds)
        return (("loading", f"While loading the images: {said}."),) if said else ()

    def fitted(self, *, channels: int | None = None, size: tuple[int, int] | None = None) -> Source:
        sizes = {self._size(picture) for picture in self._seen}
        resizing = self._resizing
        if size is not None and len(sizes) > 1:
            resizing = Resizing(size)
        if channels not in (1, 3):
            channels = self._channels
        if (channels, resizing) == (self._channels, self._resizing):
            return self
        own = copy.copy(self)
        own._channels, own._resizing = channels, resizing
        vars(own).pop("shape", None)
        return own

    def __len__(self) -> int:
        return len(self._paths)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        paths = self._paths[start:stop]
        pixels = np.empty((len(paths), *self.shape), np.uint8)
        for row, path in enumerate(paths):
            with opened(path) as image:
                pixels[row] = pixels_of(image, self._channels, self._resizing)
        return floats(pixels, self._scale), self._y[start:stop].copy()

    def _size(self, picture: Picture) -> tuple[int, int]:
        if self._resizing is None:
            return picture.width, picture.height
        return self._resizing.size(picture.width, picture.height)


def _header(path: Path) -> Picture:
    with opened(path) as image:
        return picture_of(image, path)


def labelled_files(
    folder: Path, split: str, classes: Path | None, endings: Collection[str], what: str
) -> tuple[list[Path], np.ndarray, tuple[str, ...]]:
    """The files of a folder with one sub-folder a class, in the order of the classes, the class of
    each [n] int64, and the names of the classes.

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
    paths: list[Path] = []
    labels: list[int] = []
    for home in sorted(_folders(root), key=lambda home: (numbers[printable(home.name)], home.name)):
        found = [
            path
            for path in sorted(home.rglob("*"))
            if path.suffix.lower() in endings and not path.name.startswith(".")
        ]
        if not found:
            raise InputError(
                f"{home} has no {kind}; expected at least one {examples} in the folder of each "
                "class."
            )
        paths += found
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
