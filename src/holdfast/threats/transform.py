"""What a threat does to an image by parameters of its own, where it does not add to its pixels."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor

from holdfast import spec
from holdfast.errors import SpecError

# degrees or pixels: more than any image has, and than its coordinates can count in float32
FARTHEST = 10_000


class Transform(ABC):
    """A change of images, bounded by the fields of a subclass. Parameters of 0 change nothing."""

    def __post_init__(self) -> None:
        sizes = list(vars(self).values())
        if any(
            isinstance(s, bool) or not isinstance(s, (int, float)) or not 0 <= s < math.inf
            for s in sizes
        ):
            raise SpecError(
                f"{spec.write(self)} has a bound that is no finite number of at least 0."
            )
        if max(sizes) > FARTHEST:
            raise SpecError(
                f"{spec.write(self)} has a bound above {FARTHEST:,}; it is in degrees, or in "
                "pixels."
            )
        if not any(sizes):
            raise SpecError(f"{spec.write(self)} moves nothing; give a bound above 0.")

    @property
    def text(self) -> str:
        """What `parse` makes it of again, all of it."""
        return spec.write(self, whole=True)

    @abstractmethod
    def form(self, c: int, h: int, w: int) -> tuple[int, ...]:
        """The shape of the parameters of one image [c, h, w]."""

    @abstractmethod
    def move(self, image: Tensor, u: Tensor, low: float, high: float) -> Tensor:
        """Images [n, c, h, w] within [low, high], changed by parameters u [n, *form] in [-1, 1]."""
