"""What the texts of options say, as values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import InputError, SpecError

if TYPE_CHECKING:
    from holdfast.threats.table.schema import Schema


def bounds_of(text: str) -> tuple[float, float]:
    """Bounds from `0,255`."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise SpecError(f"--bounds is {text!r}; expected two numbers such as 0,1.") from None
    return low, high


def limits_of(path: Path | None) -> dict[str, Any]:
    """The arrays of `--limits`, as tensors."""
    if path is None:
        return {}
    import numpy as np
    import torch

    from holdfast.data.npz import member, opened

    known = ("low", "high", "scale", "mask")
    try:
        with opened(path) as archive:
            found = {
                name: torch.from_numpy(np.array(member(path, archive, name)))
                for name in archive.files
            }
    except (InputError, OSError, TypeError) as error:
        raise SpecError(
            f"--limits {path} cannot be read as an .npz of numbers: {str(error).rstrip('.')}."
        ) from None
    if not found or not set(found) <= set(known) or ("low" in found) != ("high" in found):
        raise SpecError(
            f"--limits {path} holds {', '.join(found) or 'none'}; expected low and high, scale, or "
            "mask."
        )
    return found


def schema_of(path: Path | None) -> Schema | None:
    """The schema of `--schema`."""
    if path is None:
        return None
    from holdfast.threats.table.schema import Schema

    return Schema.load(path)


def threat_of(
    text: str,
    limits: dict[str, Any],
    target: str | None = None,
    grid: str | None = None,
    schema: Path | None = None,
) -> Any:
    """The threat, with what the options say of it; else its text, which may name a movement."""
    from dataclasses import replace

    from holdfast.threats.threat import Threat

    own = {name: limits[name] for name in ("scale", "mask") if name in limits}
    if not own and target is None and grid is None and schema is None:
        return text
    threat = replace(Threat.parse(text).limited(**own), schema=schema_of(schema))
    if grid is not None:
        threat = replace(threat, grid=grid)
    return threat if target is None else threat.towards(_target_of(target))


def _target_of(text: str) -> int | str | list[int]:
    """A class from `7`, a rule from `random`, or classes from the lines of a file."""
    from holdfast.threats.threat import RULES

    if text in RULES:
        return text
    if _whole(text):
        return int(text)
    if not exists(Path(text)):
        raise SpecError(
            f"--target is {text!r}; expected a class such as 7, {' or '.join(RULES)}, or a file of "
            "classes."
        )
    lines = [line.strip() for line in lines_of(Path(text), "--target") if line.strip()]
    seen = [f"holds {line[:40]!r}" for line in lines if not _whole(line)]
    if seen or not lines:
        said = next(iter(seen), "is empty")
        raise SpecError(f"--target {text} {said}; expected one class number a line.")
    return [int(line) for line in lines]


def _whole(text: str) -> bool:
    """Whether a text is a whole number that a table can hold."""
    return re.fullmatch(r"\s*[-+]?[0-9]{1,18}\s*", text) is not None


def exists(path: Path) -> bool:
    """Whether there is a file or folder of this name.

    Raises:
        SpecError: it is no name that a file can have.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # too long, or with a null byte
        shown = str(path) if len(str(path)) <= 60 else f"{str(path)[:57]}..."
        raise SpecError(
            f"{shown!r} cannot be the name of a file: {getattr(error, 'strerror', None) or error}."
        ) from None
    return True


def numbers(text: str | None, flag: str) -> list[float]:
    """Numbers from `0.1,8/255`."""
    from holdfast import spec

    if not text:
        return []
    try:
        _, values, named = spec.call(f"numbers({text})")
    except SpecError:
        values, named = [], {}
    found = [float(v) for v in values if isinstance(v, (int, float))]
    if named or not found or len(found) < len(values):
        raise SpecError(f"{flag} is {text!r}; expected numbers such as 0.1,8/255.")
    return found


def rows_of(text: str | None, flag: str = "--samples") -> int | tuple[int, int] | None:
    """A count from `100`, a range from `100:200`."""
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    if not _whole(start) or (colon and not _whole(stop)):
        raise SpecError(
            f"{flag} is {text!r}; expected a count such as 100, or a range such as 100:200."
        )
    if colon:
        return int(start), int(stop)
    return int(start)


def lines_of(path: Path, flag: str) -> list[str]:
    """The lines of a text."""
    if path.exists() and not path.is_file():
        raise SpecError(f"{flag} {path} is no file; expected one of text.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # which also makes "\n" of every end of line
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{flag} {path} cannot be read as text: {error}.") from None
    if not text:
        return []
    return text.removesuffix("\n").split("\n")


def device_of(text: str) -> str:
    """A device that works here."""
    import torch

    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise SpecError(f"--device {text} cannot be used here: {reason}.") from None
    return text


def check_layout(layout: str | None) -> None:
    if layout not in (None, "nchw", "nhwc"):
        raise SpecError(f"--layout is {layout!r}; it is nchw or nhwc.")
