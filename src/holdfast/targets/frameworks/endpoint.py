"""Live endpoints, by the files that describe them: `*.endpoint.yaml`. See `targets/http`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from holdfast.targets.registry import Framework

SUFFIXES = (".endpoint.yaml", ".endpoint.yml", ".endpoint.json")


def _load(path: Path, **_: Any) -> Any:
    from holdfast.targets.http.target import load

    return load(path)


FRAMEWORK = Framework(
    "endpoint",
    suffixes=SUFFIXES,
    # also a file that is not there: its reader says so
    recognises=lambda path, _: path.name.lower().endswith(SUFFIXES),
    load=_load,
)
