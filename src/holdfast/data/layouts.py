"""Where the images of a data set of boxes or masks lie, and where what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from holdfast.errors import InputError, listed

SPLITS = {"train": ("train",), "test": ("test", "val", "valid", "validation")}
_ALL = [word for words in SPLITS.values() for word in words]
COCO = ("instances.json", "annotations.json", "_annotations.coco.json")


def words_of(split: str) -> Sequence[str]:
    """What a split is called in the names of files, the most fitting first."""
    return SPLITS.get(split, (split,))


def coco_files(folder: Path) -> list[Path]:
    """COCO's annotation files of a folder: `instances.json`, `annotations/instances_val2017.json`,
    `valid/_annotations.coco.json`."""
    places = [folder, folder / "annotations", *(folder / word for word in _ALL)]
    return [
        path
        for place in places
        for path in sorted(place.glob("*.json"))
        if path.name in COCO or path.name.startswith("instances_")
    ]


def coco_file(folder: Path, split: str) -> Path:
    """The annotation file of a split; the only one of all, where it names no split.

    Raises:
        InputError: there is none of this split.
    """
    found = coco_files(folder)
    named = {path: str(path.relative_to(folder)).lower() for path in found}
    for word in words_of(split):
        for path, text in named.items():
            if word in text:
                return path
    unnamed = [path for path, text in named.items() if not any(word in text for word in _ALL)]
    if not unnamed:
        raise InputError(
            f"{folder} has no annotations of the split {split!r}, but {', '.join(named.values())}."
        )
    return unnamed[0]


def is_paired(folder: Path, other: str) -> bool:
    """Whether a folder holds images/ and another folder, in one of the forms of `pair`."""
    homes = [folder, *(folder / word for word in _ALL)]
    return any((home / "images").is_dir() and (home / other).is_dir() for home in homes)


def pair(folder: Path, other: str, split: str) -> tuple[Path, Path]:
    """The folders of the images and of what is said of them (`labels`, `masks`) of a split:
    images/train and labels/train, train/images and train/labels, or images/ and labels/ where
    there are no splits.

    Raises:
        InputError: there are splits, but not this one.
    """
    images, others = folder / "images", folder / other
    there = {path.name for home in (folder, images) if home.is_dir() for path in home.iterdir()}
    there &= {*_ALL, split}
    for word in words_of(split):
        homes = (folder / word / "images", folder / word / other), (images / word, others / word)
        for home in homes:
            if all(path.is_dir() for path in home):
                return home
    if there:
        raise InputError(
            f"{folder} has no images and {other} of the split {split!r}, but "
            f"{listed(sorted(there), 4)}; expected {split}/images and {split}/{other}, or "
            f"images/{split} and {other}/{split}."
        )
    return images, others
