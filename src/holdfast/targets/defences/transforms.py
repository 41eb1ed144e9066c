"""Defences that change an input before the model sees it, and how an adversary's gradient comes
through each.

Each is what it says in the forward pass. Backwards, one whose own gradient is zero or broken is
passed straight through (BPDA: Athalye et al. 2018, arXiv:1802.00420), the others are
differentiated; one that draws at random is attacked and judged as the mean of many draws (`wrap`
sees to it). So a figure measured through a defence is that of an adversary who knows of it. Inputs
are raw images in [0, 1], [n, c, h, w]; what a target's bounds are, it sees to.
"""

from __future__ import annotations

import io
import math
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from holdfast import spec
from holdfast.errors import InputError, SpecError
from holdfast.spec import option
from holdfast.targets.target import drawing_of
from holdfast.threats.images import sample

STRAIGHT_THROUGH = (
    "Its own gradient is zero or broken: it was passed straight through (BPDA, arXiv:1802.00420)."
)
OWN = "Its own gradient was followed."
DRAWN = " It is random: the mean of many draws was attacked and judged (EOT, arXiv:1707.07397)."


@dataclass(frozen=True)
class Defence(ABC):
    """A step of preprocessing that was put there against attacks."""

    gradient_note: ClassVar[str]  # how attacks come through, as the report says it

    def __post_init__(self) -> None:
        spec.check(self)

    @property
    def random(self) -> bool:
        """Whether its answer is drawn."""
        return False

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """What the model sees of images x in [0, 1]: the same range and dtype."""

    def digest(self) -> bytes:
        """What else than its fields decides its answers."""
        return b""

    @property
    def remark(self) -> tuple[str, str]:
        """What a report says of it: check, text."""
        return (
            "defence",
            f"{spec.write(self)} comes before the model, and attacks come through it. "
            f"{self.gradient_note}",
        )


@dataclass(frozen=True)
class JPEG(Defence):
    """Compressed as JPEG and read again, by libjpeg as Pillow has it (Guo et al. 2018,
    arXiv:1711.00117).

    Gray images or colour, whose colour is stored at half the resolution.

    Raises:
        SpecError: `quality` is no whole number from 1 to 95.
        InputError: neither one channel nor three.
    """

    gradient_note = STRAIGHT_THROUGH
    quality: int = option(75, "the lower, the coarser", at_least=1, at_most=95)

    def __call__(self, x: Tensor) -> Tensor:
        _images(self, x)
        if x.shape[1] not in (1, 3):
            raise InputError(
                f"jpeg takes images of one channel or three, but these have {x.shape[1]}."
            )
        levels = (x.detach().clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1).cpu().numpy()
        read = torch.from_numpy(np.stack([self._coded(image) for image in levels])).movedim(-1, 1)
        return straight_through(x, read.to(x) / 255)

    def _coded(self, image: np.ndarray) -> np.ndarray:
        """[h, w, c] bytes through a file in memory."""
        file = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(
            file, "JPEG", quality=self.quality
        )
        return np.asarray(Image.open(file)).reshape(image.shape)


@dataclass(frozen=True)
class BitDepth(Defence):
    """Values rounded to 2^bits levels (Xu et al. 2018, arXiv:1704.01155). Any shape of input.

    Raises:
        SpecError: `bits` is no whole number from 1 to 16.
    """

    gradient_note = STRAIGHT_THROUGH
    bits: int = option(4, "of each value", at_least=1, at_most=16)

    def __call__(self, x: Tensor) -> Tensor:
        top = 2**self.bits - 1
        return straight_through(x, (x.detach() * top).round() / top)


@dataclass(frozen=True)
class Median(Defence):
    """The median of each pixel's window, channel by channel, mirrored at the border (Xu et al.
    2018, arXiv:1704.01155).

    Raises:
        SpecError: `window` is no odd number from 3.
        InputError: the images are smaller than the window.
    """

    gradient_note = OWN
    window: int = option(3, "pixels along each axis", at_least=3, at_most=31)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window % 2 == 0:
            raise SpecError(f"{spec.write(self)} has no pixel in the middle; give an odd window.")

    def __call__(self, x: Tensor) -> Tensor:
        _images(self, x)
        n, c, h, w = x.shape
        if min(h, w) < self.window:
            raise InputError(f"{spec.write(self)} is larger than the images, which are {h}x{w}.")
        around = F.unfold(
            F.pad(x, [self.window // 2] * 4, mode="reflect").flatten(0, 1)[:, None], self.window
        )
        return around.median(1).values.view(n, c, h, w)


@dataclass(frozen=True)
class RandomResizePad(Defence):
    """Resized to a random side and put at a random place of a black square (Xie et al. 2018,
    arXiv:1711.01991).

    Images become `high` x `high`, which is what the model must take. Each row draws for itself.

    Raises:
        SpecError: not 1 <= low <= high.
    """

    gradient_note = OWN + DRAWN
    low: int = option(MISSING, "least side of the resized image, in pixels", at_least=1)
    high: int = option(
        MISSING, "largest side, and that of the square; the paper has 299 and 331", at_most=2**16
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise SpecError(f"{spec.write(self)} needs a low that is at most its high.")

    @property
    def random(self) -> bool:
        return True

    def __call__(self, x: Tensor) -> Tensor:
        _images(self, x)
        keys = drawing_of(x)
        side = self.low + keys.fold("side").integers(self.high - self.low + 1)
        corner = [
            (keys.fold(name).uniform(()) * (self.high - side + 1)).floor().to(x)
            for name in ("top", "left")
        ]
        places, inside = [], torch.ones((), dtype=torch.bool, device=x.device)
        shapes = ((-1, self.high, 1), (-1, 1, self.high))
        for first, length, shape in zip(corner, x.shape[2:], shapes, strict=True):
            # [n, high], from the resized image's corner
            pixel = torch.arange(self.high).to(x)[None] - first[:, None]
            place = (pixel + 0.5) * (length / side[:, None].to(x)) - 0.5
            own = (pixel >= 0) & (pixel < side[:, None])
            places.append(place.view(shape).expand(-1, self.high, self.high))
            inside = inside & own.view(shape)
        return torch.where(inside[:, None], sample(x, torch.stack(places, 1)), 0)


@dataclass(frozen=True)
class TotalVariation(Defence):
    """The image of least total variation near the given one (Guo et al. 2018, arXiv:1711.00117).

    min over u of TV(u) + |keep mask * (u - x)|^2 / (2 weight), by steps of Chambolle and Pock's
    method, all of which gradients follow. With `keep` below 1 only a random share of the pixels is
    held to, as in the paper.

    Raises:
        SpecError: `weight` is not above 0, or `keep` not in (0, 1].
    """

    weight: float = option(0.1, "how much is smoothed", above=0)
    keep: float = option(
        1.0, "share of the pixels that hold; drawn for each row", above=0, at_most=1
    )
    steps: int = option(30, "of the minimisation", at_least=1, at_most=10_000)

    @property
    def gradient_note(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return OWN + DRAWN * self.random

    @property
    def random(self) -> bool:
        return self.keep < 1

    def __call__(self, x: Tensor) -> Tensor:
        _images(self, x)
        held = torch.ones_like(x[:, :1])
        if self.random:
            held = (drawing_of(x).fold("keep").uniform((1, *x.shape[2:])) < self.keep).to(x)
        step = 1 / math.sqrt(8)  # of both, primal and dual: the gradient's norm is at most sqrt(8)
        pull = step / self.weight * held
        u = ahead = x
        p, q = torch.zeros_like(x), torch.zeros_like(x)
        for _ in range(self.steps):
            p, q = p + step * _down(ahead), q + step * _right(ahead)
            length = (p.square() + q.square()).clamp_min(1).sqrt()
            p, q = p / length, q / length
            new = (u + step * _divergence(p, q) + pull * x) / (1 + pull)
            u, ahead = new, 2 * new - u
        return u.clamp(0, 1)


def straight_through(x: Tensor, y: Tensor) -> Tensor:
    """The value y, to the bit, with the gradient of x."""
    return y.detach() + (x - x.detach())


def _down(u: Tensor) -> Tensor:
    return F.pad(u[:, :, 1:] - u[:, :, :-1], (0, 0, 0, 1))


def _right(u: Tensor) -> Tensor:
    return F.pad(u[..., 1:] - u[..., :-1], (0, 1))


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    """Minus the transpose of (down, right)."""
    p, q = p[:, :, :-1], q[..., :-1]
    return F.pad(p, (0, 0, 0, 1)) - F.pad(p, (0, 0, 1, 0)) + F.pad(q, (0, 1)) - F.pad(q, (1, 0))


def _images(defence: Defence, x: Tensor) -> None:
    if x.ndim != 4:
        raise InputError(
            f"{spec.write(defence)} takes images [c, h, w], but inputs have shape "
            f"{tuple(x.shape[1:])}."
        )


DEFENCES = {
    kind.__name__.lower(): kind
    for kind in (JPEG, BitDepth, Median, RandomResizePad, TotalVariation)
}
