"""What callers hold as numbers, one a row or one a feature, as tensors of torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.errors import SpecError


def as_tensor(value: Any, what: str) -> Tensor:
    """A tensor as it is; a NumPy array, a list, a tuple or a Series as a tensor of its own.

    Raises:
        SpecError: it holds what is no number; `what` names it.
    """
    if isinstance(value, Tensor):
        return value
    try:
        array = np.array(value)
    except (TypeError, ValueError) as error:
        raise SpecError(
            f"{what} ({type(value).__name__}) is no array of numbers: {error}."
        ) from None
    if array.dtype.kind not in "biuf":
        raise SpecError(
            f"{what} holds {array.dtype} values ({type(value).__name__}); expected numbers."
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # torch has few whole numbers without a sign
    return torch.from_numpy(array)


def detached(x: Tensor) -> Tensor:
    """Inputs that a graph may hold, though they were made in inference mode."""
    return x.clone() if x.is_inference() else x
