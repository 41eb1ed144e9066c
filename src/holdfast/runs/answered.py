"""The rows of a run whose outputs were held to truths, for the figures of their task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Answered:
    """Truths and answers of n rows, as samples.parquet keeps them: [n, ...] of numbers each."""

    truth: np.ndarray
    clean: np.ndarray
    # on the stored example where broken; else the clean answer, or of a segmentation that at the
    # lowest margin that was found
    attacked: np.ndarray
    options: Mapping[str, Any]  # of the task
    names: Mapping[int, str]  # of the classes that truths and answers speak of
