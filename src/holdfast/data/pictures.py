"""Pictures in files, or of files that a table holds, decoded by Pillow as rows are asked for; what
is true of them is said by others."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from holdfast.data.images import MODES, Picture, Resizing, Stored, opened, picture_of, pixels_of
from holdfast.data.source import Source, floats
from holdfast.errors import InputError


class Pictures(Source):
    """Images [1, h, w] where all are grey, else [3, h, w].

    Pictures are turned upright as their EXIF tag says, and transparency is left out.

    Args:
        files: their paths; or what gives each picture as it is asked for.
        resizing: how images come to one size.

    Raises:
        InputError: an unreadable image, or, when its shape or rows are asked for, images that
            differ in size.
    """

    def __init__(
        self,
        files: Sequence[Path] | Sequence[str] | Sequence[Stored],
        name: str,
        scale: bool,
        resizing: Resizing | None = None,
    ) -> None:
        self._files, self.name, self._scale = files, name, scale
        alike: dict[Picture, Picture] = {}  # one object for all that are
        self._seen = [alike.setdefault(p, p) for p in map(_header, files)]
        self._channels = max(picture.channels for picture in self._seen)
        self._resizing = resizing

    @cached_property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        sizes = [self._size(picture) for picture in self._seen]
        (width, height), _ = Counter(sizes).most_common(1)[0]
        odd = next((i for i, size in enumerate(sizes) if size != (width, height)), None)
        if odd is not None:
            raise InputError(
                f"{self._files[odd]} is {sizes[odd][0]} x {sizes[odd][1]} and most images are "
                f"{width} x {height} "
                "(width, height); expected one size for all: give --resize 256 --crop 224 (or what "
                "your model takes)."
            )
        return self._channels, height, width

    @property
    def remarks(self) -> tuple[tuple[str, str], ...]:  # pyright: ignore
        usual, turned = MODES[self._channels], sum(picture.turned for picture in self._seen)
        modes = Counter(p.mode for p in self._seen if p.mode != usual)
        kinds = ", ".join(f"{count:,} of mode {mode}" for mode, count in sorted(modes.items()))
        done = {
            f"every image {self._resizing}": self._resizing is not None,
            f"{kinds} made {usual.replace('L', 'grey')}": bool(modes),
            f"{turned:,} turned upright as their EXIF tag says": turned > 0,
        }
        said = "; ".join(text for text, holds in done.items() if holds)
        return (("loading", f"While loading the images: {said}."),) if said else ()

    def fitted(self, *, channels: int | None = None, size: tuple[int, int] | None = None) -> Source:
        sizes = {self._size(picture) for picture in self._seen}
        resizing = self._resizing
        if size is not None and len(sizes) > 1:
            resizing = Resizing(size)
        if channels not in (1, 3):
            channels = self._channels
        if (channels, resizing) == (self._channels, self._resizing):
            return self
        own = copy.copy(self)
        own._channels, own._resizing = channels, resizing
        vars(own).pop("shape", None)
        return own

    def __len__(self) -> int:
        return len(self._seen)

    def _images(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop`: floats [n, *shape]."""
        stop = min(stop, len(self))
        pixels = np.empty((max(stop - start, 0), *self.shape), np.uint8)
        for row in range(start, stop):
            with opened(self._files[row]) as image:
                pixels[row - start] = pixels_of(image, self._channels, self._resizing)
        return floats(pixels, self._scale)

    def _size(self, picture: Picture) -> tuple[int, int]:
        if self._resizing is None:
            return picture.width, picture.height
        return self._resizing.size(picture.width, picture.height)


def _header(file: Path | str | Stored) -> Picture:
    with opened(file) as image:
        return picture_of(image, file)
