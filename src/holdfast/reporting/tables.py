"""What a report shows of the rows of a table: which columns of an example changed, and how."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.reporting import words
from holdfast.runs.manifest import ColumnInfo, Manifest

RULES = 10  # relations that are listed
CHANGED = 8  # columns of an example that are named
RANKED = 15  # columns that are ranked


@dataclass(frozen=True)
class Change:
    """A column of one example."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class ColumnChanges:
    """A column over all examples."""

    name: str
    share: float  # of the examples in which it changed
    change: str  # the median size where it did; of texts the most frequent change


@dataclass(frozen=True)
class Rule:
    """A relation of the schema that held rows back."""

    name: str
    text: str
    share: float  # of the examples found without relations that do not satisfy it


def rules(manifest: Manifest) -> list[Rule]:
    """The relations that the examples found without them break most."""
    found = manifest.metrics.relations
    if found is None or not found.broken:
        return []
    schema = tomllib.loads(manifest.threat.table or "")
    texts = schema.get("relations", {})
    texts |= {name: f"{name} == {text}" for name, text in schema.get("derived", {}).items()}
    return [
        Rule(name, texts.get(name, ""), times / found.broken)
        for name, times in list(found.by_relation.items())[:RULES]
    ]


def shown(column: ColumnInfo, value: float) -> str:
    """A value of a column as its table has it."""
    if column.values:
        place = int(np.clip(np.rint(value), 0, len(column.values) - 1))
        return str(column.values[place])
    if column.dtype == "bool" and value in (0, 1):
        return str(bool(value))
    return words.number(value)


def changed(columns: Sequence[ColumnInfo], x: np.ndarray, x_adv: np.ndarray) -> np.ndarray:
    """Which columns of examples x_adv [n, f] differ from those of rows x: [n, f] bool."""
    texts = np.array([bool(column.values) for column in columns])
    return np.where(texts, np.rint(x) != np.rint(x_adv), x != x_adv)


def spread(x: np.ndarray) -> np.ndarray:
    """What a change of each column of rows x [n, f] is held against, to say which is large."""
    wide = x.max(0, initial=-np.inf) - x.min(0, initial=np.inf)  # there may be no rows
    return np.where(wide > 0, wide, np.maximum(np.abs(x).max(0, initial=0), 1e-12))


def changes(
    columns: Sequence[ColumnInfo], x: np.ndarray, x_adv: np.ndarray, most: int
) -> list[tuple[Change, ...]]:
    """Of each of the first examples x_adv [n, f] the columns that differ from its row of x, the
    largest change first."""
    differs, size = changed(columns, x, x_adv), np.abs(x_adv - x) / spread(x)
    found: list[tuple[Change, ...]] = []
    for before, after, own, far in zip(x[:most], x_adv, differs, size, strict=False):
        at = np.flatnonzero(own)
        values = [
            (columns[j], float(before[j]), float(after[j]))
            for j in at[np.argsort(-far[at], kind="stable")]
        ]
        found.append(tuple(Change(c.name, shown(c, a), shown(c, b)) for c, a, b in values))
    return found


def most_changed(
    columns: Sequence[ColumnInfo], x: np.ndarray, x_adv: np.ndarray
) -> list[ColumnChanges]:
    """The columns that changed in the most examples x_adv [n, f] of rows x, and by how much."""
    differs, size, wide = changed(columns, x, x_adv), np.abs(x_adv - x), spread(x)
    count, middle = differs.sum(0), np.zeros(len(columns))
    for j in np.flatnonzero(count):
        middle[j] = np.median(size[differs[:, j], j])
    order = np.lexsort((-middle / wide, -count))[:RANKED].tolist()
    found = [(j, columns[j]) for j in order if count[j]]
    return [
        ColumnChanges(
            one.name, float(count[j] / len(x)), _change(one, x[:, j], x_adv[:, j], float(middle[j]))
        )
        for j, one in found
    ]


def _change(column: ColumnInfo, before: np.ndarray, after: np.ndarray, middle: float) -> str:
    """How a column [n] changed on the whole."""
    if not column.values:
        return words.number(middle)
    pairs = zip(before.tolist(), after.tolist(), strict=True)
    texts = [(shown(column, a), shown(column, b)) for a, b in pairs]
    (a, b), times = Counter(pair for pair in texts if pair[0] != pair[1]).most_common(1)[0]
    return f"{a} → {b} ({times:,} times)"
