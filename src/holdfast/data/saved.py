"""Datasets that Hugging Face's library saved on disk: memory-mapped, and read row by row."""

from __future__ import annotations

from pathlib import Path

from holdfast.data.layouts import words_of
from holdfast.data.source import Source
from holdfast.errors import InputError, first_line, listed


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of a dataset, or of a dict of its splits, wrote a folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def open_saved(folder: Path, name: str, split: str, scale: bool) -> Source:
    """The rows of such a folder.

    Raises:
        InputError: the library is not installed, the folder is damaged, or has no such split.
    """
    from holdfast.data.objects import from_object

    try:
        from datasets import load_from_disk
    except ImportError:
        raise InputError(
            f"{folder} was saved by Hugging Face's datasets, which is not installed: pip install "
            "datasets."
        ) from None
    try:
        found = load_from_disk(str(folder))
    except Exception as error:  # pyarrow's, json's, or its own
        raise InputError(
            f"{folder} cannot be read as a dataset that was saved: {first_line(error)}."
        ) from error
    if isinstance(found, dict):
        known = next((word for word in words_of(split) if word in found), None)
        if known is None:
            raise InputError(
                f"{folder} has no split {split!r}, but {listed(sorted(map(str, found)), 5)}."
            )
        found = found[known]
    return from_object(found, scale=scale, name=name)
