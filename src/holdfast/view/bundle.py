"""A static copy of the pages: files that any web server shows, and a file manager too.

The pages are those of the server. Links that lead to a page of the copy become relative ones, and
what has no page in it is no link.
"""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from holdfast.errors import InputError
from holdfast.runs import store
from holdfast.view import run, runs, sample, samples
from holdfast.view.index import Entry
from holdfast.view.site import STATIC, Query, Site, static

STORED = 1000  # samples of a run that have pages of their own
_LINK = re.compile(r' (href|src)="(/[^"]*)"')
Key = tuple[str, str, frozenset[tuple[str, str]]]  # kind, name of the run, what is asked


@dataclass(frozen=True)
class Page:
    """A page of the copy: the address that it has on a server, its file, and how it is drawn."""

    key: Key
    file: str
    draw: Callable[[], str]


def write(site: Site, out: Path) -> int:
    """Write the list of runs, the page of each, the first page of its samples and of those of each
    status, and the pages of its broken samples, at most `STORED`; how many pages these are.

    Args:
        out: a folder that is not there, or empty; index.html in it is the list.

    Raises:
        InputError: the folder is not empty, lies within a run, or cannot be written.
    """
    try:
        for folder in out.resolve().parents:
            if (folder / "run.json").exists():
                raise InputError(
                    f"{out} lies in the folder of a run, {folder}; --bundle takes a folder apart "
                    "from the runs."
                )
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out} is not an empty folder; --bundle takes a new or an empty one.")
        return _write(replace(site, live=False), out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}.") from error


def _write(site: Site, out: Path) -> int:
    for name in STATIC:
        path = out / "static" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(static(name)[0])
    pages = list(_pages(site))
    files = {page.key: page.file for page in pages}
    files |= {("static", name, frozenset()): f"static/{name}" for name in STATIC}
    for page in pages:
        try:
            text = page.draw()
        except InputError as error:  # one damaged run is no reason to leave out the others
            text = site.draw("fault.html.j2", fault=str(error))
        path = out / page.file
        path.parent.mkdir(exist_ok=True)
        path.write_text(linked(text, page.file, files), "utf-8")
    return len(pages)


def linked(text: str, file: str, files: dict[Key, str]) -> str:
    """A page whose links lead to files of the copy, or nowhere."""

    def one(found: re.Match[str]) -> str:
        target = files.get(_key(html.unescape(found[2])))
        if target is None:
            return ""
        return f' {found[1]}="{quote(os.path.relpath(target, Path(file).parent))}"'

    return _LINK.sub(one, text)


def _key(address: str) -> Key:
    """What an address of the server asks for; the first page is asked for by no number, and of a
    sample the filter is left out."""
    parts = urlsplit(address)
    kind, _, name = parts.path.removeprefix("/").partition("/")
    asked = dict(parse_qsl(parts.query))
    if asked.get("page") == "1":
        del asked["page"]
    if kind == "sample":
        asked = {"id": asked.get("id", "")}
    return kind or "runs", unquote(name), frozenset(asked.items())


def _page(
    site: Site, file: str, kind: str, name: str, asked: Query, draw: Callable[[], str]
) -> Page:
    return Page(_key(site.link(kind, name, **asked)), file, draw)


def _pages(site: Site) -> Iterator[Page]:
    entries = list(site.index.entries().values())
    for number in range(1, max(math.ceil(len(entries) / runs.PAGE), 1) + 1):
        asked = {"page": str(number)}
        file = "index.html" if number == 1 else f"runs-{number}.html"
        yield _page(site, file, "runs", "", asked, lambda a=asked: runs.page(site, a))
    for number, entry in enumerate(entries, 1):
        if entry.state != "damaged":
            slug = re.sub(r"[^A-Za-z0-9._-]+", "-", entry.name).strip("-.")[:60]
            yield from _of_run(site, entry, f"{number:04d}-{slug}")


def _of_run(site: Site, entry: Entry, folder: str) -> Iterator[Page]:
    name = entry.name
    yield _page(site, f"{folder}/run.html", "run", name, {}, lambda: run.page(site, name, {}))
    if entry.progress is not None:
        return
    try:
        opened = samples.opened(site, name)
        statuses = [{"status": s} for s, n in opened.manifest.metrics.counts.items() if n]
        with store.untrusted(entry.folder):
            broken = samples.position(site, opened, {"status": "broken"}, -1)[1][:STORED]
    except InputError:  # its own page says it
        return
    for asked in ({}, *statuses):
        file = f"{folder}/samples{''.join(f'-{status}' for status in asked.values())}.html"
        yield _page(site, file, "samples", name, asked, lambda a=asked: samples.page(site, name, a))
    for i in broken.tolist():
        asked = {"id": str(i), "status": "broken"}
        file = f"{folder}/sample-{i}.html"
        yield _page(site, file, "sample", name, asked, lambda a=asked: sample.page(site, name, a))
