"""Images moved or covered: a rotation with a shift, a flow of the pixels, or a square over them,
searched as any other perturbation is.

An input of a moved target is an image and, behind it, the parameters of its movement, spread over
the bounds so that the middle is no movement. The target holds the image fixed (`Target.free`), so
every attack searches the parameters alone, and a stored example says which movement it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast import spec
from holdfast.errors import InputError, SpecError
from holdfast.targets.target import Bounds, Pullback, Target
from holdfast.targets.wrappers import Around, StraightThrough


@dataclass(frozen=True)
class Rotation:
    """A turn about the middle, then a shift (Engstrom et al. 2019, arXiv:1712.02779); what comes in
    is the low bound.

    A bound of 0 leaves its parameters out: a turn alone is one number, a shift alone two.
    """

    degrees: float  # the largest turn, either way
    pixels: float = 0.0  # the largest shift, each way along each axis

    def __post_init__(self) -> None:
        _check(self)

    def form(self, c: int, h: int, w: int) -> tuple[int, ...]:
        return (len(self._units()),)

    def move(self, image: Tensor, u: Tensor, box: Bounds) -> Tensor:
        """Images [n, c, h, w] moved by parameters u [n, *form] in [-1, 1]."""
        h, w = image.shape[2:]
        angle, down, right = (u @ self._units().to(u))[..., None, None].unbind(1)  # [n, 1, 1] each
        y = torch.arange(h).to(u)[:, None] - (h - 1) / 2 - down
        x = torch.arange(w).to(u) - (w - 1) / 2 - right
        cos, sin = angle.cos(), angle.sin()
        at = torch.stack([cos * y - sin * x + (h - 1) / 2, sin * y + cos * x + (w - 1) / 2], 1)
        return sample(image, at, outside=box.low)

    def _units(self) -> Tensor:
        """Angle in radians, rows down and columns right of each parameter at 1: [parameters, 3]."""
        units = torch.tensor(
            [math.radians(self.degrees), self.pixels, self.pixels], dtype=torch.float64
        ).diag()
        return units[units.any(1)]


@dataclass(frozen=True)
class Flow:
    """Every pixel is taken from its own place nearby (StAdv: Xiao et al. 2018, arXiv:1801.02612).

    Differs from the paper: the flow is bounded for each pixel, where the paper trades its roughness
    against success.
    """

    pixels: float  # how far from its own place, each way along each axis

    def __post_init__(self) -> None:
        _check(self)

    def form(self, c: int, h: int, w: int) -> tuple[int, ...]:
        return 2, h, w

    def move(self, image: Tensor, u: Tensor, box: Bounds) -> Tensor:
        """Images [n, c, h, w] moved by parameters u [n, *form] in [-1, 1]."""
        h, w = image.shape[2:]
        own = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).to(u)
        return sample(image, own + self.pixels * u)


@dataclass(frozen=True)
class Patch:
    """One square of side x side pixels, at any place within the image, shows anything (Croce et al.
    2022, section 4).

    The first two parameters are its place, from one end of the image to the other; each of the
    others takes a value of a pixel under it from its own (0) to an end of the box (-1 or 1). So
    every content at every place can be had. Gradients go straight through that map, as if it rose
    by half of the box's width everywhere; none on the place.
    """

    side: int

    def __post_init__(self) -> None:
        if isinstance(self.side, bool) or not isinstance(self.side, int) or self.side < 1:
            raise SpecError(f"{spec.write(self)} has a side that is no whole number of at least 1.")

    def form(self, c: int, h: int, w: int) -> tuple[int, ...]:
        if self.side > min(h, w):
            raise InputError(f"{spec.write(self)} does not fit into images of {h} x {w} pixels.")
        return (2 + c * self.side**2,)

    def move(self, image: Tensor, u: Tensor, box: Bounds) -> Tensor:
        """Images [n, c, h, w] with the square that parameters u [n, *form] in [-1, 1] say."""
        (n, c, h, w), span = image.shape, torch.arange(self.side, device=image.device)
        places = u.new_tensor([h - self.side + 1, w - self.side + 1])
        corner = ((u[:, :2] + 1) / 2 * places).minimum(places - 1).long()
        down, right = (corner[:, :, None] + span).unbind(1)  # [n, side] each
        cells = (down[:, :, None] * w + right[:, None]).view(n, 1, -1).expand(-1, c, -1)
        u = u[:, 2:].reshape(n, c, -1)
        end = torch.where(u > 0, box.high, box.low).to(image)
        shown = torch.lerp(image.flatten(2).gather(2, cells), end, u.detach().abs().clamp_max(1))
        shown = shown + (u - u.detach()) * (box.high - box.low) / 2
        return image.flatten(2).scatter(2, cells, shown).view_as(image)


# degrees or pixels: more than any image has, and than its coordinates can count in float32
FARTHEST = 10_000
MOVEMENTS = {"rotation": Rotation, "flow": Flow, "patch": Patch}
Movement = Rotation | Flow | Patch


def parse(text: str | None) -> Movement | None:
    """The movement from text such as `rotation(30, 3)`, `flow(1.5)` or `patch(5)`; None for any
    other."""
    name = (text or "").strip().partition("(")[0].strip().lower()
    if text is None or name not in MOVEMENTS:
        return None
    return spec.build(text, MOVEMENTS, "movement")


class Moved(Around):
    """A model behind a movement of its images, which are of this shape.

    ```python
    moved = Moved(holdfast.wrap(model), Rotation(30, 3), shape=(1, 28, 28))
    start = moved.start(x)  # [n, 28 * 28 + 3]
    found = run(parse("sweep(steps=1000, order='grid')"), moved, start, y, Threat.linf(moved.reach))
    images = moved.images(found.best)  # what the model saw
    ```

    Raises:
        InputError: the inputs are no images.
    """

    def __init__(self, inner: Target, movement: Movement, shape: tuple[int, ...]) -> None:
        inner.bind(shape)
        self.picture, self.order, self.movement = shape, inner.layout, movement
        self.form = movement.form(*planes(torch.zeros(1, *shape), self.order).shape[1:])
        super().__init__(StraightThrough(inner, self.images, self.images))

    @property
    def reach(self) -> float:
        """The eps in Linf at which the whole movement is allowed."""
        return (self.bounds.high - self.bounds.low) / 2

    def bind(self, shape: tuple[int, ...]) -> None:
        if self.shape is None:
            super().bind(shape)
            self.free, self.layout = self.form, "nchw"
            if isinstance(self.movement, Patch):
                side = self.movement.side
                self.square = ((self.form[0] - 2) // side**2, side, side)
            self.shape = (math.prod(self.picture) + math.prod(self.form),)
        Target.bind(self, self.shape if shape == self.picture else shape)

    def start(self, x: Tensor) -> Tensor:
        """Images [n, *picture] that do not move yet, as inputs."""
        return torch.cat(
            [x.flatten(1), x.new_full((len(x), math.prod(self.form)), middle(self.bounds))], 1
        )

    def images(self, x: Tensor) -> Tensor:
        """What the model sees of inputs: [n, *picture]."""
        image, parameters = (
            x[:, : math.prod(self.picture)].detach(),
            x[:, math.prod(self.picture) :],
        )
        u = ((parameters - middle(self.bounds)) / self.reach).reshape(-1, *self.form)
        image = planes(image.reshape(-1, *self.picture), self.order)
        return unplaned(self.movement.move(image, u, self.bounds), self.picture, self.order)

    def linearize(self, x: Tensor) -> tuple[Tensor, Pullback]:
        return self.inner.linearize(x)

    def describe(self) -> dict[str, object]:
        return super().describe() | {
            "shape": list(self.shape or ()),
            "transformation": spec.write(self.movement, whole=True),
        }


def middle(bounds: Bounds) -> float:
    """The value of a parameter that stands for no movement."""
    return (bounds.low + bounds.high) / 2


def planes(x: Tensor, layout: str) -> Tensor:
    """Images [n, *shape] as [n, c, h, w]; those without an axis of channels have one.

    Raises:
        InputError: the inputs are no images.
    """
    if x.ndim not in (3, 4):
        raise InputError(
            f"inputs of shape {tuple(x.shape[1:])} are no images, and only images can be moved."
        )
    return x[:, None] if x.ndim == 3 else x.movedim(-1, 1) if layout == "nhwc" else x


def unplaned(x: Tensor, shape: tuple[int, ...], layout: str) -> Tensor:
    """The images of this shape of which these are the `planes`."""
    return x[:, 0] if len(shape) == 2 else x.movedim(1, -1) if layout == "nhwc" else x


def sample(image: Tensor, at: Tensor, outside: float | None = None) -> Tensor:
    """Images [n, c, h, w] read at points [n, 2, *form] (row and column, from 0), bilinear: [n, c,
    *form].

    Beyond the border all is `outside`, or (None) as the nearest pixel. At a pixel's own place its
    value is exact.
    """
    n, c, h, w = image.shape
    y, x = at.unbind(1)
    if outside is None:
        y, x = y.clamp(0, h - 1), x.clamp(0, w - 1)
    top, left = y.detach().floor(), x.detach().floor()
    down, right = y - top, x - left
    read = image.new_zeros(())
    for i, tall in ((top, 1 - down), (top + 1, down)):
        for j, wide in ((left, 1 - right), (left + 1, right)):
            place = (i.clamp(0, h - 1) * w + j.clamp(0, w - 1)).long().flatten(1)
            value = (
                image.flatten(2)
                .gather(2, place[:, None].expand(-1, c, -1))
                .view(n, c, *y.shape[1:])
            )
            inside = (i >= 0) & (i < h) & (j >= 0) & (j < w)
            read = read + (tall * wide)[:, None] * torch.where(
                inside[:, None], value, outside or 0.0
            )
    return read


def _check(movement: Movement) -> None:
    sizes = list(vars(movement).values())
    if any(
        isinstance(s, bool) or not isinstance(s, (int, float)) or not 0 <= s < math.inf
        for s in sizes
    ):
        raise SpecError(
            f"{spec.write(movement)} has a bound that is no finite number of at least 0."
        )
    if max(sizes) > FARTHEST:
        raise SpecError(
            f"{spec.write(movement)} has a bound above {FARTHEST:,}; it is in degrees, or in "
            "pixels."
        )
    if not any(sizes):
        raise SpecError(f"{spec.write(movement)} moves nothing; give a bound above 0.")
