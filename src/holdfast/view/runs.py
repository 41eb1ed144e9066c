"""The list of runs: what each found, sorted and filtered as is asked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

from holdfast.view.index import Entry
from holdfast.view.site import Query, Site, whole


def asked(entry: Entry) -> str:
    """The threat of a run, as it is typed; empty: it is not known."""
    if entry.summary is not None:
        return entry.summary.asked
    return entry.progress.threat if entry.progress is not None else ""


PAGE = 100  # runs on a page
# how the columns sort; what is not known comes last
_KEYS: dict[str, Callable[[Entry], Any]] = {
    "run": lambda e: e.name,
    "model": lambda e: e.summary and e.summary.model.spec,
    "threat": asked,
    "inputs": lambda e: e.summary and e.summary.metrics.robust_accuracy.n,
    "clean": lambda e: e.summary and e.summary.metrics.clean_accuracy.value,
    "robust": lambda e: e.summary and e.summary.metrics.robust_accuracy.value,
    "certified": lambda e: (
        e.summary
        and e.summary.metrics.certified_accuracy
        and e.summary.metrics.certified_accuracy.value
    ),
    "verdict": lambda e: e.summary and e.summary.verdict.status,
    "cost": lambda e: e.summary and e.summary.costs.seconds,
    "date": lambda e: e.summary and e.summary.provenance.created,
}


def page(site: Site, query: Query) -> str:
    """The page of all runs.

    Args:
        query: `text` that the name, the model, the data or the protocol holds; a `threat`, a
            `verdict`, a `state`, a `folder` that runs lie in; `sort` by a column, with - before it
            from the largest; `page` from 1.
    """
    every = list(site.index.entries().values())
    chosen = ordered([entry for entry in every if _fits(entry, query)], query.get("sort", ""))
    pages = max(math.ceil(len(chosen) / PAGE), 1)
    number = min(max(whole(query.get("page", ""), 1), 1), pages)
    return site.draw(
        "runs.html.j2",
        entries=chosen[(number - 1) * PAGE : number * PAGE],
        asked=asked,
        inf=math.inf,
        at=lambda **changed: site.link("runs", **{**query, "page": "", **changed}),
        query=query,
        total=len(every),
        n=len(chosen),
        number=number,
        pages=pages,
        columns=list(_KEYS),
        threats=sorted({asked(entry) for entry in every} - {""}),
        verdicts=sorted({e.summary.verdict.status for e in every if e.summary}),
        states=Counter(entry.state for entry in every),
        folders=sorted({tag for entry in every for tag in entry.tags}),
    )


def ordered(entries: list[Entry], sort: str) -> list[Entry]:
    """Sorted by a column; in their order where there is none of this name."""
    key = _KEYS.get(sort.removeprefix("-"))
    if key is None:
        return entries
    known = [entry for entry in entries if key(entry) not in (None, "")]
    ids = set(map(id, known))
    known.sort(key=key, reverse=sort.startswith("-"))
    return known + [entry for entry in entries if id(entry) not in ids]


def _fits(entry: Entry, query: Query) -> bool:
    said = entry.summary
    words = [entry.name]
    if said is not None:
        words += [said.model.spec, said.data.spec, said.protocol.name]
    equal = {
        "threat": asked(entry),
        "verdict": said.verdict.status if said is not None else "",
        "state": entry.state,
    }
    return (
        query.get("text", "").lower() in "\n".join(words).lower()
        and all(query.get(name, "") in ("", value) for name, value in equal.items())
        and query.get("folder", "") in ("", *entry.tags)
    )
