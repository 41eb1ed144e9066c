"""The version of Holdfast, which the metadata of the installed package says."""

from __future__ import annotations

from importlib import metadata


def version() -> str:
    """It; `0+unknown` in a source tree that was never installed."""
    try:
        return metadata.version("holdfast")
    except metadata.PackageNotFoundError:
        return "0+unknown"
