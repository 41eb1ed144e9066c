"""An image folder: one sub-folder a class, decoded by Pillow as rows are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from holdfast.data.files import one_line
from holdfast.data.source import Source, floats
from holdfast.errors import InputError, suggest

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")  # named: Pillow hands EPS to an outside program
_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
_MODES = {"1": "L", "L": "L", "P": "RGB", "RGB": "RGB"}


class Folder(Source):
    """Images of one size, [1, h, w] or [3, h, w]; labels int64 by the sorted names of the sub-folders.

    Where the folder holds `train` and `test`, `split` chooses, and classes are numbered over both, so that a class
    absent from one keeps its number. Orientation tags (EXIF) are not applied.

    Raises:
        InputError: no classes, a class without images, an unreadable image, or images that differ in size.
    """

    def __init__(self, folder: Path, name: str, split: str, scale: bool) -> None:
        root, parts = _split(folder, split)
        classes = sorted({path.name for part in parts for path in _folders(part)})
        self._paths: list[Path] = []
        labels: list[int] = []
        for label, home in ((label, root / text) for label, text in enumerate(classes)):
            if home.is_dir():
                self._paths += (found := _images(home))
                labels += [label] * len(found)
        if not self._paths:
            raise InputError(f"{root} has no images; expected a sub-folder of images (PNG, JPEG, ...) for each class.")
        self._y, self._scale = np.array(labels, np.int64), scale
        self._mode, width, height = _common(self._paths)
        self.name, self.class_names = name, tuple(classes)
        self.shape = (3 if self._mode == "RGB" else 1, height, width)

    def __len__(self) -> int:
        return len(self._paths)

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        paths = self._paths[start:stop]
        pixels = np.empty((len(paths), *self.shape), np.uint8)
        for row, path in enumerate(paths):
            with _opened(path) as image:
                pixels[row] = np.moveaxis(np.atleast_3d(np.asarray(image.convert(self._mode))), -1, 0)
        return floats(pixels, self._scale), self._y[start:stop].copy()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path, formats=_FORMATS) as image:
            yield image
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - a decoder raises whatever a damaged file leads it to
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{path} cannot be read as an image ({reason}); it is probably damaged.") from None


def _common(paths: list[Path]) -> tuple[str, int, int]:
    seen = [_header(path) for path in paths]
    usual = Counter(seen).most_common(1)[0][0]
    odd = next((path for path, one in zip(paths, seen, strict=True) if one != usual), None)
    if odd:
        raise InputError(
            f"{odd} is {' x '.join(map(str, _header(odd)))} and most images are {' x '.join(map(str, usual))} "
            "(mode, width, height); expected one size and mode for all: convert it."
        )
    return usual


def _header(path: Path) -> tuple[str, int, int]:
    with _opened(path) as image:
        clear = " with transparency" if image.mode == "P" and "transparency" in image.info else ""
        if image.mode not in _MODES or clear:
            raise InputError(
                f"{path} has the mode {image.mode}{clear}; expected 8-bit RGB or greyscale without transparency: "
                "convert it."
            )
        return _MODES[image.mode], *image.size


def _split(folder: Path, split: str) -> tuple[Path, list[Path]]:
    parts = {path.name: path for path in _folders(folder)}
    if not {"train", "test"} <= parts.keys():
        return folder, [folder]
    if split not in parts:
        raise InputError(f"{folder} has no split {split!r}; {suggest(split, parts)}")
    return parts[split], [parts["train"], parts["test"], parts[split]]


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]


def _images(home: Path) -> list[Path]:
    paths = sorted(p for p in home.rglob("*") if p.suffix.lower() in _ENDINGS and not p.name.startswith("."))
    if not paths:
        raise InputError(f"{home} has no images; expected at least one (PNG, JPEG, ...) in the folder of each class.")
    return paths
