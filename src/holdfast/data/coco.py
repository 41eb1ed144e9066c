"""COCO's annotations of objects: a JSON file next to the images."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.data.boxed import Boxed
from holdfast.data.classes import read_classes
from holdfast.data.files import printable, read_whole
from holdfast.data.images import Picture, Resizing
from holdfast.data.layouts import coco_file
from holdfast.data.source import HELD
from holdfast.errors import InputError, first_line, listed

_DAMAGE = (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)
_EXPECTED = (
    "expected COCO's images (id, file_name), annotations (image_id, category_id, bbox) and "
    "categories (id, name)"
)


@dataclass
class _Annotations:
    """What a file says: images as (id, name, width, height), names by the ids of the categories,
    objects (category, x0, y0, x1, y1) by the ids of the images, and how many are left out."""

    images: list[tuple[Any, str, int | None, int | None]]
    names: dict[Any, str]
    objects: dict[Any, list[tuple[Any, float, float, float, float]]]
    left_out: dict[str, int]


def open_coco(
    path: Path,
    name: str,
    split: str,
    scale: bool,
    classes: Path | None = None,
    resizing: Resizing | None = None,
) -> Boxed:
    """The images that an annotation file lists, in its order, and the boxes of their objects.

    Categories become classes 0, 1, ... in the order of their ids, unless `classes` says other
    numbers by their names: see `classes.read_classes`. Crowds (iscrowd) are left out, and counted
    in the remarks.

    Args:
        path: the file, or a folder that holds one of the split: see `layouts.coco_files`.

    Raises:
        InputError: a damaged file, an image that is not there or of another size than the file
            says, boxes that are not x, y, width, height, or a category that it does not list.
    """
    file = coco_file(path, split) if path.is_dir() else path
    try:
        said = _read(json.loads(read_whole(file, HELD)))
    except _DAMAGE as error:
        seen = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{file} cannot be read ({seen}); {_EXPECTED}.") from None
    if not said.images:
        raise InputError(f"{file} lists no images; {_EXPECTED}.")
    class_of, class_names = {c: i for i, c in enumerate(said.names)}, tuple(said.names.values())
    if classes is not None:
        numbers, class_names = read_classes(classes, class_names)
        class_of = {c: numbers[text] for c, text in said.names.items()}

    def boxes_of(row: int, picture: Picture) -> np.ndarray:
        own, text, *stated = said.images[row]
        if None not in stated and stated != [picture.width, picture.height]:
            raise InputError(
                f"{text} is {picture.width} x {picture.height} (width, height), but {file} says "
                f"{stated[0]} x {stated[1]}; its boxes are those of another size."
            )
        unknown = next((one for one in said.objects[own] if one[0] not in class_of), None)
        if unknown is not None:
            raise InputError(
                f"an object of {text} has category_id {unknown[0]} in {file}; expected one of "
                f"{listed(list(said.names), 5)}."
            )
        boxes = [(class_of[c], *corners) for c, *corners in said.objects[own]]
        return np.array(boxes, np.float64).reshape(-1, 5)

    paths = _paths(file, [text for _, text, *_ in said.images])
    other = "x0, y0, x1, y1, where COCO has x, y, width, height"
    return Boxed(paths, boxes_of, name, scale, resizing, class_names, other, said.left_out)


def _read(content: dict[str, Any]) -> _Annotations:
    images = [(i["id"], str(i["file_name"]), i.get("width"), i.get("height"))
              for i in content["images"]]  # fmt: skip
    categories = sorted(content["categories"], key=lambda category: category["id"])
    known = {image[0] for image in images}
    objects, crowds, others = defaultdict[Any, list[Any]](list), 0, 0
    for one in content["annotations"]:
        if one["image_id"] not in known:
            others += 1
        elif one.get("iscrowd"):
            crowds += 1
        else:
            x, y, width, height = map(float, one["bbox"])
            objects[one["image_id"]].append((one["category_id"], x, y, x + width, y + height))
    return _Annotations(
        images,
        {c["id"]: printable(str(c["name"])) for c in categories},
        objects,
        {"of crowds (iscrowd)": crowds, "of images that are not listed": others},
    )


def _paths(file: Path, names: list[str]) -> list[Path]:
    """Where the images of an annotation file lie.

    Raises:
        InputError: one of them is not there.
    """
    home, own = file.parent, file.stem.removeprefix("instances_")  # own: val2017, say
    above = home.parent
    bases = [home, home / "images", above / "images", above / own, above / "images" / own, above]
    base = next((base for base in bases if (base / names[0]).is_file()), home)
    paths = [base / name for name in names]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{file} lists {missing[0].name}, which is not in {missing[0].parent} ({len(missing):,}"
            f" of {len(paths):,} images are missing); put the images next to it, or into images/."
        )
    return paths
