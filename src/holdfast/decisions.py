"""Decisions that are no class. Evidence holds these numbers, so they stay what they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SILENT = -1  # scores that are not finite, or no answer
UNASKED = -2  # the model was not asked
REFUSED = -3  # the model will not answer


def silent(label: Tensor) -> Tensor:
    """Where decisions [n] are no answer, and no refusal either: [n] bool."""
    return (label < 0) & (label != REFUSED)
