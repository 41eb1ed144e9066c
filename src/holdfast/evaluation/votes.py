"""The votes of a smoothed model: counted once, kept in the journal and in the table of samples, and
counted again by `verify`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import torch

from holdfast import spec
from holdfast.data import Source
from holdfast.evaluation.estimate import Forecast
from holdfast.runs.journal import Journal
from holdfast.targets.batch import read
from holdfast.targets.smoothed import Smoothed
from holdfast.targets.smoothing_noise import KINDS, Smoothing

ROWS = 8  # whose votes are journaled together
COLUMNS = ("voted_class", "votes")


def count(
    target: Smoothed,
    journal: Journal,
    chunk: tuple[int, int],
    source: Source,
    on_share: Callable[[float], None],
) -> None:
    """Count the votes for the rows of a chunk, but for those that the journal holds; the target
    knows them from then on.

    Args:
        on_share: called with the share of them that is done.
    """
    for start, stop in _groups(chunk):
        rows, place = read(source, start, stop)[0], _place(start)
        if journal.find(place) is None:
            found = dict(zip(COLUMNS, target.votes(rows), strict=True))
            journal.write(place, {name: column.numpy() for name, column in found.items()})
        columns = journal.read(place)[0]
        target.remember(rows.x, *(torch.from_numpy(columns[name]) for name in COLUMNS))
        on_share((stop - chunk[0]) / (chunk[1] - chunk[0]))


def forecast(target: Smoothed, source: Source, rows: tuple[int, int]) -> Forecast:
    """What the votes will cost, by the time of those that choose the class of the first row."""
    _ = target.table  # which is made once
    began = time.monotonic()
    target.chosen(read(source, rows[0], rows[0] + 1)[0])
    n, asked = rows[1] - rows[0], target.smoothing.asked
    seconds = (time.monotonic() - began) * asked / target.smoothing.first
    return Forecast(n, target.cost.forwards, n * seconds)


def columns(journal: Journal, chunk: tuple[int, int]) -> dict[str, pa.Array]:
    """The columns of a chunk that say how it was voted."""
    parts = [journal.read(_place(start))[0] for start, _ in _groups(chunk)]
    return {name: pa.array(np.concatenate([part[name] for part in parts])) for name in COLUMNS}


def forwards(smoothing: str | None, rows: int) -> int:
    """What the votes for so many rows cost."""
    if smoothing is None:
        return 0
    asked: Smoothing = spec.build(smoothing, KINDS, "smoothing")
    return rows * asked.asked


def _groups(chunk: tuple[int, int]) -> Iterator[tuple[int, int]]:
    start, stop = chunk
    return ((at, min(at + ROWS, stop)) for at in range(start, stop, ROWS))


def _place(start: int) -> str:
    """What the journal calls the votes for some rows."""
    return f"{start:09d}-votes"
