"""Answers that were paid for: an exact cache of what a slow target said, and how many inputs it was
sent."""

from __future__ import annotations

import hashlib
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from holdfast.errors import InputError


class Answers:
    """In a file, or in memory only. What is kept and counted survives a kill, and several processes
    may share it.

    `endpoint` says all that decides the answers, whose numbers are of one `kind`.
    """

    def __init__(
        self, file: Path | None, endpoint: str, kind: type[np.floating] = np.float32
    ) -> None:
        self.endpoint, self.kind, self.asked = endpoint, kind, 0
        try:
            self.db = sqlite3.connect(
                file or ":memory:", isolation_level=None, timeout=60, check_same_thread=False
            )
            weakref.finalize(self, self.db.close)
            self.db.execute("PRAGMA journal_mode=WAL")
            self.db.execute("PRAGMA synchronous=NORMAL")
            self.db.execute(
                "CREATE TABLE IF NOT EXISTS answers (input BLOB PRIMARY KEY, answer BLOB) WITHOUT "
                "ROWID"
            )
            self.db.execute(
                "CREATE TABLE IF NOT EXISTS sent (endpoint TEXT PRIMARY KEY, inputs INTEGER)"
            )
            self.db.execute("INSERT OR IGNORE INTO sent VALUES (?, 0)", (endpoint,))
        except sqlite3.Error as error:
            raise InputError(
                f"cache_file {file} cannot be used ({error}); name another file, or remove it."
            ) from None

    @property
    def sent(self) -> int:
        """Inputs sent so far, retries counted."""
        return self.db.execute(
            "SELECT inputs FROM sent WHERE endpoint = ?", (self.endpoint,)
        ).fetchone()[0]

    def spend(self, n: int, limit: float) -> int:
        """Count up to n more inputs as sent, before they are: as many as the limit leaves."""
        self.db.execute("BEGIN IMMEDIATE")
        granted = int(max(0, min(n, limit - self.sent)))
        self.db.execute(
            "UPDATE sent SET inputs = inputs + ? WHERE endpoint = ?", (granted, self.endpoint)
        )
        self.db.execute("COMMIT")
        return granted

    def to(
        self,
        x: np.ndarray,
        width: int,
        ask: Callable[[Sequence[bytes], list[int], np.ndarray], None],
        *,
        fresh: bool,
    ) -> np.ndarray:
        """Answers [n, width] to inputs x [n, ...]; NaN where there is none.

        What is not known, `ask` fills in: given each input's key, the rows to ask about, and the
        answers. No input is asked about twice, unless all are to be `fresh`.
        """
        answers = np.full((len(x), width), np.nan, self.kind)
        keys = [hashlib.sha256(self.endpoint.encode() + row.tobytes()).digest() for row in x]
        if fresh:
            ask(keys, list(range(len(x))), answers)
            return answers
        known = self.find(keys)
        first: dict[bytes, int] = {}  # the row that asks for all rows equal to it
        for i, key in enumerate(keys):
            first.setdefault(key, i)
        ask(keys, [i for key, i in first.items() if key not in known], answers)
        for i, key in enumerate(keys):
            answers[i] = known.get(key, answers[first[key]])
        return answers

    def find(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """The answers known to these inputs."""
        asked = (
            (key, self.db.execute("SELECT answer FROM answers WHERE input = ?", (key,)).fetchone())
            for key in keys
        )
        return {key: np.frombuffer(row[0], self.kind) for key, row in asked if row}

    def keep(self, answers: Iterable[tuple[bytes, np.ndarray]]) -> None:
        """Add answers; what is known already stays."""
        rows = [(key, answer.tobytes()) for key, answer in answers]
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)
        self.db.execute("COMMIT")

    def any(self) -> bool:
        return self.db.execute("SELECT 1 FROM answers LIMIT 1").fetchone() is not None
