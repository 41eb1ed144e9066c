"""Which rows an evaluation searches together: a chunk holds neighbours, and its size follows from
the shape of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence


def chunk_of(row: int, parts: Sequence[tuple[int, int]], shape: Sequence[int]) -> int:
    """The first row of the chunk that a row is searched in."""
    part = next(start for start, stop in parts if start <= row < stop)
    return max(part, row - row % stride_of(shape))


def stride_of(shape: Sequence[int]) -> int:
    """Rows of a chunk: about 128 MiB of float32, so that several states of a search fit, and at
    most 1,024."""
    return max(16, min(1024, 2**25 // math.prod(shape)))


def chunks(rows: tuple[int, int], shape: Sequence[int]) -> list[tuple[int, int]]:
    """The chunks [start, stop) of rows of this shape; all but the ends begin at a multiple of the
    stride."""
    (first, last), stride = rows, stride_of(shape)
    begin = first // stride * stride
    return [(max(a, first), min(a + stride, last)) for a in range(begin, last, stride)]
