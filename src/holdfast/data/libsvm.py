"""LIBSVM's text files: `label index:value ...` a line; what a line leaves out is 0."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from holdfast.data.arrays import Arrays
from holdfast.data.files import one_line
from holdfast.errors import InputError


def open_libsvm(path: Path, name: str) -> Arrays:
    """Rows of float32 whose feature i is index i of the file, so an index that counts from 1 leaves feature 0 at 0.

    Labels are class numbers; of two classes -1 and 1, the first becomes 0.

    Raises:
        InputError: a line that is not of this form, or labels that are no class numbers.
    """
    from sklearn.datasets import load_svmlight_file

    path.stat()  # a missing file is told as such
    try:
        x, y = load_svmlight_file(str(path), zero_based=True)[:2]  # pyright: ignore[reportArgumentType]
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no LIBSVM file ({one_line(error)}); expected lines such as 1 3:0.5 7:1.") from None
    if not np.array_equal(y, np.round(y)):
        raise InputError(f"{path} has the label {y[y != np.round(y)][0]:g}; expected class numbers.")
    labels = np.where(y < 0, 0, y) if set(np.unique(y)) <= {-1, 1} else y
    return Arrays(x.toarray().astype(np.float32), labels.astype(np.int64), name, scale=False)
