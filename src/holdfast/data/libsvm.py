"""LIBSVM's text files: `label index:value ...` a line; what a line leaves out is 0."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from holdfast.data.arrays import Arrays
from holdfast.data.source import HELD, sized
from holdfast.errors import InputError, first_line


def open_libsvm(path: Path, name: str) -> Arrays:
    """Rows of float32 whose feature i is index i of the file, so an index that counts from 1 leaves
    feature 0 at 0.

    Labels are class numbers; of two classes -1 and 1, the first becomes 0.

    Raises:
        InputError: a line that is not of this form, or labels that are no class numbers.
    """
    from sklearn.datasets import load_svmlight_file

    try:
        x, y = load_svmlight_file(str(path), zero_based=True)[:2]  # pyright: ignore
    except (ValueError, OverflowError, MemoryError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path} is no LIBSVM file ({first_line(error)}); expected lines such as 1 3:0.5 7:1."
        ) from None
    if 4 * x.shape[0] * x.shape[1] > HELD:
        raise InputError(
            f"{path} names the feature {x.shape[1] - 1:,} in {x.shape[0]:,} rows, which would take "
            f"{sized(4 * x.shape[0] * x.shape[1])} of memory; expected at most {sized(HELD)}: is "
            "an index wrong?"
        )
    if not np.array_equal(y, np.round(y)):
        raise InputError(
            f"{path} has the label {y[y != np.round(y)][0]:g}; expected class numbers."
        )
    if set(np.unique(y)) <= {-1, 1}:
        y = y.clip(0)
    return Arrays(x.astype(np.float32).toarray(), y.astype(np.int64), name, scale=False)
