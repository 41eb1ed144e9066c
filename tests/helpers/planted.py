"""A sound model with a step planted before or after it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from holdfast.testing import Defence
from holdfast.testing.sound import mlp, trained


class Planted(Defence):
    def __init__(
        self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor] = lambda z: z
    ) -> None:
        super().__init__(trained(mlp))
        self.first, self.last = before, after
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.first(x)))
