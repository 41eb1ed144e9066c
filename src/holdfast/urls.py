"""Files on any store that fsspec reaches, named by URLs such as `s3://bucket/data.parquet`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from holdfast.errors import InputError, first_line

# what a scheme needs in addition to fsspec, and how to have it
_CLIENTS = {
    "s3": ("s3fs", "'holdfast[s3]'"),
    "gs": ("gcsfs", "gcsfs"),
    "gcs": ("gcsfs", "gcsfs"),
    "abfs": ("adlfs", "adlfs"),
    "az": ("adlfs", "adlfs"),
}

downloaded: dict[str, str] = {}  # folders here, and the URLs that they are of


def named(text: object) -> str:
    """A text in which what was downloaded is called by its URL."""
    said = str(text)
    for local, url in downloaded.items():
        said = said.replace(local, url)
    return said


def is_url(text: object) -> bool:
    """Whether a text names something on a store, and not a local file."""
    return isinstance(text, str) and bool(re.match(r"(?!file:)[a-z][a-z0-9+.-]+://", text))


def place(text: str | os.PathLike[str]) -> Path | str:
    """A URL as it is, but for the / at its end; of anything else, `file://` too, the path."""
    text = os.fspath(text)
    if is_url(text):
        return text.rstrip("/")
    if text.startswith("file://"):
        return Path(unquote(urlsplit(text).path))
    return Path(text)


def store_at(url: str) -> tuple[Any, str]:
    """The file system of fsspec that a URL is of, and the path within.

    Raises:
        InputError: there is none of this scheme, or a package that it needs is not installed.
    """
    scheme = url.partition("://")[0]
    try:
        import fsspec

        # what other machines write meanwhile is to be seen
        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        client, package = _CLIENTS.get(scheme, (first_line(error), "it"))
        raise InputError(
            f"{url} needs {client}, which is not installed: pip install {package}."
        ) from None
    except ValueError as error:
        raise InputError(
            f"{url} cannot be reached ({first_line(error)}); expected a path, or a URL that fsspec "
            "knows, such as s3://bucket/folder."
        ) from None


@contextmanager
def reaching(url: str, what: str) -> Iterator[None]:
    """Ask a store: whatever its client raises becomes a sentence.

    Args:
        what: is asked, as in `cannot read`.

    Raises:
        InputError: the store cannot be reached, has no such place, or refuses.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # every client has its own kinds
        raise InputError(f"cannot {what} {url}: {_said(error)}.") from error


def _said(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket, folder or file"
    if isinstance(error, PermissionError):
        return f"access is denied ({first_line(error)}); check the credentials and their rights"
    if isinstance(error, NotImplementedError):
        return "a store of this kind cannot do that"
    return f"{first_line(error)}; check the address, the network, the credentials and the file"
