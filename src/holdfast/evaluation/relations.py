"""What the relations of a table's schema hold back: rows that no attack broke, searched again where
the relations need not hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from holdfast.diagnostics.checks import FOLLOWED
from holdfast.evaluation.chunk import ChunkState, SearchSettings, judge_chunk, search
from holdfast.evaluation.protocols import Protocol
from holdfast.runs.journal import Journal
from holdfast.runs.metrics import NOT_SEARCHED
from holdfast.threats.threat import Threat


def searched_again(protocol: Protocol, threat: Threat, budget: int | None) -> bool:
    """Whether rows that hold are searched again without relations."""
    related = threat.schema is not None and bool(threat.schema.conditions)
    return related and threat.bounded and budget is None and protocol.name in FOLLOWED


def search_without(
    settings: SearchSettings, journal: Journal, name: str, state: ChunkState
) -> dict[str, np.ndarray]:
    """Search the rows of a chunk that hold again, by the same trials under the schema without its
    relations: columns of samples.

    `relations_broken` [n, relations] says which ones the example does not satisfy that is found so;
    `relations_passes` [n] what the search cost. An example that satisfies all of them is one under
    the threat itself, and goes into the state.
    """
    schema = settings.threat.schema
    assert schema is not None
    own, n = settings.measured[0], len(state.y)
    columns = {
        "relations_broken": np.full((n, len(schema.conditions)), NOT_SEARCHED, np.int8),
        "relations_passes": np.zeros(n, np.int64),
    }
    holds = state.asked & ~state.failed & ~(state.size <= settings.limit(own))
    at = holds.nonzero()[:, 0]
    if not len(at):
        return columns
    bare = replace(schema, relations={}, derived={})
    looser = replace(
        settings,
        threat=replace(settings.threat, schema=bare),
        measured=[own],
        on_step=lambda _, trial, live: settings.on_step(
            1.0, f"{trial} without the relations", live
        ),
    )
    ids = state.ids[at]
    found = search(looser, journal, f"{name}-bare", state.batch[at], state.y[at], ids)
    examples = judge_chunk(looser, found)[1]
    if own not in found.missed:
        columns["relations_broken"][at.numpy()] = 0
    columns["relations_passes"][at.numpy()] = found.counts["forwards"] + found.counts["backwards"]
    place = np.searchsorted(ids.numpy(), examples["id"])
    x = torch.from_numpy(examples["x"])
    broken = (schema.violations(x)[:, : len(schema.conditions)] > 0).numpy()
    columns["relations_broken"][at.numpy()[place]] = broken
    for row in place[~broken.any(1)].tolist():
        columns["relations_broken"][at[row]] = NOT_SEARCHED
        _take(state, int(at[row]), found, row, own)
    return columns


def _take(state: ChunkState, row: int, found: ChunkState, at: int, eps: float) -> None:
    """Take in the example of a row of another state, which the same trial found."""
    trial = int(found.broken_by[at])
    state.best[row], state.size[row] = found.best[at], found.size[at]
    state.margin[row] = torch.minimum(state.margin[row], found.margin[at])
    state.broken_by[row] = trial
    attacked, broken, paid = state.costs[eps, trial, 0]
    state.costs[eps, trial, 0] = attacked, broken + 1, paid
