"""A class for every pixel."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast import spec
from holdfast.errors import InputError, SpecError
from holdfast.tasks.form import Form
from holdfast.tasks.pixels import LOSSES
from holdfast.tasks.task import TaskWithTruth


@dataclass(frozen=True)
class Segmentation(TaskWithTruth):
    """A class for every pixel: outputs [n, c, h, w] (or [n, h, w, c]; [n, 1, h, w] and [n, h, w]
    are the logits of class 1 of two), truths [n, H, W] of the images' size, classes 0 to c - 1.

    Outputs of another size are resized to the truth's, bilinearly, as the networks do themselves.
    An image is right while its measure is at least tau; a search goes on down to 0. The margin is
    the measure minus tau, exactly; its gradient is that of a loss of the pixels, which an attack's
    option `loss` may name (Croce et al. 2023, arXiv:2306.12941).

    Args:
        accuracy: tau of the share of judged pixels that are right, in (0, 1]; 0.5 where no tau is
            said.
        miou: tau of the mean intersection over union, over the classes in the truth or the answer,
            in place of the accuracy's.
        region: the class whose pixels alone are judged; default: all.
        ignore: the value of a truth's pixels that are not judged.

    Raises:
        SpecError: both taus, or one out of range; no class.
    """

    logits: ClassVar[bool] = True
    structured: ClassVar[bool] = True
    has_measure: ClassVar[bool] = True
    losses: ClassVar[Sequence[str]] = tuple(LOSSES)
    loss: ClassVar[str] = "pair_ce"  # whose gradient is that of the margin: see `ascending`

    accuracy: float | None = None
    miou: float | None = None
    region: int | None = None
    ignore: int = 255

    def __post_init__(self) -> None:
        if self.accuracy is not None and self.miou is not None:
            raise SpecError("segmentation has one tau: give accuracy or miou, not both.")
        if self.miou is None and self.accuracy is None:
            object.__setattr__(self, "accuracy", 0.5)  # of a frozen dataclass
        if not _number(self.tau) or not 0 < self.tau <= 1:
            raise SpecError(
                f"segmentation takes a tau above 0 and at most 1, not {self.tau!r}: the measure "
                "below which an image counts as broken."
            )
        if self.region is not None and (not _whole(self.region) or self.region < 0):
            raise SpecError(f"segmentation has region={self.region!r}, but it is a class from 0.")
        if not _whole(self.ignore):
            raise SpecError(f"segmentation has ignore={self.ignore!r}, but it is a whole number.")
        if self.region is not None and self.miou is not None:
            raise SpecError(
                "segmentation judges one region by the share of its pixels that are right: give "
                "accuracy, not miou."
            )

    @property
    def tau(self) -> float:
        """The measure below which an image is broken."""
        return self.accuracy if self.miou is None else self.miou  # pyright: ignore

    @property
    def enough(self) -> float:  # pyright: ignore
        """Down to a measure of 0, but for float32."""
        return self.tau * (1 - 1e-6)

    # ------------------------------------------------------------------ outputs and truths

    def pick(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The logits, `out` (torchvision), or the only output of pixels."""
        pixels = {name: z for name, z in outputs.items() if z.ndim == 4}
        for name in ("logits", "out", *pixels):
            if name in pixels and (len(pixels) == 1 or name in ("logits", "out")):
                return {name: pixels[name]}
        shapes = ", ".join(f"{name} {list(z.shape)}" for name, z in outputs.items()) or "none"
        raise InputError(
            f"segmentation takes one output [n, classes, h, w], but the model gives {shapes}; say "
            "which with --output NAME, or wrap(..., output=NAME)."
        )

    def fitted(self, form: Form) -> Self:
        own = super().fitted(form)
        own._sides()
        if self.region is not None and self.region >= own.classes:
            raise InputError(
                f"{self} speaks of class {self.region}, but the model gives {own.classes} classes, "
                "counted from 0."
            )
        return own

    @property
    def classes(self) -> int:
        """How many there are."""
        return max(self._sides()[0], 2)

    @property
    def truth_form(self) -> tuple[int, ...]:
        """The height and width of a truth."""
        return self.form.image or self._sides()[1:]

    @property
    def numbers(self) -> int:
        return self.classes * math.prod(self.truth_form)

    def truths(self, y: np.ndarray, start: int, name: str) -> np.ndarray:
        expected = f"{self} takes a mask of classes for each image: y [n, H, W], whole numbers"
        if y.dtype.kind not in "biuf" or y.ndim not in (3, 4):
            raise InputError(
                f"the labels of {name} are {y.dtype} of shape {list(y.shape[1:])} a row, but "
                f"{expected}."
            )
        y = y[:, 0] if y.ndim == 4 and y.shape[1] == 1 else y
        y = y[..., 0] if y.ndim == 4 and y.shape[-1] == 1 else y
        sides = self.truth_form
        if y.shape[1:] != sides:
            raise InputError(
                f"the masks of {name} are {' x '.join(map(str, y.shape[1:]))}, but its images are "
                f"{' x '.join(map(str, sides))}; a mask has a class for each pixel of its image."
            )
        judged = y != self.ignore
        odd = judged & ((y < 0) | (y >= self.classes) | (y != np.floor(y)))
        if odd.any():
            row = int(odd.reshape(len(y), -1).any(1).argmax())
            raise InputError(
                f"the mask of row {start + row} of {name} holds {y[row][odd[row]][0]:g}, but the "
                f"model has the classes 0 to {self.classes - 1}, and pixels of {self.ignore} are "
                "not judged; say the value of such pixels with segmentation(ignore=...)."
            )
        return y

    def empty(self, truth: Tensor) -> Tensor:
        return ~self._judged(truth.long()).flatten(1).any(1)

    @property
    def lacking(self) -> str:
        return "judged pixel" if self.region is None else f"pixel of class {self.region}"

    def _sides(self) -> tuple[int, int, int]:
        """Channels, height and width of the outputs."""
        form = self.form.one
        if len(form) == 2:
            return 1, *form
        if len(form) != 3:
            given = str(["n", *form]).replace("'", "")
            raise InputError(
                f"{self} takes logits [n, classes, h, w], but the model gives {given} for n inputs."
            )
        if self._channels_last:
            return form[2], form[0], form[1]
        return form[0], form[1], form[2]

    @property
    def _channels_last(self) -> bool:
        """Whether outputs are [n, h, w, c]: only then do they have the image's proportions."""
        a, b, c = self.form.one
        return not self._of_image(b, c) and self._of_image(a, b)

    def _of_image(self, h: int, w: int) -> bool:
        """Whether outputs of these sides, rounded, have the proportions of the images."""
        if self.form.image is None:
            return True
        height, width = self.form.image
        return -width < w * height - h * width < height

    # ------------------------------------------------------------------ what is right

    def recast(self, z: Tensor, truth: Tensor) -> Tensor:
        logits, truth, judged = self._pixels(z, truth)
        hits, said, held = self._counts(logits, truth, judged)
        wrong = self.tau - self._measure(hits, said, held).to(z.dtype)
        wrong = wrong.where(z.isfinite().all(1), torch.nan)
        if z.requires_grad:  # the value of `wrong`, exactly, with the gradient of the loss
            loss = LOSSES[self.loss](logits, truth, judged)
            wrong = wrong + (loss - loss.detach())
        return torch.stack([torch.zeros_like(wrong), wrong], 1)

    def ascending(self, loss: str) -> Self:
        """The same task with the gradient of one of its `LOSSES`."""
        own = copy.copy(self)
        object.__setattr__(own, "loss", loss)
        return own

    def wrong_answers(self, names: Sequence[str]) -> list[str]:
        measure = "pixel accuracy" if self.miou is None else "mIoU"
        of = "" if self.region is None else f" of class {self.region}"
        return [f"{measure}{of} below {spec.number(self.tau)}"]

    def kept(self, truth: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """How many judged pixels each class has, [n, c]; and of how many it is the right answer,
        and the answer: [n, 2 c]."""
        hits, said, held = self._counts(*self._pixels(z, truth))
        hits = hits.where(z.isfinite().all(1, keepdim=True), 0)
        return held, torch.cat([hits, said], 1)

    def mask(self, z: Tensor) -> Tensor:
        """The class that outputs give each pixel of the images: [n, H, W] int64."""
        return self._pixels(z, z.new_zeros(len(z), *self.truth_form))[0].argmax(1)

    def objects_at(self, truth: Tensor) -> Tensor:
        if self.region is not None:
            return truth == self.region
        return (truth != 0) & (truth != self.ignore)

    def share(self, z: Tensor, truth: Tensor) -> Tensor:
        return self._measure(*self._counts(*self._pixels(z, truth)))

    def cross_entropy(self, z: Tensor, truth: Tensor) -> Tensor:
        """The mean cross-entropy of the pixels of masks as data give them, all but those of
        `ignore`: also where one region is judged, or every pixel would be called that. [n]."""
        own = copy.copy(self)
        object.__setattr__(own, "region", None)  # of a frozen dataclass
        logits, truth, judged = own._pixels(z, truth.reshape(len(truth), *self.truth_form))
        paid = F.cross_entropy(logits, truth, reduction="none").where(judged, 0)
        return paid.flatten(1).sum(1) / judged.flatten(1).sum(1).clamp_min(1)

    def sum_to_one(self, z: Tensor) -> bool:
        """Of each pixel of the images; outputs of another size are interpolated as they are."""
        channels, *sides = self._sides()
        if channels < 2 or tuple(sides) != self.truth_form:
            return False
        total = z.unflatten(1, self.form.one).sum(3 if self._channels_last else 1)
        return bool(((total - 1).abs() < 0.02).all())

    def margins(self, truth: np.ndarray, answers: np.ndarray) -> np.ndarray:
        hits, said = np.split(answers, 2, 1)
        return np.asarray(self._measure(*map(torch.from_numpy, (hits, said, truth)))) - self.tau

    def same(self, said: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Whether two answers differ in one pixel of a thousand at most."""
        pixels = found[:, self.classes :].sum(1, keepdims=True)
        return (np.abs(said - found) <= 1 + 1e-3 * pixels).all(1)

    def __str__(self) -> str:
        return spec.write(self)

    def _pixels(self, z: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs z [n, k] as logits [n, c, H, W], truths [n, H, W] of classes, and which pixels
        are judged."""
        if len(self.form.one) == 3 and self._channels_last:
            logits = z.unflatten(1, self.form.one).movedim(3, 1)
        else:
            logits = z.unflatten(1, self._sides())
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        truth = truth.long()
        if logits.shape[2:] != truth.shape[1:]:
            logits = F.interpolate(
                logits, tuple(truth.shape[1:]), mode="bilinear", align_corners=False
            )
        judged = self._judged(truth)
        return logits, truth.where(judged, 0), judged

    def _judged(self, truth: Tensor) -> Tensor:
        """Which pixels of truths [n, H, W] are judged: bool."""
        judged = truth != self.ignore
        return judged if self.region is None else judged & (truth == self.region)

    def _measure(self, hits: Tensor, said: Tensor, held: Tensor) -> Tensor:
        """The pixel accuracy or mIoU of images with these counts [n, c] of each class: [n]."""
        if self.miou is None:
            return hits.sum(1) / held.sum(1).clamp_min(1)
        union = said + held - hits
        return (hits / union.clamp_min(1)).sum(1) / (union > 0).sum(1).clamp_min(1)

    def _counts(self, logits: Tensor, truth: Tensor, judged: Tensor) -> tuple[Tensor, ...]:
        """Of each class the judged pixels that are rightly of it, that are said to be of it, and
        that are of it: [n, c] float64 each."""
        answer = logits.argmax(1)

        def count(of: Tensor, among: Tensor) -> Tensor:
            places = torch.zeros(len(of), self.classes, dtype=torch.float64, device=of.device)
            return places.scatter_add_(1, of.flatten(1), among.flatten(1).double())

        return count(truth, judged & (answer == truth)), count(answer, judged), count(truth, judged)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
