"""NumPy's .npz archives with the arrays `x` and `y`, or those of a split; pickled objects are never
opened."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from holdfast.data.arrays import from_arrays
from holdfast.data.boxes import of_counts
from holdfast.data.files import kind_of_file
from holdfast.data.source import HELD, Source, group_names, sized
from holdfast.errors import InputError, first_line

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    MemoryError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


def open_npz(path: Path, name: str, split: str, scale: bool) -> Source:
    """The arrays, in the layout that the file has; memory-mapped where they lie uncompressed.
    Further inputs of a model that takes several are x2, x3, ...; `group` says what group each row
    belongs to. Where there is no x, the split's x_test and y_test (x_train and y_train) are read.
    Objects are `boxes` [n, m, 5], or [k, 5] with `counts` [n], or `masks` [n, h, w] instead of y.

    Raises:
        InputError: not an archive, damaged, without `x` or `y`, or with object arrays.
    """
    with opened(path) as archive:
        pairs = [("x", "y"), (f"x_{split}", f"y_{split}"), ("x", "boxes"), ("x", "masks")]
        keys = next((pair for pair in pairs if {*pair} <= {*archive.files}), None)
        if keys is None:
            raise InputError(
                f"{path} holds the arrays {', '.join(archive.files) or 'none'}; expected x "
                f"(inputs) and y (labels), or {' and '.join(pairs[1])}; of objects boxes and "
                "counts, or masks."
            )
        more = [f"x{i}" for i in range(2, len(archive.files) + 1)]
        further = [key for key in more if key in archive.files]
        if further != more[: len(further)]:
            raise InputError(
                f"{path} holds {', '.join(archive.files)}; further inputs are x2, x3, ... in order."
            )
        x, y, *others = (member(path, archive, key) for key in (*keys, *further))
        if keys[1] == "boxes" and "counts" in archive.files:
            y = of_counts(y, member(path, archive, "counts"), name)
        groups = [member(path, archive, key) for key in archive.files if key == "group"]
    source = from_arrays((x, *others) if others else x, y, name, scale=scale)
    if groups:
        source.groups = group_names(groups[0], len(source), name)
    return source


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The archive, closed afterwards.

    Raises:
        InputError: there is no such file, it is no archive, or damaged, which may show only as it
            is read.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}; expected an .npz archive.")
    if not zipfile.is_zipfile(path):
        seen = kind_of_file(path)
        cut = {"a zip archive": " that is cut short"}.get(seen, "")
        raise InputError(
            f"{path} is {seen}{cut}; expected an .npz archive, as numpy.savez(path, x=x, y=y) "
            "writes it."
        )
    try:
        # np.load leaves a broken one open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            yield archive
    except _DAMAGE as error:
        if "Object arrays" in str(error):
            seen = "Python objects (a pickle), which could run code"
            raise InputError(f"{path} holds {seen}; expected plain arrays of numbers.") from None
        raise InputError(
            f"{path} cannot be read ({first_line(error)}); it is probably damaged, expected a "
            "whole .npz."
        ) from None


def member(path: Path, archive: Any, key: str) -> np.ndarray:
    """One array of an archive: memory-mapped where it lies uncompressed, else read if it is not too
    large.

    Raises:
        InputError: compressed, and more than `HELD` bytes by its own word.
    """
    info: zipfile.ZipInfo | None = archive.zip.NameToInfo.get(f"{key}.npy")
    if info is None or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        if info is not None and info.file_size > HELD:
            raise InputError(
                f"{key} of {path} is compressed and takes {sized(info.file_size)}, more than the "
                f"{sized(HELD)} that "
                "are held in memory; save it with numpy.savez, which is read piece by piece."
            )
        return np.asarray(archive[key])
    with path.open("rb") as file:
        # the lengths of name and extra field, which end a local zip header
        file.seek(info.header_offset + 26)
        start = file.seek(sum(struct.unpack("<HH", file.read(4))), 1)
        read_header = _HEADERS.get(npy.read_magic(file))
        if read_header is None:
            return np.asarray(archive[key])
        shape, fortran, dtype = read_header(file)
        body = file.tell()
    size = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or size == 0 or body - start + size != info.file_size:
        return np.asarray(archive[key])
    return np.memmap(path, dtype, "r", body, shape, "F" if fortran else "C")
