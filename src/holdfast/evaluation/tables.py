"""Rows of a table as they come, held against its schema: those that break it are not attacked."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from holdfast.data import Source
from holdfast.errors import InputError, listed
from holdfast.runs.manifest import Finding
from holdfast.targets.target import Bounds, Target
from holdfast.targets.wrappers import innermost
from holdfast.threats.table.schema import Schema
from holdfast.threats.threat import Threat

STRIDE = 1024  # rows read at once
LISTED = 5
FORMAT = (": type", ": one-hot")  # rules that say how rows are written


def in_table(target: Target, threat: Threat) -> Target:
    """A copied target whose bounds are those of the threat's schema, where it has one."""
    if threat.schema is not None:
        innermost(target).bounds = Bounds.of(threat.schema.extent)
    return target


def broken_rows(source: Source, threat: Threat, dtype: torch.dtype) -> list[Finding]:
    """What is noted of rows that break the schema of a threat.

    Raises:
        InputError: a row is not written as the schema says, or no row satisfies one of its rules.
    """
    schema = threat.schema
    if schema is None:
        return []
    threat.check_shape(tuple(source.shape))
    rules = list(enumerate(schema.rules))
    form = [j for j, rule in rules[len(schema.conditions) :] if rule.endswith(FORMAT)]
    held = torch.zeros(len(rules), dtype=torch.bool)
    found: dict[int, str] = {}
    for start, broken in _broken(source, schema, dtype):
        held |= (broken == 0).any(0)
        for row in (broken > 0).any(1).nonzero()[:, 0].tolist():
            if misread := [j for j in form if broken[row, j] > 0]:
                raise InputError(_misread(source, start + row, schema, misread[0]))
            at = int((broken[row] > 0).nonzero()[0])
            size = float(broken[row, at])
            found[start + row] = f"{start + row} ({schema.rules[at]}, by {size:.4g})"
    if not bool(held.all()):
        rule = schema.rules[int((~held).nonzero()[0])]
        raise InputError(
            f"no row of {source.name} satisfies the rule {schema.words(rule)} of the schema; is it "
            "in the units of the data?"
        )
    if not found:
        return []
    one = len(found) == 1
    text = (
        f"{len(found):,} of {len(source):,} rows {'breaks' if one else 'break'} the schema "
        f"{'itself' if one else 'themselves'}, and {'is' if one else 'are'} not attacked: row "
        f"{listed(list(found.values()), LISTED)}."
    )
    ids = list(found)[:100]
    return [Finding(check="broken_rows", severity="info", text=text, value=len(found), ids=ids)]


def _broken(
    source: Source, schema: Schema, dtype: torch.dtype
) -> Iterator[tuple[int, torch.Tensor]]:
    """The first row of each part of the data, and how far its rows are from each rule."""
    for start in range(0, len(source), STRIDE):
        x = torch.from_numpy(source.rows(start, min(start + STRIDE, len(source)))[0]).to(dtype)
        yield start, schema.violations(x, x)


def _misread(source: Source, row: int, schema: Schema, at: int) -> str:
    """What is wrong with how a row is written."""
    name, _, kind = schema.rules[at].rpartition(": ")
    x = source.rows(row, row + 1)[0][0]
    if kind == "one-hot":
        group = schema.members[name]
        seen = listed([f"{x[j]:g}" for j in group], LISTED)
        return (
            f"row {row} of {source.name} has {seen} in the group {name}; expected one 1, and 0 in "
            "all others."
        )
    feature = schema.features[schema.names.index(name)]
    value = float(x[schema.names.index(name)])
    expected = "a whole number"
    if feature.levels:
        expected = f"one of {listed([f'{v:g}' for v in feature.levels], LISTED)}"
    return (
        f"row {row} of {source.name} has {value:.6g} in the column {name}, which the schema calls "
        f"{feature.type}; expected {expected}."
    )
