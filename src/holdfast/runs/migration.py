"""Runs of before, read as what this version calls the same things: the keys of schema version 1,
options of trials, and phrases that findings no longer use."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a command's help is shown without it
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
# Options of trials in runs of schema version 2, as patterns; within a page ' is &#39;. They are no
# part of an attack's own text, which gives the keys of its noise: a renamed run has the same bits.
TRIALS: tuple[tuple[str, str], ...] = (
    (r"\bnear(?=\s*=)", "max_margin"),
    (r"\bthrough(\s*=\s*)(['\"]|&#39;)straight\b", r"gradient\1\2bpda"),
    (r"\bthrough(\s*=\s*)(['\"]|&#39;)blurred\b", r"gradient\1\2smoothed"),
    (r"\bthrough(?=\s*=\s*(['\"]|&#39;))", "gradient"),
)
# Of findings, in runs of schema version 2: what was written before, and what is written now. Who
# changes the words of a finding adds the phrase at the end, so that `verify` still confirms the
# runs made before. Numbers and names lie between phrases, not within them.
PHRASES: tuple[tuple[str, str], ...] = (
    ("does not answer by lot", "does not answer at random"),
    (" (by 0 to 5 points in Linf, as measured)", ""),
    (": a first look, which stronger ones may lower", ": stronger attacks may find a lower figure"),
    ("Defend the figure with --protocol standard", "Measure with --protocol standard"),
    ("an attack that follows it stands still", "an attack that follows it does not move"),
    ("on the sound models of the zoo", "on the sound models of holdfast.testing"),
    ("the examination of the attacks needs", "the probe of the attacks needs"),
    ("stands before the model", "comes before the model"),
    (
        "a linear map fitted to it stood in for it backwards",
        "the gradient of a linear map fitted to it was used",
    ),
    (
        "Lend it the gradients of its float version",
        "Attack it by the gradients of its float version",
    ),
    ("rows examined", "rows probed"),
    (
        "reach more. Give a model with gradients, or a surrogate.",
        "reach more. Give a model that has gradients, or a surrogate. Trees have none: under "
        "linf and a schema treeexact reads their leaves, and --certify proves rows.",
    ),
)


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


def with_todays_options(text: str) -> str:
    """The text of a trial, or one that names trials, with today's names of options."""
    return reduce(lambda text, renamed: re.sub(*renamed, text), TRIALS, text)


def in_todays_words(said: Any) -> Any:
    """A text with the phrases and the options of before replaced; in lists and dictionaries, every
    text in them."""
    if isinstance(said, str):
        said = with_todays_options(said)
        return reduce(lambda text, phrase: text.replace(*phrase), PHRASES, said)
    if isinstance(said, list):
        return [in_todays_words(part) for part in said]
    if isinstance(said, dict):
        return {key: in_todays_words(part) for key, part in said.items()}
    return said
