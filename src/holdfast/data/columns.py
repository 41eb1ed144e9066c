"""The columns of a table: their names, and how values of any type are numbers in x and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast.errors import InputError

TEXT, CATEGORY = "text", "category"


@dataclass(frozen=True)
class Column:
    """One feature of a table.

    Args:
        name: as the table has it.
        dtype: of its values in a table: one of NumPy's numbers, such as `int64`; `text`; or
            `category`, as pandas has it.
        values: of texts and categories: what the numbers 0, 1, ... in x mean.
    """

    name: str
    dtype: str
    values: tuple[Any, ...] = ()

    def of(self, numbers: np.ndarray) -> Any:
        """The values of a table that numbers [n] of x mean, the nearest of texts and categories:
        an array, or a Categorical of pandas.

        Numbers that their type cannot hold, such as fractions of a column of whole numbers, stay
        as they are.
        """
        if self.values:
            places = np.rint(np.nan_to_num(numbers)).clip(0, len(self.values) - 1).astype(int)
            if self.dtype == CATEGORY:
                import pandas as pd

                return pd.Categorical.from_codes(places, categories=list(self.values))
            return np.array(self.values, dtype=object)[places]
        if np.dtype(self.dtype).kind in "iub":
            least, most = (0, 1) if self.dtype == "bool" else limits(self.dtype)
            fits = (numbers == np.rint(numbers)) & (numbers >= least) & (numbers <= most)
            if not fits.all():
                return numbers.astype(np.float64)
        return numbers.astype(self.dtype)


def places(column: Column, numbers: np.ndarray, known: Sequence[Any]) -> np.ndarray:
    """The places among `known` categories of the values that numbers [n] of x mean; NaN: none."""
    at = {value: place for place, value in enumerate(known)}
    values = np.asarray(column.of(numbers)).tolist()
    return np.array([at.get(value, np.nan) for value in values])


def limits(dtype: str) -> tuple[int, int]:
    """The least and the largest number of a type of whole numbers."""
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def frame(x: np.ndarray, columns: Sequence[Column]) -> Any:
    """Rows x [n, columns] as a DataFrame of pandas, with the names and types that they had.

    Raises:
        InputError: pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise InputError(
            "a model that takes a table with names needs pandas, which is not installed: pip "
            "install pandas."
        ) from None
    return pd.DataFrame({c.name: c.of(x[:, i]) for i, c in enumerate(columns)})
