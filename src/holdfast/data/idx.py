"""IDX files, plain or gzip: the format of MNIST and of its relatives."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from holdfast.data.arrays import Arrays
from holdfast.data.files import GZIP, kind_of_file, read_whole
from holdfast.data.source import HELD
from holdfast.errors import InputError

SPLITS = {"train": "train", "test": "t10k"}
_MOST_AXES = 8
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CLASS_NAMES = {"mnist": None, "fashion-mnist": _FASHION}


def open_mnist(kind: str, folder: Path, name: str, split: str, scale: bool) -> Arrays:
    """The files `train-*` or `t10k-*` of `folder`, for a `kind` of `CLASS_NAMES`.

    Raises:
        InputError: a file is missing or damaged.
    """
    images, labels = (
        _find(folder, f"{SPLITS[split]}-{part}", axes)
        for part, axes in (("images", 3), ("labels", 1))
    )
    return open_idx(images, labels, name, scale, CLASS_NAMES[kind])


def open_idx(
    images: Path, labels: Path, name: str, scale: bool, class_names: tuple[str, ...] | None = None
) -> Arrays:
    """One pair of files; images [n, h, w] gain a channel axis.

    Raises:
        InputError: a file is damaged, is no IDX file, or the two do not belong together.
    """
    x, y = read_idx(images), read_idx(labels)
    if x.ndim < 2 or y.ndim != 1:
        raise InputError(
            f"{images} has shape {x.shape} and {labels} has shape {y.shape}; expected [n, h, w] "
            "and [n]: the two are probably swapped."
        )
    if x.ndim == 3:
        x = x[:, None]
    return Arrays(x, y, name, scale=scale, class_names=class_names)


def read_idx(path: Path) -> np.ndarray:
    """The array of one file, read-only: memory-mapped if plain, held as stored if gzip.

    Raises:
        InputError: wrong magic number, or fewer or more bytes than the header declares.
    """
    data = _bytes(path)
    if len(data) < 4 or data[:2].any() or int(data[2]) not in _TYPES or not data[3]:
        raise InputError(
            f"{path} is {kind_of_file(path)}, with the magic number "
            f"{data[:4].tobytes().hex(' ') or 'missing'}; "
            "expected an IDX file, such as 00 00 08 03 for images or 00 00 08 01 for labels."
        )
    axes, body = int(data[3]), 4 + 4 * int(data[3])
    if axes > _MOST_AXES:
        raise InputError(
            f"{path} declares {axes} dimensions; expected at most {_MOST_AXES}: it is probably "
            "damaged."
        )
    dtype = np.dtype(_TYPES[int(data[2])])
    sizes = [int.from_bytes(data[at : at + 4].tobytes(), "big") for at in range(4, body, 4)]
    if len(data) != body + math.prod(sizes) * dtype.itemsize:
        raise InputError(
            f"{path} holds {len(data)} bytes; expected {body + math.prod(sizes) * dtype.itemsize} "
            f"for {' x '.join(map(str, sizes))}: it is probably cut short."
        )
    return data[body:].view(dtype).reshape(sizes)


def _bytes(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        head = file.read(2)
    if not head:
        return np.empty(0, np.uint8)
    if head != GZIP:
        return np.memmap(path, np.uint8, "r")
    return np.frombuffer(read_whole(path, HELD), np.uint8)


def _find(folder: Path, stem: str, axes: int) -> Path:
    names = [f"{stem}{joint}idx{axes}-ubyte{end}" for joint in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(
        f"there is no {folder / names[0]}, with or without .gz; expected the official files in one "
        "folder."
    )
