"""The page of one sample: what it was, what it became, and what every trial did to it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from holdfast.errors import InputError
from holdfast.reporting import figures, html, tables, words
from holdfast.runs import store
from holdfast.runs.manifest import Manifest
from holdfast.view.samples import FILTERS, Opened, opened, position
from holdfast.view.site import Missing, Query, Site, whole

VALUES = 24  # values of an input, or outputs, that are listed
SIGNAL = 64  # values from which on a flat input without names of columns is drawn as a line


@dataclass(frozen=True)
class Inputs:
    """What is known of a sample's two inputs [*shape], and why one is not shown."""

    x: np.ndarray | None
    x_adv: np.ndarray | None
    masks: dict[str, np.ndarray]
    withheld: str = ""


def page(site: Site, name: str, query: Query) -> str:
    """The page of a sample of a run.

    Args:
        query: its `id`, and what the table of samples is asked for, of which it is a row.
    """
    run = opened(site, name)
    with store.untrusted(run.entry.folder):
        return _page(site, run, query)


def _page(site: Site, run: Opened, query: Query) -> str:
    m, name = run.manifest, run.entry.name
    sample = whole(query.get("id", ""), -1)
    place, every = position(site, run, {}, sample)
    if place < 0:
        raise Missing(f"There is no sample {query.get('id', '')[:40]} in {name}.")
    row = run.samples.rows([place], run.samples.names).to_pylist()[0]
    kept = {key: query[key] for key in (*FILTERS, "sort") if query.get(key)}
    at, shown = position(site, run, kept, sample) if kept else (place, every)
    given = inputs(site, run, sample)
    return site.draw(
        "sample.html.j2",
        kind="sample",
        entry=run.entry,
        m=m,
        row=row,
        example=_example(m, row, given),
        alone=_alone(m, given),
        waves=_waves(m, given),
        withheld=given.withheld,
        trials=list(_trials(m, row)),
        outputs=_outputs(row),
        values=VALUES,
        facts=list(_facts(m, row)),
        name=lambda label: words.class_name(m, label),
        at=at,
        n=len(shown),
        filtered=bool(kept),
        back=site.link("samples", name, **kept),
        neighbours=[
            site.link("sample", name, id=int(shown[k]), **kept)
            if at >= 0 and 0 <= k < len(shown)
            else ""
            for k in (at - 1, at + 1)
        ],
    )


def inputs(site: Site, run: Opened, sample: int) -> Inputs:
    """The original and the example of a sample, from the run's folder and the user's data.

    Raises:
        InputError: a file of the folder is damaged, or holds inputs of another shape.
    """
    folder, m = run.entry.folder, run.manifest
    gallery = site.once(run.entry, "gallery", lambda: store.read_gallery(folder))
    x, x_adv, withheld, masks = None, None, "", {}
    for k in np.flatnonzero(gallery["id"] == sample)[:1] if gallery else ():
        x, x_adv = gallery["x"][k], gallery["x_adv"][k]
        masks = {name: gallery[name][k] for name in store.MASKS if name in gallery}
    if site.originals is not None:
        try:
            found = site.originals.row(m, sample)
            x = found if x is None else x
        except InputError as error:
            withheld = str(error)
    if x_adv is None:
        x_adv = store.example(folder, sample)
    for part in (x, x_adv):
        if part is not None and list(part.shape) != m.model.shape:
            raise InputError(
                f"{folder} holds an input {list(part.shape)}, but run.json says {m.model.shape}."
            )
    return Inputs(x, x_adv, masks, withheld)


def _example(m: Manifest, row: dict[str, Any], given: Inputs) -> html.Example | None:
    """Both inputs side by side; None: one of them is not known."""
    if given.x is None or given.x_adv is None:
        return None
    pair = {"x": given.x[None], "x_adv": given.x_adv[None]}
    before, after = html.pairs(pair)
    found = html.example(m, row, before[0], after[0], given.masks)
    columns = m.data.columns
    if before.shape[1:] != (len(columns),):
        return found
    (changes,) = tables.changes(columns, before, after, 1)
    return replace(found, changes=changes, changed=len(changes))


def _waves(m: Manifest, given: Inputs) -> Markup | None:
    """A flat input before and after as lines; None: it is none, or one is not known."""
    if given.x is None or given.x_adv is None or m.data.columns:
        return None
    before, after = (part.astype(float).squeeze() for part in (given.x, given.x_adv))
    if before.ndim != 1 or len(before) < SIGNAL:
        return None
    return Markup(figures.waves(before, after))


def _alone(m: Manifest, given: Inputs) -> tuple[str, str] | None:
    """The one input that is known, where the other is not: caption and picture, which is empty of
    what is no image."""
    caption, x = ("original", given.x) if given.x_adv is None else ("adversarial", given.x_adv)
    if x is None:
        return None
    if m.model.free:
        x = x.reshape(-1)[-math.prod(m.model.free) :].reshape(m.model.free)
    return caption, html.picture(m, x.astype(float))


def _trials(m: Manifest, row: dict[str, Any]) -> Iterator[tuple[int, str, float, str]]:
    """Each trial at the threat's eps: its number, text, eps, and what became of the row, as far as
    the table of samples holds it."""
    by = row["broken_by"]
    searched = row["status"] in ("broken", "robust", "certified", "unstable")
    for k, trial in enumerate(m.trials if searched else []):
        if trial.eps != m.threat.eps and k != by:
            continue
        if by is None or k < by:
            said = "did not break it" if row["finished"] else "did not break it, as far as it ran"
        else:
            said = "broke it" if k == by else "came after it was broken"
        yield k + 1, trial.spec, trial.eps, said


def _outputs(row: dict[str, Any]) -> list[tuple[int, float, float, float]]:
    """Of a task with one output for each part of the truth: number, truth, before, after."""
    columns = [row.get(name) for name in ("truth", "clean_output", "attacked_output")]
    if not columns[0] or len({len(column or ()) for column in columns}) > 1:
        return []
    return [(k, *values) for k, values in enumerate(zip(*columns, strict=True))]


def _facts(m: Manifest, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the table of samples says of the row in one figure each."""
    figures = (
        ("Size of the change", "size", f" in {m.threat.norm}"),
        ("Lowest margin", "margin", ""),
        ("Proved radius", "certified_radius", ""),
        ("PSNR", "psnr", " dB"),
        ("SSIM", "ssim", ""),
        ("LPIPS", "lpips", ""),
        ("Queries", "queries", ""),
        ("Forward passes", "forwards", ""),
        ("Backward passes", "backwards", ""),
        ("of which gave exactly zero", "zero_gradients", ""),
    )
    for said, name, unit in figures:
        if row.get(name) is not None:
            yield said, f"{words.number(row[name])}{unit}"
    if row.get("group") is not None:
        yield "Group", str(row["group"])
    if row.get("broken_8bit") is not None:
        fools = "still fools the model" if row["broken_8bit"] else "no longer fools the model"
        yield "As an image of 8 bits", fools
