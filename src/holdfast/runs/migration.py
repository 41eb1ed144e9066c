"""Runs of schema version 1, read as what version 2 calls the same things."""

from __future__ import annotations

import json
from contextlib import suppress

import pyarrow as pa

KEYS = {  # of run.json
    "noted": "initial_findings",
    "examined": "probe_costs",
    "moved": "transformation",
    "rounds": "restarts",
    "shows_as": "explains",
}
OPTIONS = {b"pace=": b"tau_step="}  # of attacks, in the texts of trials
COLUMNS = {  # of samples.parquet
    "goal": "target_class",
    "holds_8bit": "broken_8bit",
    "refused": "robust_by_refusal",
}


def migrate(manifest: bytes) -> bytes:
    """run.json of version 1 in the words of version 2; it still says in which it was written.

    What is no JSON is given back as it is, for its reader to refuse.
    """

    def renamed(pairs: list[tuple[str, object]]) -> dict[str, object]:
        return {KEYS.get(key, key): value for key, value in pairs}

    for old, new in OPTIONS.items():
        manifest = manifest.replace(old, new)
    with suppress(ValueError, RecursionError):
        manifest = json.dumps(json.loads(manifest, object_pairs_hook=renamed)).encode()
    return manifest


def migrate_samples(table: pa.Table) -> pa.Table:
    return table.rename_columns([COLUMNS.get(name, name) for name in table.column_names])
