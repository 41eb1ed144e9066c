"""What can go wrong through a user's hand, in three types.

HoldfastError
├── SpecError      a name, option or value that was typed cannot be understood
├── AccessError    an attack asks for more than the target gives
└── InputError     a model, data or folder is not what it should be

Each message is one sentence of fact (what was seen, what was expected, the likely cause) and, where
there is one, a sentence of remedy. The command line prints it and exits with 2; no traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


class HoldfastError(Exception):
    """A mistake that a user can mend; its text says how."""


class SpecError(HoldfastError):
    """A spec, name or option that cannot be understood."""


class AccessError(HoldfastError):
    """An attack needs an access (labels, scores, gradients) that the target does not give."""


class InputError(HoldfastError):
    """A model, data or folder that is missing, damaged or fed wrongly."""


def first_line(error: BaseException) -> str:
    """What an error says first, without its full stop; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def suggest(word: str, known: Iterable[str]) -> str:
    """A tail for a message about an unknown `word`: the nearest known ones, else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word.lower(), known, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}."


def listed(values: Sequence[Any], most: int) -> str:
    """The first of these values, and how many more there are."""
    shown = ", ".join(map(str, values[:most]))
    if len(values) > most:
        shown += f" and {len(values) - most} more"
    return shown
