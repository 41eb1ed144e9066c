"""Parquet files, here or on a store: where they lie, and their rows in pieces."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.data.files import kind_of_file
from holdfast.data.layouts import SPLITS, words_of
from holdfast.errors import InputError, first_line, suggest
from holdfast.urls import reaching, store_at

ENDINGS = (".parquet", ".pq")
_BUFFERED = 1 << 26  # bytes that the columns of a file share as they are read
_SPLIT = re.compile(f"({'|'.join(map('|'.join, SPLITS.values()))})(?![a-z])", re.IGNORECASE)


class Files:
    """A Parquet file, or all of a folder in the order of their names, with the same columns.

    Attributes:
        schema: of all of them.
        groups: of each row group that has rows its file, and its number there.
        edges: the first row of each of these, and the number of all rows.
        row_bytes: of a row, on average, when it is read.

    Args:
        at: the file or folder, or its URL.
        split: chooses, where files or their folders are named for splits, such as
            `train-00000-of-00002.parquet`.

    Raises:
        InputError: there are none, or none of this split; one is no Parquet file, or has other
            columns.
    """

    def __init__(self, at: Path | str, split: str) -> None:
        self._at, self._fs, root = at, None, str(at)
        if isinstance(at, str):
            self._fs, root = store_at(at)
        self.schema, counts, size = pa.schema([]), list[int](), 0
        self.groups: list[tuple[str, int]] = []
        paths = self._found(root, split)
        for path in paths:
            with self._opening(path), self.open(path) as file:
                schema, meta = file.schema_arrow, file.metadata
            if path != paths[0] and not schema.equals(self.schema):
                raise InputError(
                    f"{self.name_of(path)} has other columns than {self.name_of(paths[0])}, or of "
                    "other types; all files of a folder are one table."
                )
            self.schema = schema
            for group in range(meta.num_row_groups):
                if rows := meta.row_group(group).num_rows:
                    self.groups.append((path, group))
                    counts.append(rows)
                    size += meta.row_group(group).total_byte_size
        self.edges = list(accumulate(counts, initial=0))
        self.row_bytes = max(size // max(self.edges[-1], 1), 1)

    def _found(self, root: str, split: str) -> list[str]:
        """The paths of the files."""
        if self._fs is None:
            every = [str(path) for path in Path(root).rglob("*")] or [root]
        else:
            with reaching(str(self._at), "read"):
                every = self._fs.find(root) or [root]
        if every == [root]:
            return every
        names = {path: PurePosixPath(path.removeprefix(root).lstrip("/")) for path in sorted(every)}
        of = {path: _split_of(name) for path, name in names.items() if _is_table(name)}
        if not of:
            raise InputError(f"{self._at} holds no Parquet files; expected names in .parquet.")
        splits = {name for name in of.values() if name}
        chosen = next((word for word in words_of(split) if word in splits), "")
        if splits and not chosen:
            raise InputError(f"{self._at} has no split {split!r}; {suggest(split, splits)}")
        return [path for path, name in of.items() if name == chosen]

    def name_of(self, path: str) -> str:
        """What a message calls a file."""
        return path if self._fs is None else str(self._fs.unstrip_protocol(path))

    def open(self, path: str) -> pq.ParquetFile:
        """A file that is read through small buffers: no row group is held as a whole."""
        source: Any = path
        if self._fs is not None:
            source = self._fs.open(path, "rb", cache_type="none")
        # without a schema it is the first file that is opened, for its schema alone
        size = _BUFFERED // max(len(self.schema), 8)
        return pq.ParquetFile(source, buffer_size=max(size, 1 << 16), pre_buffer=False)

    @contextmanager
    def _opening(self, path: str) -> Iterator[None]:
        try:
            with self.reading(path):
                yield
        except InputError:
            if self._fs is not None:
                raise
            seen = kind_of_file(Path(path))
            cut = {"a Parquet file": " that is damaged or cut short"}.get(seen, "")
            raise InputError(f"{path} is {seen}{cut}; expected a whole Parquet file.") from None

    @contextmanager
    def reading(self, path: str) -> Iterator[None]:
        """Read a file: what goes wrong becomes a sentence.

        Raises:
            InputError: it is damaged, or its store cannot be reached.
        """
        name = self.name_of(path)
        damaged: tuple[type[Exception], ...] = (pa.ArrowException, UnicodeDecodeError)
        asked = reaching(name, "read")
        if self._fs is None:
            damaged, asked = (*damaged, OSError), nullcontext()
        with asked:
            try:
                yield
            except damaged as error:
                raise InputError(
                    f"{name} is damaged ({first_line(error)}); expected a whole Parquet file."
                ) from None


def _is_table(name: PurePosixPath) -> bool:
    return name.name.lower().endswith(ENDINGS) and not name.name.startswith((".", "_"))


def _split_of(name: PurePosixPath) -> str:
    """The split that a file, or the first folder on the way to it, is named for."""
    found = next(filter(None, map(_SPLIT.match, name.parts)), None)
    return found[1].lower() if found else ""


class Cursor:
    """Some columns of the rows, read `at_once` of them at a time. What was asked for last is held,
    so that later rows of a row group are read on from there."""

    def __init__(self, files: Files, columns: Sequence[str], at_once: int) -> None:
        self._files, self._columns, self._at_once = files, list(columns), at_once
        self._group, self._start = -1, 0  # the row group that is read, and its first row held
        self._held: list[pa.RecordBatch] = []
        self._more: Iterator[pa.RecordBatch] = iter(())

    def rows(self, start: int, stop: int) -> pa.Table:
        """Rows `start` to `stop`, of which there is at least one."""
        edges, parts = self._files.edges, list[pa.RecordBatch]()
        at, stop = start, min(stop, edges[-1])
        while at < stop:
            group = bisect_right(edges, at) - 1
            last = min(stop, edges[group + 1])
            parts += self._of_group(group, at - edges[group], last - edges[group])
            at = last
        return pa.Table.from_batches(parts)

    def _of_group(self, group: int, start: int, stop: int) -> list[pa.RecordBatch]:
        path, number = self._files.groups[group]
        if group != self._group or start < self._start:
            self._group, self._start, self._held = group, 0, []
            with self._files.reading(path):
                self._more = self._files.open(path).iter_batches(
                    self._at_once, row_groups=[number], columns=self._columns, use_threads=False
                )
        end = self._start + sum(map(len, self._held))
        while end < stop:
            while self._held and self._start + len(self._held[0]) <= start:
                self._start += len(self._held.pop(0))
            with self._files.reading(path):
                if (batch := next(self._more, None)) is None:
                    raise pa.ArrowInvalid("it has fewer rows than it says")
            self._held.append(batch)
            end += len(batch)
        at, parts = self._start, list[pa.RecordBatch]()
        for batch in self._held:
            if start < at + len(batch) and at < stop:
                parts.append(batch.slice(max(start - at, 0), stop - max(start, at)))
            at += len(batch)
        return parts

    def pieces(self) -> Iterator[tuple[int, pa.Table]]:
        """All rows, in pieces of `at_once`, and the first of each."""
        for start in range(0, self._files.edges[-1], self._at_once):
            yield start, self.rows(start, start + self._at_once)
