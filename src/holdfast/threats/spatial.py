"""Threats that move or cover an image: the search goes through the parameters of a `Transform`.

The parameters are spread over the bounds of the inputs, so that the middle changes nothing and
every attack searches them as it searches pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast import spec
from holdfast.threats.flow import Flow
from holdfast.threats.images import channels_first, from_channels_first
from holdfast.threats.patch import Patch
from holdfast.threats.rotation import Rotation
from holdfast.threats.transform import Transform

TRANSFORMS: dict[str, type[Transform]] = {"rotation": Rotation, "flow": Flow, "patch": Patch}


def parse(text: str | None) -> Transform | None:
    """The transform from text such as `rotation(30, 3)`, `flow(1.5)` or `patch(5)`; None for any
    other."""
    name = (text or "").strip().partition("(")[0].strip().lower()
    if text is None or name not in TRANSFORMS:
        return None
    return spec.build(text, TRANSFORMS, "movement")


@dataclass(frozen=True)
class Spatial:
    """A transform of images [*shape] in a layout, within [low, high].

    Raises:
        InputError: the inputs are no images, or too small.
    """

    transform: Transform
    shape: tuple[int, ...]
    layout: str = "nchw"
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        self.form  # noqa: B018  # refuses what is no image

    @property
    def form(self) -> tuple[int, ...]:
        """The shape of the parameters of one image."""
        return self.transform.form(*self._size)

    @property
    def square(self) -> tuple[int, int, int] | None:
        """Channels, height and width of the pixels that are parameters, behind the two of their
        place."""
        if not isinstance(self.transform, Patch):
            return None
        return self._size[0], self.transform.side, self.transform.side

    @property
    def reach(self) -> float:
        """The eps in Linf at which the whole transform is allowed."""
        return (self.high - self.low) / 2

    @property
    def avoids(self) -> bool:
        """Whether an image may change only where no object is."""
        return isinstance(self.transform, Patch) and self.transform.outside

    def settled(self, point: Tensor, taken: Tensor) -> Tensor:
        """Parameters [n, *form] near these that change no pixel of an object: `taken`, [n, h, w]
        bool."""
        assert isinstance(self.transform, Patch)
        u = self.transform.settled(self._unit(point), taken)
        return torch.where(u == self._unit(point), point, self._middle + self.reach * u)

    def fits(self, taken: Tensor) -> Tensor:
        """Whether anything of an image may change, where pixels are `taken` ([n, h, w] bool): [n]
        bool."""
        assert isinstance(self.transform, Patch)
        return self.transform.fits(taken)

    def clear(self, point: Tensor, taken: Tensor) -> Tensor:
        """Whether parameters [n, *form] change no pixel of an object: [n] bool."""
        assert isinstance(self.transform, Patch)
        return self.transform.clear(self._unit(point), taken)

    def origin(self, x: Tensor) -> Tensor:
        """Parameters that change nothing: [n, *form]."""
        return x.new_full((len(x), *self.form), self._middle)

    def apply(self, x: Tensor, point: Tensor) -> Tensor:
        """Images x [n, *shape] changed by parameters [n, *form]."""
        image, u = channels_first(x, self.layout), self._unit(point)
        transformed = self.transform.move(image, u, self.low, self.high)
        return from_channels_first(transformed, self.shape, self.layout)

    def pullback(self, x: Tensor, point: Tensor, g: Tensor) -> Tensor:
        """A gradient on the changed images as one on their parameters."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = point.detach().clone().requires_grad_()
            return torch.autograd.grad((self.apply(x, leaf) * g).sum(), leaf)[0]

    @property
    def _middle(self) -> float:
        return (self.low + self.high) / 2

    def _unit(self, point: Tensor) -> Tensor:
        """Parameters as the transform takes them, in [-1, 1]."""
        return (point - self._middle) / self.reach

    @property
    def _size(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        _, c, h, w = channels_first(torch.zeros(1, *self.shape), self.layout).shape
        return c, h, w
