"""The table of a run's samples: sorted, filtered and paged by the server, which reads the columns
that a question needs and no others."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from holdfast.errors import InputError
from holdfast.reporting import words
from holdfast.runs.manifest import Manifest
from holdfast.runs.samples import Samples
from holdfast.runs.store import open_manifest, untrusted
from holdfast.view.index import Entry
from holdfast.view.site import Query, Site, whole

PAGE = 100  # rows on a page
BLOCK = 1 << 16  # rows that are written as CSV at a time
# the columns of the page by what each is called, and the columns of the file that sort it
COLUMNS = {
    "id": "sample",
    "status": "status",
    "label": "true",
    "clean_prediction": "before",
    "attacked_prediction": "after",
    "broken_by": "broken by",
    "size": "size",
    "margin": "margin",
    "certified_radius": "proved radius",
    "forwards": "passes",
    "group": "group",
}
RIGHT = ("size", "margin", "certified_radius", "forwards")  # columns of figures
EQUAL = ("status", "label", "clean_prediction", "attacked_prediction", "broken_by", "group")
BETWEEN = ("id", "size", "margin")  # asked for by `size_from` and `size_to`
FILTERS = (*EQUAL, *(f"{name}_{end}" for name in BETWEEN for end in ("from", "to")))


@dataclass(frozen=True)
class Opened:
    """A finished run with the table of its samples."""

    entry: Entry
    manifest: Manifest
    samples: Samples

    @property
    def columns(self) -> dict[str, str]:
        """Those of `COLUMNS` that say something of this run."""
        m, missing = self.manifest, set(COLUMNS) - set(self.samples.names)
        if m.model.task != "classes":
            missing |= {"label", "clean_prediction", "attacked_prediction"}
        if m.certification is None:
            missing.add("certified_radius")
        return {name: said for name, said in COLUMNS.items() if name not in missing}


def opened(site: Site, name: str) -> Opened:
    """The run of this name, opened for its samples; kept for the next question.

    Raises:
        Missing: there is no such run.
        InputError: it is unfinished or damaged.
    """
    entry = site.entry(name)
    if entry.progress is not None:
        raise InputError(f"{name} is not finished: its samples are known when it is.")

    def make() -> Opened:
        with untrusted(entry.folder):
            return Opened(entry, open_manifest(entry.folder)[0], Samples(entry.folder))

    return site.once(entry, "samples", make)


def order(site: Site, run: Opened, query: Query) -> np.ndarray:
    """The places [m] in the file of the rows that a question asks for, in the order that it asks
    for; those of the last questions are kept."""
    asked = {name: query.get(name, "") for name in (*FILTERS, "sort")}
    key = tuple(value for value in asked.values() if value)
    names = tuple(name for name, value in asked.items() if value)
    return site.once(run.entry, ("order", names, key), lambda: _order(run.samples, asked))


def position(site: Site, run: Opened, query: Query, sample: int) -> tuple[int, np.ndarray]:
    """Where a sample is among the rows that a question asks for, from 0 (-1: it is not), and the
    ids [m] of these rows in their order."""
    ids = site.once(run.entry, "ids", lambda: run.samples.column("id").to_numpy())
    shown = ids[order(site, run, query)]
    at = np.flatnonzero(shown == sample)
    return int(at[0]) if len(at) else -1, shown


def _order(samples: Samples, asked: Query) -> np.ndarray:
    at = np.flatnonzero(_mask(samples, asked)).astype(np.int32)
    name = asked["sort"].removeprefix("-")
    if name not in COLUMNS or name not in samples.names:
        return at
    values = _figures(samples.column(name))[at]
    if asked["sort"].startswith("-"):
        values = -values
    return at[np.argsort(values, kind="stable")]  # NaN, which is what is empty, comes last


def _figures(column: pa.ChunkedArray) -> np.ndarray:
    """What a column sorts by, float64 [n]: of texts their places in the alphabet; NaN: empty."""
    if not pa.types.is_dictionary(column.type):
        return column.cast(pa.float64()).to_numpy()
    codes, texts = _coded(column)
    places = np.empty(len(texts) + 1)
    places[np.argsort(np.array(texts, dtype=object))] = np.arange(len(texts))
    places[-1] = np.nan
    return places[codes]


def _coded(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """The texts of a column, and of each row [n] which it has; past their end: it is empty."""
    coded = column.unify_dictionaries().combine_chunks()
    texts = coded.dictionary.to_pylist()
    return coded.indices.fill_null(len(texts)).to_numpy(), texts


def _mask(samples: Samples, asked: Query) -> np.ndarray:
    """Which rows [n] a question asks for.

    Raises:
        InputError: it asks for a number by what is none, or by a column that the run does not have.
    """
    mask = np.ones(len(samples), dtype=bool)
    for name, text in asked.items():
        column, _, end = name.rpartition("_") if name.endswith(("_from", "_to")) else (name, "", "")
        if not text or column == "sort":
            continue
        if column not in samples.names:
            raise InputError(f"this run has no {column}; rows cannot be chosen by it.")
        cells = samples.column(column)
        if pa.types.is_dictionary(cells.type):
            codes, texts = _coded(cells)
            mask &= codes == (texts.index(text) if text in texts else -1)
        else:
            compare = {"from": operator.ge, "to": operator.le, "": operator.eq}[end]
            mask &= compare(_figures(cells), _number(name, text))  # false of NaN, which is empty
    return mask


def _number(name: str, text: str) -> float:
    """A number that a link holds, such as 0.031 or 8/255."""
    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        raise InputError(
            f"{name.replace('_', ' ')} is {text[:40]!r}; a number was expected, such as 0.031 or "
            "8/255."
        ) from None


def page(site: Site, name: str, query: Query) -> str:
    """The table of the samples of a run.

    Args:
        query: what of `FILTERS` the rows have; `sort` by a column, with - before it from the
            largest; `page` from 1.
    """
    run = opened(site, name)
    with untrusted(run.entry.folder):
        return _page(site, run, query)


def _page(site: Site, run: Opened, query: Query) -> str:
    at = order(site, run, query)
    pages = max(math.ceil(len(at) / PAGE), 1)
    number = min(max(whole(query.get("page", ""), 1), 1), pages)
    rows = run.samples.rows(at[(number - 1) * PAGE : number * PAGE], _read(run))
    m, name = run.manifest, run.entry.name
    kept = {key: query[key] for key in (*FILTERS, "sort") if query.get(key)}
    trials = [trial.spec.partition("(")[0] for trial in m.trials]
    labels = [(i, words.class_name(m, i)) for i in range(m.model.classes)]
    return site.draw(
        "samples.html.j2",
        kind="samples",
        entry=run.entry,
        m=m,
        rows=rows.to_pylist(),
        right=RIGHT,
        groups=[(group.name, group.name) for group in m.metrics.per_group],
        name=lambda label: words.class_name(m, label),
        labels=labels if m.model.task == "classes" and len(labels) <= CHOICES else [],
        trials=trials,
        numbered=[(i, f"{i + 1}: {trial}") for i, trial in enumerate(trials)],
        columns=run.columns,
        query=query,
        filtered=any(key in FILTERS for key in kept),
        of_sample=lambda sample: site.link("sample", name, id=sample, **kept),
        csv=site.link("csv", name, **kept),
        at=lambda **changed: site.link("samples", name, **{**kept, **changed}),
        total=len(run.samples),
        n=len(at),
        number=number,
        pages=pages,
    )


CHOICES = 200  # up to so many classes are a list to choose from


def _read(run: Opened) -> list[str]:
    """The columns that the page shows, with those that it says in the same cell."""
    shown = [*run.columns, "backwards"]
    if "label" in run.columns:
        shown += ["clean_confidence", "attacked_confidence"]
    return shown


def csv(site: Site, name: str, query: Query) -> Iterator[bytes]:
    """All rows that a question asks for, with every column that holds one value, as CSV."""
    run = opened(site, name)
    kinds = run.samples.kinds
    names = [name for name in run.samples.names if not pa.types.is_list(kinds[name])]
    with untrusted(run.entry.folder):
        at = order(site, run, query)
        for start in range(0, max(len(at), 1), BLOCK):
            sink = pa.BufferOutputStream()
            settings = pa_csv.WriteOptions(include_header=not start)
            pa_csv.write_csv(run.samples.rows(at[start : start + BLOCK], names), sink, settings)
            yield sink.getvalue().to_pybytes()
