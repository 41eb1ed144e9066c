"""Pictures as Pillow opens them, made into arrays [channels, height, width] of bytes."""

from __future__ import annotations

import io
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from holdfast.errors import InputError, SpecError, first_line

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
# named: Pillow hands EPS to an outside program
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_ORIENTATION = 0x0112  # the EXIF tag that says how a camera was held
MODES = {1: "L", 3: "RGB"}  # by the number of channels
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Picture:
    """What the header of a picture says: its mode, and its size as it is shown, upright."""

    mode: str
    width: int
    height: int
    turned: bool = False  # the camera's tag says that it is stored otherwise than it is shown

    @property
    def channels(self) -> int:
        return 1 if self.mode in _GREY else 3


@dataclass(frozen=True)
class Resizing:
    """How pictures come to one size, as torchvision's and Hugging Face's preprocessing do it.

    Args:
        resize: one number: the shorter side becomes as long, and the other follows; two: height and
            width.
        crop: height and width of the middle that is then cut out.
        filter: bilinear or bicubic, both antialiased.

    Raises:
        SpecError: no size, or an unknown filter.
    """

    resize: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    filter: str = "bilinear"

    def __post_init__(self) -> None:
        sides = (*self.resize, *self.crop)
        if (
            len(self.resize) > 2
            or len(self.crop) not in (0, 2)
            or not all(0 < side <= 65_535 for side in sides)
        ):
            raise SpecError(
                f"a size of images is {sides}; expected one or two whole numbers from 1 to 65535."
            )
        if self.filter not in _FILTERS:
            raise SpecError(
                f"the filter of a resize is {self.filter!r}; it is bilinear or bicubic."
            )

    @staticmethod
    def parse(resize: str | None, crop: str | None) -> Resizing | None:
        """From texts such as `256`, `224,224` or `256,bicubic`; None where there are none.

        Raises:
            SpecError: they are no such texts.
        """
        if resize is None and crop is None:
            return None
        sides, words = _numbers(resize, "--resize 256 (the shorter side), 224,224 or 256,bicubic")
        cut, more = _numbers(crop, "--crop 224 or 224,224")
        if more or len(words) > 1:
            raise SpecError(
                f"{more or words} is no size; expected --resize 256,bicubic and --crop 224."
            )
        return Resizing(sides, cut * 2 if len(cut) == 1 else cut, *words)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height afterwards of a picture of this width and height.

        Raises:
            InputError: what is cut out is larger than the picture.
        """
        width, height = self._resized(width, height)
        if self.crop and (self.crop[0] > height or self.crop[1] > width):
            raise InputError(
                f"a crop of {self.crop[0]} x {self.crop[1]} does not fit into an image of {height} "
                f"x {width} (height x width); give a larger --resize, or a smaller --crop."
            )
        width, height = self.crop[::-1] or (width, height)
        return width, height

    def __call__(self, image: Image.Image) -> Image.Image:
        self.size(*image.size)
        if (size := self._resized(*image.size)) != image.size:
            image = image.resize(size, _FILTERS[self.filter])
        if not self.crop:
            return image
        left, top = self._corner(*image.size)
        return image.crop((left, top, left + self.crop[1], top + self.crop[0]))

    def labels(self, image: Image.Image) -> Image.Image:
        """The same of a picture whose values are numbers of classes: the nearest one."""
        width, height = self.size(*image.size)
        inner = self._resized(*image.size)
        image = image.resize(inner, Image.Resampling.NEAREST)
        left, top = self._corner(*inner)
        return image.crop((left, top, left + width, top + height))

    def boxes(self, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """Where boxes [m, 4] (x0, y0, x1, y1) of a picture of this width and height lie
        afterwards."""
        inner = self._resized(width, height)
        scaled = boxes * (np.array(inner) / (width, height))[[0, 1, 0, 1]]
        return scaled - np.array(self._corner(*inner))[[0, 1, 0, 1]]

    def __str__(self) -> str:
        shorter = {1: "the shorter side to "}.get(len(self.resize), "")
        parts = {
            f"resized ({shorter}{' x '.join(map(str, self.resize))}, {self.filter})": self.resize,
            f"cropped to the middle {' x '.join(map(str, self.crop))}": self.crop,
        }
        return " and ".join(text for text, size in parts.items() if size)

    def _corner(self, width: int, height: int) -> tuple[int, int]:
        """From where on, left and top, the middle of a picture of this size is cut out."""
        if not self.crop:
            return 0, 0
        return round((width - self.crop[1]) / 2), round((height - self.crop[0]) / 2)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if len(self.resize) == 2:
            return self.resize[1], self.resize[0]
        if not self.resize:
            return width, height
        short, least = self.resize[0], min(width, height)
        return int(short * width / least), int(short * height / least)


@dataclass(frozen=True)
class Stored:
    """The content of a picture's file that lies in a table, and where."""

    content: bytes
    where: str

    def __str__(self) -> str:
        return self.where


@contextmanager
def opened(path: Path | str | Stored) -> Iterator[Image.Image]:
    """The picture of a file, not yet decoded.

    Raises:
        InputError: not a file, not readable, not a picture, or one that is too large to be decoded.
    """
    file: Any = io.BytesIO(path.content) if isinstance(path, Stored) else path
    try:
        if not (isinstance(path, Stored) or stat.S_ISREG(os.stat(path).st_mode)):
            raise InputError(f"{path} is no file but a pipe, device or folder; expected an image.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused below instead
            image = Image.open(file, formats=_FORMATS)
        with image:
            if (
                Image.MAX_IMAGE_PIXELS is not None
                and math.prod(image.size) > Image.MAX_IMAGE_PIXELS
            ):
                raise InputError(
                    f"{path} declares {image.width} x {image.height} pixels, more than "
                    f"{Image.MAX_IMAGE_PIXELS:,}; it "
                    "was not decoded, since it could fill the memory."
                )
            yield image
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders raise whatever a file leads them to
        said = f"{type(error).__name__}: {first_line(error)}".replace(f" {file!r}", "")
        raise InputError(
            f"{path} cannot be read as an image ({said}); it is probably damaged."
        ) from None


def picture_of(image: Image.Image, name: object) -> Picture:
    """The header of a picture.

    Raises:
        InputError: it holds numbers that are no levels of brightness, such as 32-bit ones; `name`
            says which.
    """
    if image.mode not in (*_GREY, *_COLOUR):
        raise InputError(
            f"{name} has the mode {image.mode}, whose levels have no known range; expected 8 or 16 "
            "bits: convert it."
        )
    turned = _turn(image)
    width, height = image.size
    if turned >= 5:
        width, height = height, width
    return Picture(image.mode, width, height, turned > 1)


def pixels_of(image: Image.Image, channels: int, resizing: Resizing | None = None) -> np.ndarray:
    """A picture upright, in grey or in colour, as bytes [channels, height, width]; transparency is
    left out."""
    if _turn(image) > 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # convert would cut off all above 255
        image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
    image = image.convert(MODES[channels])
    if resizing is not None:
        image = resizing(image)
    return np.moveaxis(np.atleast_3d(np.asarray(image)), -1, 0)


def _turn(image: Image.Image) -> int:
    """1 to 8, where 1 is upright, and from 5 the sides are swapped."""
    with suppress(Exception):  # a broken tag says nothing of the pixels
        # PNG's own would decode the whole picture
        turn = Image.Image.getexif(image).get(_ORIENTATION, 1)
        if isinstance(turn, int) and 1 <= turn <= 8:
            return turn
    return 1


def _numbers(text: str | None, expected: str) -> tuple[tuple[int, ...], list[str]]:
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    numbers = [part for part in parts if re.fullmatch(r"[0-9]{1,5}", part)]
    if text is not None and not numbers:
        raise SpecError(f"{text!r} is no size of images; expected {expected}.")
    return tuple(map(int, numbers)), [part for part in parts if part not in numbers]
