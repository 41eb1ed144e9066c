"""The page that holds runs against one another, and the plot of robust over clean accuracy."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from holdfast.errors import InputError
from holdfast.intervals import Interval
from holdfast.reporting import figures, paired, words
from holdfast.runs.compare import Comparison, changed
from holdfast.runs.compare import compare as pair
from holdfast.runs.store import read_bytes
from holdfast.view.index import Entry
from holdfast.view.runs import asked
from holdfast.view.site import Missing, Query, Site, whole

MOST = 12  # runs that are compared with the first
PAGE = 50  # samples on a page
NAMED = 12  # up to so many points of the plot are named in it
WIDTH, HEIGHT = 640, 420  # of the plot, in its own units
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 16, 52
NAME_WIDTH, NAME_HEIGHT = 260, 16  # of the name of a run in it, at most
LOG = 1 << 17  # bytes of a training's log.csv, a thousand epochs: a longer one is not drawn
# its columns that are drawn
CURVES = {"loss": "loss", "clean": "clean accuracy", "robust": "robust accuracy"}


def page(site: Site, name: str, query: Query) -> str:
    """The page of a run and of those that are compared with it, sample by sample.

    Args:
        name: the first run.
        query: the others, `with` each; of two runs the samples that changed `from` a status `to`
            another, `page` from 1.
    """
    first = site.entry(name)
    others = [site.entry(other) for other in dict.fromkeys(_every(query, "with"))][:MOST]
    found, refused = [], []
    for other in others:
        try:
            said = site.once(first, ("pair", _state(other)), lambda o=other: _pair(first, o))
            found.append((other, said))
        except InputError as error:  # another question, or an unfinished run
            refused.append((other, str(error)))
    of_two = found[0] if len(found) == 1 else None
    return site.draw(
        "compare.html.j2",
        kind="compare",
        entry=first,
        asked=asked(first),
        chosen=[other.name for other in others],
        choices=[e for e in _finished(site) if e.name != name and asked(e) == asked(first)],
        found=[(other, paired.sentences(said), paired.warnings(said)) for other, said in found],
        refused=refused,
        plot=_plot(site, [first, *(other for other, _ in found)]) if found else None,
        two=of_two is not None,
        training=[] if of_two is None else _training(first, of_two[0]),
        **({} if of_two is None else paired.shown(of_two[1])),
        **({} if of_two is None else _changes(site, first, of_two[0], query)),
    )


def tradeoff(site: Site, name: str, query: Query) -> str:
    """The page of robust over clean accuracy, over all runs of a `threat`."""
    if name:
        raise Missing(f"There is no page of this name; the plot is at {site.link('tradeoff')}.")
    every = [e for e in _finished(site) if e.summary and math.isfinite(e.summary.threat.eps)]
    threats = Counter(map(asked, every))
    chosen = query.get("threat", "") or max(threats, key=threats.__getitem__, default="")
    fitting = [entry for entry in every if asked(entry) == chosen]
    return site.draw(
        "tradeoff.html.j2",
        threat=chosen,
        threats=sorted(threats),
        query={"threat": chosen},
        entries=fitting,
        plot=_plot(site, fitting),
    )


def _every(query: Query, key: str) -> list[str]:
    """All values that a question has for a key."""
    items = getattr(
        query, "multi_items", query.items
    )()  # what a browser asks names keys repeatedly
    return [value for own, value in items if own == key]


def _finished(site: Site) -> list[Entry]:
    return [entry for entry in site.index.entries().values() if entry.summary is not None]


def _state(entry: Entry) -> tuple[str, float]:
    return entry.name, entry.changed


def _pair(first: Entry, other: Entry) -> Comparison:
    return pair(first.folder, other.folder)


def _changes(site: Site, first: Entry, other: Entry, query: Query) -> dict[str, Any]:
    """The samples whose status differs, by the names that the page has for them."""
    table = site.once(
        first, ("changed", _state(other)), lambda: changed(first.folder, other.folder)
    )
    rows = list(zip(*(table.column(name).to_pylist() for name in table.column_names), strict=True))
    kinds = Counter((before, after) for _, before, after in rows)
    before, after = query.get("from", ""), query.get("to", "")
    fitting = [r for r in rows if before in ("", r[1]) and after in ("", r[2])]
    pages = max(math.ceil(len(fitting) / PAGE), 1)
    number = min(max(whole(query.get("page", ""), 1), 1), pages)
    kept = {"with": other.name, "from": before, "to": after}
    return {
        "other": other,
        "kinds": kinds.most_common(),
        "rows": fitting[(number - 1) * PAGE : number * PAGE],
        "n": len(fitting),
        "number": number,
        "pages": pages,
        "query": kept,
        "at": lambda **more: site.link("compare", first.name, **{**kept, **more}),
    }


def _training(first: Entry, other: Entry) -> list[tuple[str, Markup]]:
    """The curves of the training between the two runs of a hardening, by what they show; none where
    they are other runs, or its log cannot be read."""
    folder = first.folder.parent
    path = folder / "log.csv"
    if (first.folder, other.folder) != (folder / "before", folder / "after") or path.is_symlink():
        return []
    found = []
    try:
        if path.stat().st_size > LOG:
            return []
        log = list(csv.DictReader(read_bytes(path).decode().splitlines()))
        for column, name in CURVES.items():
            points = [(float(line["epoch"]), float(line[column])) for line in log]
            if points := [point for point in points if all(map(math.isfinite, point))]:
                found.append((name, Markup(figures.line(points, "epoch", name, column))))
    except (InputError, OSError, ValueError, KeyError, TypeError):
        return []
    return found


@dataclass(frozen=True)
class Point:
    """A run in the plot, in the units of the plot."""

    name: str  # empty: it is not named
    said: str
    href: str
    x: float
    y: float
    named_at: float  # how high its name stands
    across: tuple[float, float]  # the ends of the interval of the clean accuracy
    up: tuple[float, float]  # of the robust one


@dataclass(frozen=True)
class Plot:
    """Robust over clean accuracy, ready to be drawn."""

    points: list[Point]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    said: str


def _ends(figure: Interval) -> tuple[float, float, float] | None:
    """A share with the ends of its interval; None: there was nothing to measure."""
    if figure.value is None or figure.low is None or figure.high is None:
        return None
    return figure.value, figure.low, figure.high


def _apart(points: Sequence[tuple[float, float]]) -> list[float]:
    """How high the names of points (x, y) stand: above each, or below the names that are there."""
    names: list[tuple[float, float]] = []
    for x, y in points:
        height = y - 9
        while any(abs(x - a) < NAME_WIDTH and abs(height - b) < NAME_HEIGHT for a, b in names):
            height += NAME_HEIGHT
        names.append((x, height))
    return [height for _, height in names]


def _plot(site: Site, entries: Sequence[Entry]) -> Plot | None:
    """The plot of finished runs; None: none of them has both figures."""
    known = [
        (entry.name, clean, robust)
        for entry in entries
        if entry.summary is not None
        and math.isfinite(entry.summary.threat.eps)
        and (clean := _ends(entry.summary.metrics.clean_accuracy)) is not None
        and (robust := _ends(entry.summary.metrics.robust_accuracy)) is not None
    ]
    if not known:
        return None
    left = math.floor(10 * min(low for _, (_, low, _), _ in known)) / 10

    def across(share: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (share - left) / (1 - left or 1), 1)

    def up(share: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share, 1)

    heights = _apart([(across(clean[0]), up(robust[0])) for _, clean, robust in known])
    points = [
        Point(
            name if len(known) <= NAMED else "",
            f"{name}: {words.percent(clean[0])} clean, {words.percent(robust[0])} robust",
            site.link("run", name),
            across(clean[0]),
            up(robust[0]),
            height,
            (across(clean[1]), across(clean[2])),
            (up(robust[1]), up(robust[2])),
        )
        for (name, clean, robust), height in zip(known, heights, strict=True)
    ]
    tenths = [k / 10 for k in range(round(10 * left), 11)]
    shares = tenths if len(tenths) < 7 else [t for t in tenths if round(10 * t) % 2 == 0]
    return Plot(
        points,
        [(across(t), f"{100 * t:.0f} %") for t in shares],
        [(up(t), f"{100 * t:.0f} %") for t in (0, 0.2, 0.4, 0.6, 0.8, 1)],
        f"Robust over clean accuracy of {len(known)} run{'s' * (len(known) != 1)}.",
    )
