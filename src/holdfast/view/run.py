"""The page of one run: the sections of its report, with links to the rows behind each figure."""

from __future__ import annotations

from holdfast.reporting import audited, html
from holdfast.runs import audits
from holdfast.runs.store import open_manifest, untrusted
from holdfast.view.index import Entry
from holdfast.view.site import Query, Site


def page(site: Site, name: str, query: Query) -> str:
    """The page of a run or an audit; of an unfinished one, how far it is."""
    entry = site.entry(name)
    if entry.progress is not None:
        return site.draw("unfinished.html.j2", kind="run", entry=entry)
    draw = _page if entry.audit is None else _page_of_audit
    return site.once(entry, "page", lambda: draw(site, entry))


def _page_of_audit(site: Site, entry: Entry) -> str:
    with untrusted(entry.folder):
        audit, unchanged = audits.opened(entry.folder)
        shown = audited.shown(entry.folder, audit)
        return site.draw("audit.html.j2", entry=entry, unchanged=unchanged, **shown)


def _page(site: Site, entry: Entry) -> str:
    def rows_of(sample: int | None = None, **asked: object) -> str:
        if sample is not None:
            return site.link("sample", entry.name, id=sample)
        return site.link("samples", entry.name, **asked)

    with untrusted(entry.folder):
        manifest, unchanged = open_manifest(entry.folder)
        shown = html.shown(entry.folder, manifest, rows_of)
        return site.draw("run.html.j2", kind="run", entry=entry, unchanged=unchanged, **shown)
