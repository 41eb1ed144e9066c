"""What happens to a raw input before the model sees it; declared once, lives inside the target."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast import spec
from holdfast.errors import SpecError
from holdfast.targets.defences.detectors import DETECTORS, Answer, Detector
from holdfast.targets.defences.purify import PURIFIERS
from holdfast.targets.defences.transforms import DEFENCES, Defence
from holdfast.targets.own_preprocessing import own
from holdfast.targets.target import Bounds

Preprocess = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Normalize:
    """(x - mean) / std, one value or one a channel."""

    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __post_init__(self) -> None:
        for name, value in (("mean", self.mean), ("std", self.std)):
            if np.asarray(value).dtype.kind not in "iuf":
                raise SpecError(
                    f"normalize has {name}={value!r}, but it takes one number, or one a channel."
                )
        if np.any(np.asarray(self.std) <= 0):
            raise SpecError(
                f"normalize has std {self.std}, but every standard deviation must be above 0."
            )

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self._channels(self.mean, x)) / self._channels(self.std, x)

    def _channels(self, value: float | Sequence[float], x: Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.ndim - 2))


@dataclass(frozen=True)
class Resize:
    """Bilinear resize of images to height x width, antialiased."""

    height: int
    width: int

    def __call__(self, x: Tensor) -> Tensor:
        return F.interpolate(
            x, (self.height, self.width), mode="bilinear", antialias=True, align_corners=False
        )


@dataclass(frozen=True)
class BGR:
    """The channels of RGB images in the order that OpenCV reads them in: blue, green, red."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.flip(1)


_NAMED = re.compile(r"[^()]+:[A-Za-z_]\w*")  # path/file.py:function or package.module:function

GUARDS: dict[str, type[Defence]] = {**DEFENCES, **PURIFIERS, **DETECTORS}
MAKERS: dict[str, Callable[..., Preprocess]] = {
    "normalize": Normalize,
    "resize": Resize,
    "bgr": BGR,
    "own": own,
    **GUARDS,
}


def applied(steps: Sequence[Preprocess], x: Tensor, bounds: Bounds) -> Tensor:
    """Raw inputs after all steps, in order; a defence sees them in [0, 1]."""
    low, width = bounds.low, bounds.high - bounds.low
    for step in steps:
        if isinstance(step, Defence):
            x = low + width * step((x - low) / width)
        else:
            x = step(x)
    return x


def excess(steps: Sequence[Preprocess], x: Tensor, bounds: Bounds, answer: Answer) -> Tensor:
    """By what share of its limit raw inputs x [n, *shape] exceed that of the strictest detector
    among steps: [n]."""
    low, width, found = bounds.low, bounds.high - bounds.low, []
    for step in steps:
        if isinstance(step, Detector):
            far = step.distance((x - low) / width, lambda u: answer(low + width * u))
            found.append(far / step.limit - 1)
        x = applied([step], x, bounds)
    return torch.stack(found).amax(0)


def parse(texts: Sequence[str]) -> tuple[Preprocess, ...]:
    """Steps from texts such as `normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))`, in order."""
    return tuple(spec.build(_written(text), MAKERS, "preprocessing") for text in texts)


def given_again(said: Sequence[str], given: Sequence[str]) -> list[str]:
    """The steps that a manifest says, with those that open something of the user's own as they are
    given now; or all of them, as they are given.

    A manifest names such a step, but nothing in a run folder may say what code is run, nor what is
    fetched.

    Raises:
        SpecError: not as many are given as the manifest names.
    """
    named = [text for text in said if _opens(text)]
    if len(named) < len(given) == len(said):
        return list(given)
    if len(named) != len(given):
        listed = ", ".join(str(spec.call(text)[2].get("name", text)) for text in named) or "none"
        raise SpecError(
            f"the run was measured with {len(named)} functions as preprocessing, or steps that "
            f"open what they name ({listed}), but {len(given)} were given; give each again with "
            "--preprocess, as it was given, in this order."
        )
    takes = [spec.call(text)[2].get("takes", "auto") for text in named]
    again = iter([_written(*both) for both in zip(given, takes, strict=True)])
    return [next(again) if _opens(text) else text for text in said]


def _opens(text: str) -> bool:
    """Whether a step runs a function of the user's own, or opens what a text such as
    `file.py:function`, `mnist:folder` or a URL names."""
    name, values, options = spec.call(text)
    texts = [value for value in (*values, *options.values()) if isinstance(value, str)]
    return name.lower() == "own" or any(":" in value for value in texts)


def _written(text: str, takes: Any = "auto") -> str:
    """A step as it is built: `path/file.py:function` alone is `own` of that."""
    if _NAMED.fullmatch(text.strip()):
        return f"own({text.strip()!r}, takes={takes!r})"
    return text
