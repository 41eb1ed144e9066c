"""Rows on their way to a model: what an attack may change, and with it what no attack
may."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from holdfast.data.source import Source
from holdfast.errors import InputError
from holdfast.tensors import detached

T = TypeVar("T")
Placed = TypeVar("Placed", "Batch", Tensor)
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Batch:
    """n rows, which are sliced as one.

    `x` ([n, *shape]) may change. `context` holds named columns ([n, ...] each) that go with their
    rows and never change: further inputs of the model, or the truth that its outputs are held to.
    """

    x: Tensor
    context: Mapping[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def of(rows: Batch | Tensor) -> Batch:
        """A batch as it is; inputs alone as one without context."""
        return rows if isinstance(rows, Batch) else Batch(rows)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> Batch:
        return Batch(self.x[rows], rows_of(self.context, rows))

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The same rows there, as tensors that a graph may hold."""
        context = {k: detached(column.to(device, dtype)) for k, column in self.context.items()}
        return Batch(detached(self.x.to(device, dtype)), context)

    def with_x(self, x: Tensor) -> Batch:
        """Other inputs [n, *shape] of the same rows."""
        return Batch(x, self.context)

    def without(self, name: str) -> Batch:
        """The same rows without one column of the context."""
        return Batch(self.x, {k: column for k, column in self.context.items() if k != name})

    def flat(self) -> Tensor:
        """All that a row holds, the context first, side by side: [n, features]; without a context
        x as it is."""
        if not self.context:
            return self.x
        columns = [column.flatten(1).to(self.x) for column in self.context.values()]
        return torch.cat([*columns, self.x.flatten(1)], 1)


@dataclass
class Batcher:
    """How rows are packed on their way to a model."""

    size: int = 256  # rows of one pass
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32

    def place(self, rows: Placed) -> Placed:
        """Rows where the model takes them: on its device, in its dtype."""
        return rows.to(self.device, self.dtype)

    def in_parts(self, question: Callable[[Rows], Tensor], rows: Rows) -> Tensor:
        """The answers to any number of rows, asked in micro-batches: [n, ...]."""
        return torch.cat(list(self.parts(lambda part: question(rows[part]), len(rows))))

    def parts(self, ask: Callable[[slice], T], n: int) -> Iterator[T]:
        """`ask` on parts of rows 0..n; out of memory halves their size, from then on, and goes on.

        Raises:
            InputError: one single row does not fit into memory.
        """
        start = 0
        while start < n:
            try:
                answer = ask(slice(start, min(start + self.size, n)))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if self.size == 1:
                    raise InputError(
                        "one single row does not fit into memory; use a larger device."
                    ) from error
                self.size = max(1, min(self.size, n - start) // 2)
                continue
            yield answer
            start = min(start + self.size, n)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        "allocate memory" in str(error)
    )


Rows = Batch | Tensor  # what a target is asked about: inputs alone where there is no context


def read(source: Source, start: int, stop: int) -> tuple[Batch, np.ndarray]:
    """Rows `start` to `stop` of a source, and their labels."""
    x, y = source.rows(start, stop)
    context = source.context(start, stop)
    tensors = {name: torch.from_numpy(column) for name, column in context.items()}
    return Batch(torch.from_numpy(x), tensors), np.asarray(y)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of the rows of several."""
    columns = {name: torch.cat([b.context[name] for b in batches]) for name in batches[0].context}
    return Batch(torch.cat([b.x for b in batches]), columns)


Part = slice | Tensor  # some rows: those from one place to another, or at places [m] int64


def part_of(column: Tensor, rows: Part) -> Tensor:
    """These rows of a column [n, ...]; a view, where they are a slice."""
    # index_select takes a fifth of the time of an index
    return column[rows] if isinstance(rows, slice) else column.index_select(0, rows)


def places(rows: Part, device: torch.device) -> Tensor:
    """The places [m] int64 of some rows."""
    return torch.arange(rows.start, rows.stop, device=device) if isinstance(rows, slice) else rows


def picked(column: Tensor | None, rows: Part) -> Tensor | None:
    """These rows of a column, where there is one."""
    return None if column is None else part_of(column, rows)


def rows_of(context: Mapping[str, Tensor], rows: Any) -> dict[str, Tensor]:
    """These rows of the columns of a context."""
    return {name: column[rows] for name, column in context.items()}
