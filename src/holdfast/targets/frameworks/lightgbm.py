"""LightGBM: live `Booster`s and its text files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from holdfast.errors import InputError
from holdfast.targets.frameworks.arrays import CLASSIFIES, ArrayModel, library, of_booster


def from_booster(model: Any) -> ArrayModel:
    text = model.model_to_string(num_iteration=-1)
    found = [
        line.removeprefix("objective=")
        for line in text.splitlines()
        if line.startswith("objective=")
    ]
    objective = found[0] if found else "none"
    classifies = objective.startswith(CLASSIFIES)

    def ask(x: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(x.reshape(len(x), -1), raw_score=classifies))

    return of_booster(ask, int(model.num_feature()), text.encode(), objective, classifies)


def holds_booster(head: bytes) -> bool:
    """Whether a file begins as LightGBM's text does."""
    return head.startswith((b"tree\n", b"tree\r\n"))


def load(path: Path) -> ArrayModel:
    """The booster of a text file.

    Raises:
        InputError: damaged.
    """
    content = path.read_bytes()
    try:
        lightgbm = library("lightgbm", f"{path}")
        if b"end of trees" not in content:
            raise ValueError("its trees do not end")
        return from_booster(lightgbm.Booster(model_str=content.decode()))
    except InputError:
        raise
    except Exception as error:  # the libraries' own, and of text that is none
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{path} is no model of LightGBM, or damaged: {first}.") from error
