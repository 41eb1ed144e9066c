"""Common corruptions of images: noise, blur, weather and digital artefacts, each at five
severities.

The 15 kinds and 4 further ones of Hendrycks and Dietterich 2019 (arXiv:1903.12261), written anew
from their definitions for batches. Images of up to 64 pixels a side take the parameters of
CIFAR-10-C, larger ones those of ImageNet-C. As in the published sets, an image is one of bytes
before and after (rounded down). A row's noise is a function of the seed, its id, the kind and the
severity.

Differs from the paper: frost is made here (ice of the brightness, contrast and colour of the
paper's photographs), since the photographs are not. In images of one channel `saturate` changes
nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from holdfast.corruptions import filters
from holdfast.errors import InputError
from holdfast.rng import Keys

SMALL = 64  # pixels a side, up to which an image counts as one of CIFAR's kind
SMALLEST = 8
SEVERITIES = (1, 2, 3, 4, 5)
AT_ONCE = 1 << 18  # values of a batch that stay in the processor's cache


def corrupt(
    x: Tensor, kind: str, severity: int, ids: Tensor, seed: int = 0, table: str | None = None
) -> Tensor:
    """Corrupted images.

    Args:
        x: images [n, c, h, w] in [0, 1], of 1 or 3 channels and at least 8 x 8 pixels.
        kind: one of `KINDS`.
        severity: 1 to 5.
        ids: [n] int64, the samples' ids.
        table: `cifar` or `imagenet`, whose parameters to take; None: by the size.

    Returns:
        [n, c, h, w] float32, multiples of 1/255 in [0, 1].

    Raises:
        InputError: not images of this kind.
    """
    if x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape[2:]) < SMALLEST:
        seen = " x ".join(map(str, x.shape[1:]))
        raise InputError(
            f"inputs of {seen} cannot be corrupted; corruptions are of images with 1 or 3 channels "
            f"and at least {SMALLEST} x {SMALLEST} pixels."
        )
    rule, tables = KINDS[kind]
    parameters = tables[table or table_of(x.shape[2:])][severity - 1]
    keys = Keys.of(seed, ids.to(x.device)).fold("corruption", kind, severity)
    step = max(1, AT_ONCE // x[0].numel())
    parts = []
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        key, image = Keys(keys.rows[rows]), (x[rows].float() * 255).round() / 255
        made = (
            rule(image, key, *parameters)
            if isinstance(parameters, tuple)
            else rule(image, key, parameters)
        )
        parts.append((made.clamp(0, 1) * 255 + 1e-3).floor() / 255)
    return torch.cat(parts).float()


def table_of(size: tuple[int, ...]) -> Literal["cifar", "imagenet"]:
    return "cifar" if max(size) <= SMALL else "imagenet"


def noise(law: Callable[[float], np.ndarray], x: Tensor, key: Keys, c: float) -> Tensor:
    """Each byte drawn from the law of what becomes of it, by the alias method (Walker 1977)."""
    word, level = key.words(x.shape[1:]), (x * 255).round().int()
    own = word & 255
    table = torch.from_numpy(_alias(law, c)).to(x.device)
    held = table.index_select(0, (level * 256 + own).flatten()).view(x.shape)
    other = held & 255
    return (other + (own - other) * ((word >> 8) < (held >> 8))) / 255


@lru_cache(maxsize=32)
def _alias(law: Callable[[float], np.ndarray], c: float) -> np.ndarray:
    """For each byte before and place 0..255, in one int32 [65536]: how likely the place itself is,
    in 24 bits with a sign, and which byte comes else."""
    share = law(c) * 256
    # of places that are not yet full; full ones are neither poor nor rich
    low, high = share.copy(), share.copy()
    own, other = np.ones_like(share), np.tile(np.arange(256), (256, 1))
    row = np.arange(256)
    for _ in range(255):  # the poorest place is filled from the richest
        poor, rich = low.argmin(1), high.argmax(1)
        own[row, poor], other[row, poor] = low[row, poor], rich
        rest = high[row, rich] - (1 - own[row, poor])
        low[row, rich] = high[row, rich] = rest
        low[row, poor], high[row, poor] = np.inf, -np.inf
    chance = np.rint(own.clip(0, 1) * 2**24).astype(np.int64) - 2**23
    return (chance.clip(max=2**23 - 1) * 256 + other).astype(np.int32).ravel()


# Laws: the chance [256, 256] of each byte after (rounded down), for each byte before.
_BEFORE, _EDGE = np.arange(256.0)[:, None], np.arange(1, 256)


def _between(below: np.ndarray) -> np.ndarray:
    """From the chance to end below 1, 2, ... 255."""
    return np.diff(below, axis=1, prepend=0, append=1).clip(0)


def _law(name: str, *values: np.ndarray) -> np.ndarray:
    """A distribution function of scipy.special, which takes a third of a second to be imported."""
    return getattr(importlib.import_module("scipy.special"), name)(*values)


def gaussian_noise(c: float) -> np.ndarray:
    return _between(_law("ndtr", (_EDGE - _BEFORE) / (255 * c)))


def speckle_noise(c: float) -> np.ndarray:
    return _between(_law("ndtr", (_EDGE - _BEFORE) / np.maximum(_BEFORE * c, 1e-9)))


def shot_noise(c: float) -> np.ndarray:
    """Photons that arrive by chance, c of them at full brightness."""
    return _between(_law("pdtr", np.ceil(_EDGE * c / 255 - 1e-6) - 1, _BEFORE * c / 255))


def impulse_noise(c: float) -> np.ndarray:
    law = (1 - c) * np.eye(256)
    law[:, [0, 255]] += c / 2
    return law


def gaussian_blur(x: Tensor, key: Keys, sigma: float) -> Tensor:
    return filters.smooth(x, sigma)


def defocus_blur(x: Tensor, key: Keys, radius: float, alias: float) -> Tensor:
    return filters.convolve(x, filters.disc(radius, alias))


def glass_blur(x: Tensor, key: Keys, sigma: float, reach: int, passes: int) -> Tensor:
    bytes_ = (filters.smooth(x, sigma) * 255 + 1e-3).floor() / 255
    return filters.smooth(filters.scatter(bytes_, reach, passes, key), sigma)


def motion_blur(x: Tensor, key: Keys, radius: int, sigma: float) -> Tensor:
    return filters.streak(x, radius, sigma, 90 * key.fold("angle").uniform(()) - 45)


def zoom_blur(x: Tensor, key: Keys, most: float, step: float) -> Tensor:
    factors = tuple(np.arange(1, most, step).tolist())
    return (x + filters.zooms(x, factors)) / (len(factors) + 1)


def snow(
    x: Tensor,
    key: Keys,
    mean: float,
    spread: float,
    factor: float,
    least: float,
    radius: int,
    sigma: float,
    keep: float,
) -> Tensor:
    flakes = filters.zoom(mean + spread * key.grain((1, *x.shape[2:])), factor)
    flakes = (torch.where(flakes < least, 0, flakes).clamp(0, 1) * 255).floor() / 255
    flakes = filters.streak(flakes, radius, sigma, -135 + 90 * key.fold("angle").uniform(()))
    flakes = (flakes * 255).round() / 255
    pale = keep * x + (1 - keep) * torch.maximum(x, 1.5 * _grey(x) + 0.5)
    return pale + flakes + flakes.flip((2, 3))


# Mean and deviation of red, green and blue over cuts of the paper's photographs of frost, one of
# them there twice.
_ICE = [
    [[0.303, 0.583, 0.649], [0.107, 0.064, 0.059]],
    *[[[0.781, 0.799, 0.835], [0.078, 0.080, 0.083]]] * 2,
]
_ICE += [
    [[0.556, 0.615, 0.664], [0.107, 0.107, 0.112]],
    [[0.410, 0.455, 0.500], [0.156, 0.152, 0.148]],
]


def frost(x: Tensor, key: Keys, keep: float, ice: float) -> Tensor:
    """A veil of ice: clouds with fine needles in them, paler or darker as a whole, as cuts of a
    photograph are."""
    h, w = x.shape[2:]
    which = key.fold("ice").integers(len(_ICE))
    tint, depth = torch.tensor(_ICE, device=x.device)[which][..., None, None].unbind(1)
    cloud = _clouds(h, w, 1.75, key)
    needles = filters.streak(
        key.fold("needles").grain((1, h, w)), 6, 3.0, 360 * key.fold("angle").uniform(())
    )
    veil = 0.55 * key.fold("whole").grain((1, 1, 1))  # the three shares' squares add up to 1
    for part, share in ((cloud, 0.67), (needles, 0.5)):
        even = part - part.mean((2, 3), keepdim=True)
        veil = veil + share * even / part.std((2, 3), keepdim=True).clamp_min(1e-6)
    frozen = (tint + depth * veil).clamp(0, 1).float()
    return keep * x + ice * _as_many(x, frozen)


def fog(x: Tensor, key: Keys, thick: float, decay: float) -> Tensor:
    top = x.amax((1, 2, 3), keepdim=True)
    return (x + thick * _clouds(x.shape[2], x.shape[3], decay, key).float()) * top / (top + thick)


def _clouds(h: int, w: int, decay: float, key: Keys) -> Tensor:
    side = 1 << (max(h, w) - 1).bit_length()
    return filters.plasma(side, decay, key)[:, None, :h, :w]


def brightness(x: Tensor, key: Keys, c: float) -> Tensor:
    """The value of hue, saturation, value is raised."""
    value = x.amax(1, keepdim=True)
    raised = (value + c).clamp(max=1)
    return torch.where(value > 0, x / value.clamp_min(1e-9) * raised, raised)


def contrast(x: Tensor, key: Keys, c: float) -> Tensor:
    mean = x.double().mean((2, 3), keepdim=True).to(x.dtype)
    return (x - mean) * c + mean


def saturate(x: Tensor, key: Keys, times: float, plus: float) -> Tensor:
    if x.shape[1] == 1:
        return x
    value, least = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    red = x.new_tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)  # grey has the hue of red
    share = torch.where(value > least, (value - x) / (value - least).clamp_min(1e-9), red)
    saturation = ((value - least) / value.clamp_min(1e-9) * times + plus).clamp(0, 1)
    return value * (1 - saturation * share)


def jpeg_compression(x: Tensor, key: Keys, quality: int) -> Tensor:
    return filters.jpeg((x * 255).round(), quality) / 255


def pixelate(x: Tensor, key: Keys, c: float) -> Tensor:
    h, w = x.shape[2:]
    small = filters.resized((x * 255).round(), (int(h * c), int(w * c)))
    return filters.resized(small, (h, w)) / 255


def elastic_transform(x: Tensor, key: Keys, far: float, sigma: float, corner: float) -> Tensor:
    """Three points move, and the plane with them; then every place moves a little, smoothly.
    Lengths are shares of the side."""
    n, _, h, w = x.shape
    side = min(h, w)
    middle, arm = torch.tensor([h // 2, w // 2]), side // 3
    # row and column of the three points
    fixed = middle + arm * torch.tensor([[1, 1], [-1, 1], [-1, -1]])
    moves = (2 * key.fold("corners").uniform((3, 2), torch.float64) - 1) * corner * side
    before = torch.cat([fixed, torch.ones(3, 1, dtype=torch.long)], 1).double().to(x.device)
    after = torch.cat(
        [fixed.to(x.device) + moves, torch.ones(n, 3, 1, dtype=torch.float64, device=x.device)], 2
    )
    # [n, 3, 2]: from a new place to its old one
    back = torch.linalg.solve(after, before.expand(n, 3, 3))[..., :2]
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    plane = torch.stack([rows, columns, torch.ones_like(rows)], -1).double().to(x.device)
    x = filters.warp(x, (plane @ back[:, None]).movedim(-1, 1), "mirror")
    if not far:
        return x
    field = key.fold("field").words((2, h, w)).double() * 2.0**-31
    transformed = filters.smooth(field, sigma * side, "reflect", truncate=3.0) * far * side
    return filters.warp(x, plane[..., :2].movedim(-1, 0) + transformed, "reflect")


def spatter(
    x: Tensor,
    key: Keys,
    mean: float,
    spread: float,
    sigma: float,
    least: float,
    strong: float,
    mud: int,
) -> Tensor:
    """Drops on the lens: of water, which is seen by its edges, or of mud, which covers."""
    liquid = filters.smooth(mean + spread * key.grain((1, *x.shape[2:])), sigma)
    if mud:
        cover = filters.smooth((liquid > least).to(x.dtype), strong)
        cover = torch.where(cover < 0.8, 0, cover)
        return x * (1 - cover) + cover * _tint(x, (63, 42, 20))
    drops = (torch.where(liquid < least, 0, liquid) * 255).floor()
    relief = drops * filters.emboss(filters.distance(filters.edges(drops, 50, 150), 20)).float()
    shine = relief / relief.amax((2, 3), keepdim=True).clamp_min(1e-9) * strong
    return x + (shine * _tint(x, (175, 238, 238))).clamp(0, 1)


_LUMA = (0.299, 0.587, 0.114)


def _grey(x: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else (x * x.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _tint(x: Tensor, rgb: tuple[int, int, int]) -> Tensor:
    colour = x.new_tensor(rgb).view(1, 3, 1, 1) / 255
    return _as_many(x, colour)


def _as_many(x: Tensor, colour: Tensor) -> Tensor:
    """Colours as x has channels: as they are, or grey."""
    return colour if x.shape[1] == 3 else _grey(colour)


Rule = Callable[..., Tensor]
_JPEG, _STEPS = (80, 65, 58, 50, 40), (0.01, 0.01, 0.02, 0.02, 0.03)

# The parameters of each severity, of CIFAR-10-C and of ImageNet-C. The first 15 kinds make the mean
# and the mCE.
KINDS: dict[str, tuple[Rule, dict[str, tuple]]] = {
    "gaussian_noise": (
        partial(noise, gaussian_noise),
        {"cifar": (0.04, 0.06, 0.08, 0.09, 0.10), "imagenet": (0.08, 0.12, 0.18, 0.26, 0.38)},
    ),
    "shot_noise": (
        partial(noise, shot_noise),
        {"cifar": (500, 250, 100, 75, 50), "imagenet": (60, 25, 12, 5, 3)},
    ),
    "impulse_noise": (
        partial(noise, impulse_noise),
        {"cifar": (0.01, 0.02, 0.03, 0.05, 0.07), "imagenet": (0.03, 0.06, 0.09, 0.17, 0.27)},
    ),
    "defocus_blur": (
        defocus_blur,
        {
            "cifar": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
            "imagenet": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        },
    ),
    "glass_blur": (
        glass_blur,
        {
            "cifar": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
            "imagenet": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        },
    ),
    "motion_blur": (
        motion_blur,
        {
            "cifar": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
            "imagenet": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        },
    ),
    "zoom_blur": (
        zoom_blur,
        {
            "cifar": tuple((most, 0.01) for most in (1.06, 1.11, 1.16, 1.21, 1.26)),
            "imagenet": tuple(zip((1.11, 1.16, 1.21, 1.26, 1.31), _STEPS, strict=True)),
        },
    ),
    "snow": (
        snow,
        {
            "cifar": (
                (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
                (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
                (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
                (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
                (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
            ),
            "imagenet": (
                (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
                (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
                (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
                (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
                (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
            ),
        },
    ),
    "frost": (
        frost,
        {
            "cifar": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
            "imagenet": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        },
    ),
    "fog": (
        fog,
        {
            "cifar": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
            "imagenet": ((1.5, 2), (2.0, 2), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4)),
        },
    ),
    "brightness": (
        brightness,
        {"cifar": (0.05, 0.1, 0.15, 0.2, 0.3), "imagenet": (0.1, 0.2, 0.3, 0.4, 0.5)},
    ),
    "contrast": (
        contrast,
        {"cifar": (0.75, 0.5, 0.4, 0.3, 0.15), "imagenet": (0.4, 0.3, 0.2, 0.1, 0.05)},
    ),
    "elastic_transform": (
        elastic_transform,
        {
            "cifar": (
                (0, 0, 0.08),
                (0.05, 0.2, 0.07),
                (0.08, 0.06, 0.06),
                (0.1, 0.04, 0.05),
                (0.1, 0.03, 0.03),
            ),
            "imagenet": (
                (2.179, 0.7625, 0.1089),  # the authors' lengths are of 244, at a side of 224
                (2.179, 0.0871, 0.2179),
                (0.0545, 0.0109, 0.0218),
                (0.0763, 0.0109, 0.0218),
                (0.1307, 0.0109, 0.0218),
            ),
        },
    ),
    "pixelate": (
        pixelate,
        {"cifar": (0.95, 0.9, 0.85, 0.75, 0.65), "imagenet": (0.6, 0.5, 0.4, 0.3, 0.25)},
    ),
    "jpeg_compression": (jpeg_compression, {"cifar": _JPEG, "imagenet": (25, 18, 15, 10, 7)}),
    "speckle_noise": (
        partial(noise, speckle_noise),
        {"cifar": (0.06, 0.1, 0.12, 0.16, 0.2), "imagenet": (0.15, 0.2, 0.35, 0.45, 0.6)},
    ),
    "gaussian_blur": (
        gaussian_blur,
        {"cifar": (0.4, 0.6, 0.7, 0.8, 1), "imagenet": (1, 2, 3, 4, 6)},
    ),
    "spatter": (
        spatter,
        {
            "cifar": (
                (0.62, 0.1, 0.7, 0.7, 0.5, 0),
                (0.65, 0.1, 0.8, 0.7, 0.5, 0),
                (0.65, 0.3, 1, 0.69, 0.5, 0),
                (0.65, 0.1, 0.7, 0.69, 0.6, 1),
                (0.65, 0.1, 0.5, 0.68, 0.6, 1),
            ),
            "imagenet": (
                (0.65, 0.3, 4, 0.69, 0.6, 0),
                (0.65, 0.3, 3, 0.68, 0.6, 0),
                (0.65, 0.3, 2, 0.68, 0.5, 0),
                (0.65, 0.3, 1, 0.65, 1.5, 1),
                (0.67, 0.4, 1, 0.65, 1.5, 1),
            ),
        },
    ),
    "saturate": (
        saturate,
        {
            "cifar": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
            "imagenet": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
        },
    ),
}
