"""LightGBM: live `Booster`s and its text files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from holdfast.targets.adapter import reading
from holdfast.targets.frameworks.arrays import (
    CLASSIFIES,
    ArrayModel,
    is_booster_of,
    library,
    of_booster,
)
from holdfast.targets.registry import Framework


def from_booster(model: Any) -> ArrayModel:
    text = model.model_to_string(num_iteration=-1)
    name = "objective="
    found = (line.removeprefix(name) for line in text.splitlines() if line.startswith(name))
    objective = next(found, "none")
    classifies = objective.startswith(CLASSIFIES)

    def ask(x: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(x.reshape(len(x), -1), raw_score=classifies))

    return of_booster(
        "lightgbm", ask, int(model.num_feature()), text.encode(), objective, classifies
    )


def holds_booster(head: bytes) -> bool:
    """Whether a file begins as LightGBM's text does."""
    return head.startswith((b"tree\n", b"tree\r\n"))


def load(path: Path) -> ArrayModel:
    """The booster of a text file.

    Raises:
        InputError: damaged.
    """
    content = path.read_bytes()
    with reading(path, "model of LightGBM"):
        lightgbm = library("lightgbm", f"{path}")
        if b"end of trees" not in content:
            raise ValueError("its trees do not end")
        return from_booster(lightgbm.Booster(model_str=content.decode()))


FRAMEWORK = Framework(
    "lightgbm",
    is_booster_of("lightgbm"),
    lambda model, **_: from_booster(model),
    recognises=lambda _, head: holds_booster(head),
    load=lambda path, **_: load(path),
    also=("sklearn",),
)
