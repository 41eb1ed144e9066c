"""Pictures with the boxes of their objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np

from holdfast.boxes import check_boxes
from holdfast.data.boxes import padded
from holdfast.data.images import Picture, Resizing
from holdfast.data.pictures import Pictures
from holdfast.errors import InputError


class Boxed(Pictures):
    """Pictures, and of each the boxes of its objects in pixels: y float32 [n, m, 5] of class, x0,
    y0, x1, y1, where m is the most that one picture has and -1 fills the rest.

    Where pictures are resized or cropped, boxes follow; what lies outside the crop is left out.

    Args:
        boxes_of: the boxes [m_i, 5] of a row, in pixels of its picture as it is stored.
        other: how such boxes are written by others, for the message.
        left_out: how many boxes the reader of the files left out, by why.

    Raises:
        InputError: as `Pictures`; boxes that cannot be; or no picture has an object.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        boxes_of: Callable[[int, Picture], np.ndarray],
        name: str,
        scale: bool,
        resizing: Resizing | None,
        class_names: tuple[str, ...],
        other: str,
        left_out: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        super().__init__(paths, name, scale, resizing)
        found = [boxes_of(row, picture) for row, picture in enumerate(self._seen)]
        self._boxes = [own[(own[:, 3:] != own[:, 1:3]).all(1)] for own in found]
        for path, picture, own in zip(paths, self._seen, self._boxes, strict=True):
            check_boxes(own, picture.width, picture.height, str(path), other=other)
        self._most, self.class_names = max(map(len, self._boxes)), class_names
        flat = sum(map(len, found)) - sum(map(len, self._boxes))
        self._left_out = {**left_out, "without an area": flat}
        if not self._most:
            raise InputError(
                f"none of the {len(paths):,} images of {name} has an object; expected at least one "
                "box."
            )

    @property
    def remarks(self) -> tuple[tuple[str, str], ...]:  # pyright: ignore
        kept = [len(self._transformed(row)) for row in range(len(self))]
        cut = sum(map(len, self._boxes)) - sum(kept)
        reasons = {**self._left_out, "outside the crop": cut}
        left_out = ", ".join(f"{count:,} {why}" for why, count in reasons.items() if count)
        texts = {
            f"Boxes that were left out: {left_out}.": bool(left_out),
            f"Images without objects: {kept.count(0):,} of {len(kept):,}.": 0 in kept,
        }
        said = " ".join(text for text, holds in texts.items() if holds)
        return (*super().remarks, *[("loading", said)] * bool(said))

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        x = self._images(start, stop)
        return x, padded([self._transformed(start + row) for row in range(len(x))], self._most)

    def _transformed(self, row: int) -> np.ndarray:
        """The boxes [m, 5] of a picture as the model sees it."""
        boxes, picture = self._boxes[row].astype(np.float64), self._seen[row]
        if self._resizing is not None:
            boxes[:, 1:] = self._resizing.boxes(boxes[:, 1:], picture.width, picture.height)
        width, height = self._size(picture)
        boxes[:, 1:] = boxes[:, 1:].clip(0, [width, height, width, height])
        return boxes[(boxes[:, 3:] > boxes[:, 1:3]).all(1)]
