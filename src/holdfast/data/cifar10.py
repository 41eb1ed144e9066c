"""CIFAR-10 in its official binary version: records of a label byte and 3 x 32 x 32 pixel bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from holdfast.data.arrays import Arrays
from holdfast.data.files import kind_of_file
from holdfast.errors import InputError

SPLITS = {"train": "data_batch_*.bin", "test": "test_batch.bin"}
CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_RECORD = 1 + 3 * 32 * 32


def open_cifar10(folder: Path, name: str, split: str, scale: bool) -> Arrays:
    """The files of `split` in `folder` or in its `cifar-10-batches-bin`; the test file is
    memory-mapped.

    Raises:
        InputError: no such files, or one that is not a whole number of records.
    """
    inner = folder / "cifar-10-batches-bin"
    if inner.is_dir():
        folder = inner
    parts = [_records(path) for path in sorted(folder.glob(SPLITS[split]))]
    if not parts:
        raise InputError(
            f"there is no {folder / SPLITS[split]}; expected CIFAR-10's binary version "
            "(cifar-10-binary.tar.gz), since the Python version is pickles, which could run code."
        )
    records = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return Arrays(
        records[:, 1:].reshape(-1, 3, 32, 32),
        records[:, 0],
        name,
        scale=scale,
        class_names=CLASS_NAMES,
    )


def _records(path: Path) -> np.ndarray:
    size = path.stat().st_size
    if size == 0 or size % _RECORD:
        raise InputError(
            f"{path} is {kind_of_file(path)} and has {size} bytes; expected records of {_RECORD} "
            "bytes: it is probably cut short or another version of the set."
        )
    return np.memmap(path, np.uint8, "r").reshape(-1, _RECORD)
