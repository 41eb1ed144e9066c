"""Masks: an image for each image, whose pixels are numbers of classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from holdfast.data.classes import read_classes
from holdfast.data.images import Resizing, opened, picture_of
from holdfast.data.layouts import pair
from holdfast.data.pictures import Pictures
from holdfast.data.yolo import files_of
from holdfast.errors import InputError

IGNORE = 255  # of pixels that belong to no class and are not judged
_INDEX = ("P", "L", "1", "I;16", "I;16L", "I;16B", "I;16N")
_LOSSY = (".jpg", ".jpeg")
_TRIED = 8  # masks that are looked at before a run starts


class Masks(Pictures):
    """Pictures of images/ and, of the same names, their masks of masks/: y int64 [n, h, w] of
    classes, 255 where a pixel is not judged.

    Masks are palette or grey pictures whose values are the numbers of the classes. Where pictures
    are resized or cropped, masks follow, each pixel as the nearest one.

    Args:
        classes: a file with the names of the classes, one a line.

    Raises:
        InputError: an image without a mask, a mask of another size or in colours, a class that
            `classes` does not have, or as `Pictures`.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        split: str,
        scale: bool,
        classes: Path | None = None,
        resizing: Resizing | None = None,
    ) -> None:
        images, masks = pair(folder, "masks", split)
        paths = files_of(images, "images")
        self._masks = _masks_of(paths, images, masks)
        super().__init__(paths, name, scale, resizing)
        self.class_names = None if classes is None else read_classes(classes, ())[1]
        for path, mask, picture in zip(paths, self._masks, self._seen, strict=True):
            with opened(mask) as image:
                seen = picture_of(image, mask)
            if seen.mode not in _INDEX or mask.suffix.lower() in _LOSSY:
                form = "a JPEG" if seen.mode in _INDEX else f"in colours ({seen.mode})"
                raise InputError(
                    f"{mask} is {form}; expected a palette or grey PNG whose values are the "
                    "numbers of the classes."
                )
            if (seen.width, seen.height) != (picture.width, picture.height):
                raise InputError(
                    f"{mask} is {seen.width} x {seen.height} (width, height), but its image {path} "
                    f"is {picture.width} x {picture.height}; expected one size."
                )
        tried = {int(c) for mask in self._masks[:_TRIED] for c in np.unique(self._read(mask))}
        if tried == {0, IGNORE}:
            raise InputError(
                f"the masks of {name} hold 0 and 255 alone, and 255 means that a pixel is not "
                "judged; write the class of the object as 1."
            )

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        x = self._images(start, stop)
        y = np.empty((len(x), *self.shape[1:]), np.int64)
        for row, mask in enumerate(self._masks[start : start + len(x)]):
            y[row] = self._read(mask)
        return x, y

    def _read(self, path: Path) -> np.ndarray:
        """The classes of a mask as the model sees its image: [h, w] int64."""
        with opened(path) as image:
            if self._resizing is not None:
                image = self._resizing.labels(image)
            classes = np.asarray(image).astype(np.int64)
        most = IGNORE if self.class_names is None else len(self.class_names)
        wrong = (classes >= most) & (classes != IGNORE) & (self.class_names is not None)
        if wrong.any():
            raise InputError(
                f"{path} has the class {classes[wrong].max()}, but there are {most} classes, from 0"
                f" to {most - 1}, and 255 for what is not judged."
            )
        return classes


def _masks_of(paths: Sequence[Path], images: Path, masks: Path) -> list[Path]:
    """The mask of each image.

    Raises:
        InputError: one has none.
    """
    known = {path.relative_to(masks).with_suffix(""): path for path in files_of(masks, "masks")}
    stems = [path.relative_to(images).with_suffix("") for path in paths]
    missing = [i for i, stem in enumerate(stems) if stem not in known]
    if missing:
        raise InputError(
            f"{paths[missing[0]]} has no mask in {masks} ({len(missing):,} of {len(paths):,} images"
            f" have none); expected {stems[missing[0]].name}.png."
        )
    return [known[stem] for stem in stems]
