"""What all pages share: the runs, the links between them, and how a page is drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from holdfast.errors import InputError
from holdfast.reporting import html
from holdfast.view.index import Entry, Index
from holdfast.view.originals import Originals

STATIC = {
    "report.css": ("holdfast.reporting", "text/css"),
    "view.css": ("holdfast.view", "text/css"),
    "view.js": ("holdfast.view", "text/javascript"),
}
Query = Mapping[str, str]


class Missing(Exception):
    """There is no such page; its text says what is not there."""


class Link(Protocol):
    """Where a page is: its kind, the name of its run, and what is asked of it."""

    def __call__(self, kind: str, name: str = "", /, **query: object) -> str: ...


def address(kind: str, name: str = "", /, **query: object) -> str:
    """The address of a page on the server, from its root; what is None or empty is left out."""
    path = {"runs": "/", "events": "/events"}.get(kind, f"/{kind}/{quote(name)}")
    asked = {key: value for key, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(asked, doseq=True)}" if asked else path


def whole(text: str, otherwise: int) -> int:
    """A whole number of few digits that a link holds."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else otherwise


def toggled(sort: str, column: str) -> str:
    """How a table sorts next, when the head of a column is clicked: upwards, downwards, not."""
    return {column: f"-{column}", f"-{column}": ""}.get(sort, column)


def pairs(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Choices that are called what they are."""
    return [(text, text) for text in texts]


def clock(seconds: float) -> str:
    """A time of the clock, in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


@dataclass(frozen=True)
class Site:
    """The pages of the runs of one folder.

    link: where a page is; of a static copy, a file.
    live: whether pages are drawn anew when they are asked for.
    """

    index: Index
    link: Link = address
    live: bool = True
    originals: Originals | None = None  # the rows of data that the user names
    made: dict[object, Any] = field(default_factory=dict)  # what is dear to make, by what it is of

    def entry(self, name: str) -> Entry:
        """The run of this name.

        Raises:
            Missing: there is none.
            InputError: it is damaged.
        """
        entry = self.index.find(name)
        if entry is None:
            raise Missing(f"There is no run {name} in {self.index.root}.")
        if entry.state == "damaged":
            raise InputError(entry.fault)
        return entry

    def draw(self, template: str, **values: Any) -> str:
        """A page, from a template of this package."""
        shared = {
            "site": self,
            "link": self.link,
            "toggled": toggled,
            "clock": clock,
            "pairs": pairs,
        }
        return html.rendered(template, "holdfast.view", **shared, **values)

    def once(self, entry: Entry, what: object, make: Callable[[], Any]) -> Any:
        """What `make` gives, kept for the next time while the run is unchanged; the last few."""
        key = (entry.name, entry.changed, what)
        if key not in self.made:
            while len(self.made) >= KEPT:
                del self.made[next(iter(self.made))]
            self.made[key] = make()
        else:
            self.made[key] = self.made.pop(key)  # the latest last
        return self.made[key]


KEPT = 8  # things that are dear to make


@functools.cache
def static(name: str) -> tuple[bytes, str]:
    """A style sheet or the script, and its media type.

    Raises:
        Missing: there is no such file.
    """
    if name not in STATIC:
        raise Missing(f"There is no file {name}.")
    package, kind = STATIC[name]
    return files(package).joinpath(name).read_bytes(), kind
