"""Shards: parts of the rows of one run, each measured by a process of its own on any machine.

A store is the folder that holds them all, `shard-0-of-4` to `shard-3-of-4`; `merge` makes of them
the run that one process would have written.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import InputError, SpecError, listed

_NAME = re.compile(r"shard-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Shard:
    """Part i of n, i from 0.

    Raises:
        SpecError: there is no such part.
    """

    i: int
    n: int

    def __post_init__(self) -> None:
        if not 0 <= self.i < self.n:
            raise SpecError(
                f"there is no shard {self.i}/{self.n}; of {self.n} shards the first is "
                f"0/{self.n} and the last {max(self.n - 1, 0)}/{self.n}."
            )

    def __str__(self) -> str:
        return f"shard-{self.i}-of-{self.n}"

    def rows(self, start: int, stop: int) -> tuple[int, int]:
        """Its part of rows [start, stop): of equal size, but for one row.

        Raises:
            InputError: there are fewer rows than shards.
        """
        total = stop - start
        if total < self.n:
            raise InputError(
                f"{total} rows were asked for in {self.n} shards; use at most one shard a row."
            )
        return start + self.i * total // self.n, start + (self.i + 1) * total // self.n


def parse(text: str) -> Shard:
    """A shard from `3/8`.

    Raises:
        SpecError: it is written otherwise, or there is no such shard.
    """
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None:
        raise SpecError(
            f"--shard is {text!r}; expected i/n with i from 0, such as 0/4 for the first of four."
        )
    return Shard(int(found[1]), int(found[2]))


def is_store(folder: Path) -> bool:
    """Whether a folder holds shards."""
    return bool(shards_in(folder))


def shards_of(store: Path) -> list[Path]:
    """The folders of all shards of a store, in the order of their rows.

    Raises:
        InputError: shards of different numbers lie there; or one is missing or not finished.
    """
    found = shards_in(store)
    numbers = sorted({shard.n for shard in found})
    if len(numbers) > 1:
        raise InputError(
            f"{store} holds shards of {listed(numbers, 5)}; keep those of one number, and move the "
            "others away."
        )
    every = [Shard(i, numbers[0]) for i in range(numbers[0])]
    for what, lacks in (
        ("missing", [shard for shard in every if shard not in found]),
        (
            "not finished",
            [s for s in every if s in found and not (store / str(s) / "run.json").exists()],
        ),
    ):
        if lacks:
            names = listed([f"{shard.i}/{shard.n}" for shard in lacks], 10)
            raise InputError(
                f"{store}: shard {names} is {what}; run the same command with that --shard and "
                "--resume, then merge again."
            )
    return [store / str(shard) for shard in every]


def shards_in(store: Path) -> list[Shard]:
    """The shards that a folder holds, finished or not."""
    if not store.is_dir():
        return []
    names = [_NAME.fullmatch(path.name) for path in store.iterdir() if path.is_dir()]
    pairs = [(int(name[1]), int(name[2])) for name in names if name]
    return [Shard(i, n) for i, n in pairs if i < n]
