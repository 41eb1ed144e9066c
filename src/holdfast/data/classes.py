"""Which number each class has, where names alone do not say: texts as labels, and lists of
folders."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from holdfast.errors import InputError, first_line, suggest

_NUMBERED = re.compile(r"(.*\S)[\s,;]+(\d{1,6})")
_MOST = 10_000_000  # bytes of a file of classes


def numbered(y: np.ndarray, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Texts [n] as class numbers [n], int64, in the sorted order of the distinct texts, and these
    texts.

    Raises:
        InputError: not one text a row.
    """
    texts = y.tolist()
    if y.ndim != 1 or not all(isinstance(text, str) for text in texts):
        odd = next((text for text in texts if not isinstance(text, str)), texts[0])
        raise InputError(f"y of {name} holds {odd!r}; expected one whole number or one text a row.")
    names, numbers = np.unique(np.asarray(texts, dtype=np.str_), return_inverse=True)
    return numbers.astype(np.int64), tuple(names.tolist())


def read_classes(path: Path, folders: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """The class number of each folder by a file that says it, and the names of the classes 0 to the
    highest.

    The file holds lines `folder number`, or one folder a line in the order of the classes (what
    follows is then the class's name in words), or JSON: a list of folders in order, `{"folder":
    number}`, or `{"number": ["folder", "name"]}` as Keras has it for ImageNet.

    Raises:
        InputError: no such file, or a folder that it does not name.
    """
    rows = _rows(path, set(folders))
    known = {folder: number for folder, number, _ in rows}
    for folder in folders:
        if folder not in known:
            raise InputError(
                f"the folder {folder} is not among the {len(rows)} classes of {path}; "
                f"{suggest(folder, known)}"
            )
    names = {number: words for _, number, words in rows}
    return {folder: known[folder] for folder in folders}, tuple(
        names.get(i, str(i)) for i in range(max(names) + 1)
    )


def _rows(path: Path, folders: set[str]) -> list[tuple[str, int, str]]:
    """(folder, number, name in words) of each class."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST:
            raise InputError(
                f"there is no list of classes {path}; expected a file of text or JSON."
            )
        text = path.read_text(encoding="utf-8-sig")
        rows = (
            _of_json(json.loads(text))
            if path.suffix.lower() == ".json"
            else _of_lines(text, folders)
        )
        if not rows or not all(
            type(number) is int and 0 <= number < 10**6 for _, number, _ in rows
        ):
            raise ValueError("it names no classes from 0 on")
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        RecursionError,
    ) as error:
        raise InputError(
            f"{path} cannot be read as a list of classes ({first_line(error)}); expected lines "
            "such as n01440764 0, or a JSON list of folders in the order of the classes."
        ) from None
    return rows


def _of_json(content: Any) -> list[tuple[str, int, str]]:
    if isinstance(content, list):
        return [(str(folder), i, str(folder)) for i, folder in enumerate(content)]
    if all(isinstance(value, list) for value in content.values()):
        return [(str(value[0]), int(i), str(value[-1])) for i, value in content.items()]
    return [(str(folder), i, str(folder)) for folder, i in content.items()]


def _of_lines(text: str, folders: set[str]) -> list[tuple[str, int, str]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [_NUMBERED.fullmatch(line) for line in lines]
    if all(found):
        return [(match[1], int(match[2]), match[1]) for match in found if match]
    if folders <= set(lines):
        return [(line, i, line) for i, line in enumerate(lines)]
    return [(line.split()[0], i, line.split(maxsplit=1)[-1]) for i, line in enumerate(lines)]
