"""What a file looks like from its first bytes, and the content of one that is held whole."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

from holdfast.errors import InputError

GZIP = b"\x1f\x8b"
_PAGE = "a web page (HTML): the download probably failed"
_STARTS = {
    b"<!doctype html": _PAGE,
    b"<html": _PAGE,
    b"version https://git-lfs": "a Git LFS pointer: the file itself was never fetched",
    b"pk\x03\x04": "a zip archive",
    b"\x93numpy": "a single NumPy array (.npy)",
    b"par1": "a Parquet file",
    GZIP: "a gzip file",
} | {
    bytes([0x80, protocol]): "a pickle, never opened here since it could run code"
    for protocol in range(2, 6)
}


def kind_of_file(path: Path) -> str:
    """In words that follow "is": what the file at `path` seems to hold."""
    with path.open("rb") as file:
        head = file.read(64).lstrip().lower()
    if not head:
        return "empty"
    unknown = f"of no known kind (it begins with {head[:4].hex(' ')})"
    return next((words for start, words in _STARTS.items() if head.startswith(start)), unknown)


def read_whole(path: Path, most: int) -> bytes:
    """The content of a file, unpacked if it is gzip.

    Raises:
        InputError: it holds more than `most` bytes, or is a damaged gzip file.
    """
    with path.open("rb") as file:
        packed = file.read(2) == GZIP
    parts: list[bytes] = []
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            # in pieces, so that no more memory is taken than there is content
            while part := file.read(1 << 20):
                parts.append(part)
                if len(parts) << 20 > most:
                    raise InputError(
                        f"{path} holds more than {most / (1 << 30):.3g} GiB, too much to hold; "
                        "unpack it (gunzip) if it is gzip, or save it as Parquet or .npz, read "
                        "piece by piece."
                    )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is a damaged gzip file: {error}; it is probably cut short."
        ) from None
    return b"".join(parts)


def printable(text: str) -> str:
    """A name of a file as text that can be stored and shown, whatever bytes it has."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_yaml(text: str, path: Path, extra: str) -> Any:
    """What a YAML text says.

    Args:
        extra: of this package, which brings pyyaml along.

    Raises:
        InputError: it is none, or pyyaml is not there.
    """
    try:
        import yaml
    except ImportError:
        raise InputError(
            f"{path} is YAML, which needs pyyaml: pip install 'holdfast[{extra}]'."
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise InputError(
            f"{path} is no YAML text{f' (line {mark.line + 1})' if mark else ''}; repair it."
        ) from None
