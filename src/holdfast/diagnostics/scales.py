"""Whether one eps means something in each column of a table."""

from __future__ import annotations

import numpy as np

from holdfast.data.source import Source
from holdfast.errors import listed
from holdfast.runs.manifest import Finding
from holdfast.threats.threat import Threat

APART = 100.0  # times as wide as another column, and one eps cannot fit both
READ = 1024  # rows read at once
NAMED = 3


def one_size(source: Source, threat: Threat) -> list[Finding]:
    """A finding where columns of a table have very different ranges and the threat one eps for all:
    some columns then move by their whole range, and others by nothing that a model could see.

    Columns that may not change, or hold texts or one value alone, are left out.
    """
    columns = source.columns
    if columns is None or not threat.norm.scales or not threat.bounded or threat.schema is not None:
        return []
    if "scale" in threat.limits or source.shape != (len(columns),):
        return []
    low, high = np.full(len(columns), np.inf), np.full(len(columns), -np.inf)
    for start in range(0, len(source), READ):
        x, _ = source.rows(start, start + READ)
        low, high = np.minimum(low, x.min(0)), np.maximum(high, x.max(0))
    wide = high - low
    free = (wide > 0) & np.array([not column.values for column in columns])
    if threat.mask is not None:
        free &= threat.mask.cpu().numpy()
    at = np.flatnonzero(free)[np.argsort(wide[free], kind="stable")]
    if len(at) < 2 or wide[at[-1]] < APART * wide[at[0]]:
        return []
    eps = float(np.max(np.asarray(threat.eps)))
    share = wide / wide[at[0]]
    narrow = [columns[j].name for j in at if share[j] < APART**0.5]
    broad = [columns[j].name for j in at[::-1] if wide[at[-1]] < APART**0.5 * wide[j]]
    text = (
        f"One eps, {eps:g}, is the size of a change in columns of very different ranges: it is "
        f"{_percent(eps / float(wide[at[0]]))} the range of {listed(narrow, NAMED)}, and "
        f"{_percent(eps / float(wide[at[-1]]))} that of {listed(broad, NAMED)}. The figure holds "
        "for such changes alone, and says little of any that people would make."
    )
    return [
        Finding(
            check="one_size",
            severity="amber",
            text=text,
            value=float(wide[at[-1]] / wide[at[0]]),
            threshold=APART,
            advice=(
                "Give each column a size of its own: with a schema, whose bounds are what eps "
                "counts in (in Python Threat.l2(0.1, schema=...)), or with --limits FILE.npz and "
                "scale in it, the change of each column where eps is 1."
            ),
        )
    ]


def _percent(share: float) -> str:
    """A share as a person says it."""
    return f"{100 * share:.2g} % of" if share < 1 else f"{share:.2g} times"
