"""YOLO's boxes: a text file for each image, a line for each object."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from holdfast.data.boxed import Boxed
from holdfast.data.files import printable, read_yaml
from holdfast.data.images import ENDINGS, Picture, Resizing
from holdfast.data.layouts import pair
from holdfast.errors import InputError

_MOST = 1_000_000  # classes
_LINE = "a class and the fractions x, y (the middle), width and height in 0 to 1"


def open_yolo(path: Path, name: str, split: str, scale: bool, resizing: Resizing | None) -> Boxed:
    """The images of images/, and the boxes of labels/: `class x y width height` a line, in
    fractions of the image with x and y in the middle.

    A line of a polygon becomes the box around it; an image without a file has no objects. The names
    of the classes are those of `data.yaml`, else their numbers.

    Args:
        path: the folder, or its data.yaml.

    Raises:
        InputError: no images or labels, lines of another form, pixels, or a class that data.yaml
            does not have.
    """
    path.stat()  # raises where it is not there
    folder = path if path.is_dir() else path.parent
    images, labels = pair(folder, "labels", split)
    paths = files_of(images, "images")
    texts = [(labels / p.relative_to(images)).with_suffix(".txt") for p in paths]
    if not any(text.is_file() for text in texts):
        raise InputError(
            f"{labels} has no label for any of the {len(paths):,} images of {images}; expected "
            f"{texts[0].name} for {paths[0].name}."
        )
    objects = [_read(text) if text.is_file() else np.empty((0, 5)) for text in texts]
    seen = 1 + int(max((own[:, 0].max(initial=0) for own in objects), default=0))
    names = _names(path, folder) or tuple(map(str, range(seen)))
    if seen > len(names):
        row = next(row for row, own in enumerate(objects) if (own[:, 0] >= len(names)).any())
        raise InputError(
            f"{texts[row]} has the class {objects[row][:, 0].max():g}, but data.yaml names "
            f"{len(names)} classes, from 0 to {len(names) - 1}."
        )

    def boxes_of(row: int, picture: Picture) -> np.ndarray:
        c, x, y, width, height = objects[row].T
        sides = np.array([picture.width, picture.height] * 2)
        corners = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
        return np.column_stack([c, corners * sides])

    other = "x0, y0, x1, y1, where YOLO has the middle, width and height"
    return Boxed(paths, boxes_of, name, scale, resizing, names, other)


def files_of(folder: Path, what: str) -> list[Path]:
    """The pictures of a folder and its sub-folders, by name.

    Raises:
        InputError: there are none.
    """
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".")
    ]
    if not found:
        raise InputError(f"{folder} has no {what}; expected PNG, JPEG, ...")
    return found


def _read(file: Path) -> np.ndarray:
    """The objects of a file: [m, 5] of class, x, y, width, height."""
    objects = [np.empty((0, 5))]
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    for i, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = np.array(line.split(), np.float64)
        except ValueError:
            values = np.empty(0)
        fits = len(values) == 5 or (len(values) >= 7 and len(values) % 2)
        if not fits or not abs(values[0]) < _MOST:
            raise InputError(f"line {i} of {file} is {line.strip()[:60]!r}; expected {_LINE}.")
        if not (np.abs(values[1:]) <= 1.01).all():
            raise InputError(
                f"line {i} of {file} is {line.strip()[:60]!r}, whose numbers seem to be pixels; "
                f"expected {_LINE}."
            )
        if len(values) > 5:
            points = values[1:].reshape(-1, 2)
            low, high = points.min(0), points.max(0)
            values = np.array([values[0], *(low + high) / 2, *high - low])
        objects.append(values[None])
    return np.concatenate(objects)


def _names(path: Path, folder: Path) -> tuple[str, ...]:
    """The names of the classes by data.yaml; none, where there is no such file."""
    file = path if path.is_file() else folder / "data.yaml"
    if not file.is_file():
        return ()
    content = read_yaml(file.read_text(encoding="utf-8", errors="replace"), file)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and sorted(names) == list(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(
            f"{file} has no names of the classes; expected a list under names, or 0: name, 1: name."
        )
    return tuple(printable(str(name)) for name in names)
