"""What a file looks like from its first bytes, and the content of one that is held whole."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import yaml

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


class _Texts(yaml.BaseLoader):
    """Every value is its text, and no key is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            mark, said = node.start_mark, f"{str(twice[0])[:40]!r} is there twice"
            raise yaml.constructor.ConstructorError(None, None, said, mark)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, path: Path, *, texts: bool = False) -> Any:
    """What a YAML text says.

    Args:
        texts: every value is read as its text, a number and nothing too; and no key may be there
            twice.

    Raises:
        InputError: it is none.
    """
    try:
        return yaml.load(text, Loader=_Texts if texts else yaml.SafeLoader)
    except RecursionError:
        raise InputError(f"{path} is nested too deeply for a YAML text of this kind.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        why = f": {error.problem}" if isinstance(error, yaml.constructor.ConstructorError) else ""
        raise InputError(f"{path} is no YAML text{line}{why}; repair it.") from None
