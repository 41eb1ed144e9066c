"""The demo model behind a rounding step, which has no gradient: what the run `rounded` measured."""

from __future__ import annotations

from torch import Tensor, nn

from holdfast.targets.demo import demo_model


class Rounded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = demo_model()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner((8 * x).round() / 8)


def build() -> nn.Module:
    return Rounded().eval()
