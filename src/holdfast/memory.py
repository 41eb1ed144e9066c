"""Memory: how many rows are held at once, and what the C library does with what was freed.

The latter holds for the whole process, so that only a process of Holdfast's own, the command line
or a worker of a training, has it set.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
from collections.abc import Sequence

VALUES = 2**24  # of the inputs that are held at once: 64 MiB of float32
LARGE = 2**16  # inputs of more values are dear to ask about

# of glibc's mallopt: what may lie free at the top of the heap, and what gets pages of its own
_TRIM, _MMAP = -1, -3
_own = False  # whether this process is Holdfast's own


def rows_at_once(shape: Sequence[int], most: int = 1024) -> int:
    """How many rows of inputs [*shape] are read, searched or checked together: 64 MiB of float32,
    of which a search holds some 25, but at least one row and at most so many."""
    return max(1, min(most, VALUES // math.prod(shape)))


def rows_to_try(shape: Sequence[int], most: int, large: int) -> int:
    """How many rows of inputs [*shape] a model is tried on: at most so many, or of large ones."""
    return rows_at_once(shape, large if math.prod(shape) > LARGE else most)


def manage() -> None:
    """Let the functions below have their effect in this process, which is Holdfast's own."""
    global _own  # noqa: PLW0603  # of the process, as what it allows
    _own = True
    # An evaluation has large blocks given back as soon as they are free; with torch's huge pages,
    # taking them anew costs next to nothing. Torch reads this at its first large block.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed() -> None:
    """Have glibc keep up to a gigabyte of freed memory for the next step, instead of giving it back
    to the system.

    Each step of a training frees what the next one asks for again. As new pages of the system's,
    that took a sixth of a gradient's time on a small CNN. Elsewhere than on glibc nothing happens.
    """
    _set(1 << 30, 1 << 30)


def give_back_freed() -> None:
    """Have glibc give every large block back when it is freed; else a long run's heap breaks up and
    grows."""
    _set(1 << 17, 1 << 20)  # the first as glibc has it at first


def _set(trim: int, mmap: int) -> None:
    if _own and platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM, trim)
        mallopt(_MMAP, mmap)
