"""One patch for all images, wherever it lies (Brown et al. 2017, arXiv:1712.09665).

No `Attack`: its rows share one answer, so they cannot be independent, and a run folder does not
hold it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.shared.common_perturbation import Fooled, InputSet, check, slope
from holdfast.rng import Keys
from holdfast.spec import check as check_fields
from holdfast.spec import option
from holdfast.targets.target import Target, sealed
from holdfast.threats.images import channels_first, from_channels_first, sample
from holdfast.threats.threat import Targeted, Threat, Untargeted

ANY = Untargeted()


@dataclass(frozen=True)
class Placement:
    """How a square patch may lie: anywhere within an image, turned and scaled at random."""

    share: float = option(
        0.1, "of an image's pixels that it covers at full scale", above=0, below=1
    )
    degrees: float = option(20.0, "the largest turn, either way", at_least=0)
    least: float = option(
        0.7, "the smallest scale of its side; the largest is 1", above=0, at_most=1
    )

    def __post_init__(self) -> None:
        check_fields(self)

    def paste(self, pixels: Tensor, image: Tensor, keys: Keys) -> Tensor:
        """Images [n, c, h, w] with the patch [c, side, side] in them, each at its own place."""
        h, w = image.shape[2:]
        draws = keys.uniform((4,), image.dtype)[:, :, None, None]  # [n, 4, 1, 1]
        angle = math.radians(self.degrees) * (2 * draws[:, 0] - 1)
        scale = self.least + (1 - self.least) * draws[:, 1]
        half = scale * math.sqrt(self.share * h * w) / 2
        cos, sin = angle.cos(), angle.sin()
        reach = half * (cos.abs() + sin.abs())
        y = torch.arange(h).to(image)[:, None] - _between(reach, h, draws[:, 2])
        x = torch.arange(w).to(image) - _between(reach, w, draws[:, 3])
        # within it: [-1, 1]
        own = torch.stack([cos * y - sin * x, sin * y + cos * x], 1) / half[:, None]
        order = own.abs().amax(1).flatten(1).argsort(stable=True).argsort()
        # as many as it may, and no more
        covered = order < (self.share * h * w * scale.flatten(1).square()).floor()
        read = sample(pixels.expand(len(image), -1, -1, -1), (own + 1) / 2 * (pixels.shape[-1] - 1))
        return torch.where(covered.view(-1, 1, h, w), read, image)


@dataclass(frozen=True)
class Patch(Fooled):
    """One patch, and which images it fools, each at one random place."""

    pixels: Tensor  # [c, side, side]
    placement: Placement


def patch(
    target: Target,
    x: Tensor,
    held_out: Tensor,
    *,
    placement: Placement = Placement(),
    goal: Untargeted | Targeted = ANY,
    steps: int = 200,
    rows: int = 64,
    step_size: float = 0.1,
    seed: int = 0,
) -> Patch:
    """Search one patch that fools the model on as many images as it can, by its mean over places,
    turns and scales.

    An image is fooled when its decision changes, or with a goal, when it becomes that class (images
    of that class are left out).

    Differs from the paper: a square, not a disc; projected ascent of the margin by signs of its
    gradient.

    ```python
    small = Placement(share=0.05)
    made = patch(holdfast.wrap(model), x[:500], x[500:], placement=small, goal=Targeted(3))
    made.rate  # of x[500:]
    ```

    Args:
        x: images [n, *shape] to make it for.
        held_out: images [m, *shape] to judge it on.
        placement: its size, and how it may lie.
        goal: any other class, or one.
        steps: gradient steps: one forward and one backward on each of `rows` images.
        rows: images of a step, drawn anew each time, as their places are.
        step_size: of the first step, as a fraction of the bounds' width; it falls to 0.
        seed: of the draws.

    Raises:
        AccessError: the target gives no gradients.
        InputError: the inputs are no images.
        SpecError: steps or rows are less than 1.
    """
    check(steps=steps, rows=rows)
    width = target.bounds.high - target.bounds.low
    threat = Threat.linf(width, goal=goal)
    with sealed(seed):
        inputs, others = InputSet(target, x, threat), InputSet(target, held_out, threat)
        c, h, w = channels_first(inputs.x, target.inputs.layout).shape[1:]
        side = max(2, round(math.sqrt(placement.share * h * w)))
        pixels = inputs.x.new_full((c, side, side), (target.bounds.low + target.bounds.high) / 2)
        for t in range(steps):
            at = inputs.drawn(rows, seed, "patch", t)
            g = _slope(inputs, at, pixels, placement, Keys.of(seed, at).fold("place", t))
            pixels = pixels + step_size * (1 - t / steps) * width * g.sign()
            pixels = pixels.clamp(target.bounds.low, target.bounds.high)
        rates = (fooled(c, pixels, placement, seed) for c in (inputs, others))
        return Patch(*rates, pixels=pixels, placement=placement)


def _slope(
    inputs: InputSet, at: Tensor, pixels: Tensor, placement: Placement, keys: Keys
) -> Tensor:
    """The gradient by the patch of the margin of the inputs at these places, [c, side, side]."""
    with torch.enable_grad():
        leaf = pixels.clone().requires_grad_()
        pasted = pasted_on(inputs.target, inputs.x[at], leaf, placement, keys)
        pulled = (pasted * slope(inputs.problem(at), pasted.detach())).sum()
        return torch.autograd.grad(pulled, leaf)[0]


def fooled(inputs: InputSet, pixels: Tensor, placement: Placement, seed: int = 0) -> Tensor:
    """Which images a patch fools, each at one random place: [n] bool."""
    keys = Keys.of(seed, torch.arange(len(inputs.x), device=inputs.x.device)).fold("judged")
    return inputs.fooled(pasted_on(inputs.target, inputs.x, pixels, placement, keys))


def pasted_on(
    target: Target, x: Tensor, pixels: Tensor, placement: Placement, keys: Keys
) -> Tensor:
    """Inputs [n, *shape] with the patch on them, each where its key says."""
    return from_channels_first(
        placement.paste(pixels, channels_first(x, target.inputs.layout), keys),
        tuple(x.shape[1:]),
        target.inputs.layout,
    )


def _between(reach: Tensor, length: int, u: Tensor) -> Tensor:
    """A middle from which `reach` stays within the image, or the image's own."""
    room = (length / 2 - reach).clamp_min(0)
    return (length - 1) / 2 + room * (2 * u - 1)
