"""report.html: one page with everything that a run found. No script and no remote load: it opens
anywhere."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from holdfast.errors import InputError
from holdfast.reporting import audit, figures, scenes, tables, words
from holdfast.runs import store
from holdfast.runs.manifest import SCHEMA_VERSION, Manifest
from holdfast.runs.migration import with_todays_options
from holdfast.runs.samples import Samples

SHOWN = 24  # examples on the page; the run folder holds all
LARGEST = 2048  # pixels of a side of a picture on the page
SMALLEST = 8  # pixels a side of rows [h, w] that are shown as a grey picture


@dataclass(frozen=True)
class Example:
    """A stored adversarial example with its original."""

    row: dict[str, Any]  # its row of samples.parquet
    changed: int  # values that differ
    widest: tuple[str, float, float]  # the value that changed most: position, before, after
    pictures: tuple[
        tuple[str, str], ...
    ] = ()  # caption and data URI: original, adversarial, difference
    changes: tuple[tables.Change, ...] = ()  # of a row of a table, the largest first
    said: tuple[tuple[str, str], ...] = ()  # of a detector, before and after: what is found


def write(folder: Path) -> Path:
    """Write report.html into a run folder, from its run.json, samples and gallery.

    Raises:
        InputError: the folder holds no finished run, or a file of it is damaged.
    """
    path = folder / "report.html"
    store.write_bytes(path, _render(folder, store.read_manifest(folder)).encode())
    return path


def differs(folder: Path) -> Iterator[str]:
    """What report.html says otherwise than the folder does: its text against a new rendering,
    without the pictures.

    Raises:
        InputError: as `write` does.
    """
    path, manifest = folder / "report.html", store.open_manifest(folder)[0]
    if not path.exists() or manifest.schema_version != SCHEMA_VERSION:
        return  # a run made from Python has none until it is written; an older one has other words
    pages = store.read_bytes(path).decode("utf-8", "replace"), _render(folder, manifest)
    stored, now = (_said(with_todays_options(page)) for page in pages)
    if stored != now:
        yield (
            "report.html: it does not say what this Holdfast writes of the run; write it again "
            "with holdfast report."
        )


def _said(page: str) -> list[object]:
    """All of a page but its pictures, and of figures the texts: other versions of matplotlib draw
    other lines."""
    page = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "data:image/png", page)
    parts: list[Any] = re.split(r"(<svg.*?</svg>)", page, flags=re.DOTALL)
    parts[1::2] = [_Figure(part).said for part in parts[1::2]]
    return parts


class _Figure(HTMLParser):
    """The texts of an SVG figure, and whatever in it is not drawing."""

    DRAWING = ("svg", "g", "path", "use", "defs", "clippath", "rect", "text", "image")
    SAYING = ("aria-label", "href", "xlink:href", "src", "class", "role")

    def __init__(self, source: str) -> None:
        super().__init__()
        self.said: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.DRAWING:
            self.said.append(tag)
        own = [
            (name, value or "")
            for name, value in attrs
            if name in self.SAYING or name.startswith("on")
        ]
        self.said += [f"{name}={value}" for name, value in own if not value.startswith("#")]

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.said.append(data.strip())

    def handle_comment(self, data: str) -> None:
        pass  # of the drawing library: which text is drawn next


def rendered(template: str, /, *packages: str, **values: Any) -> str:
    """A page from a template of this package, or from the folder `templates` of one of `packages`,
    with the style sheet and the filters that all share."""
    try:
        page = _environment(packages).get_template(template)
        return page.render(css=Markup(_text("report.css")), words=words, **values)
    except TemplateError as error:
        raise InputError(
            f"the page cannot be written: {error}; run.json leaves out what a run's has."
        ) from error


@functools.cache
def _environment(packages: tuple[str, ...]) -> Environment:
    own = PackageLoader("holdfast.reporting", "")
    environment = Environment(
        loader=ChoiceLoader([own, *map(PackageLoader, packages)]),
        auto_reload=False,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    environment.filters |= {
        "percent": lambda v: _glued(words.percent(v)),
        "glued": _glued,
        "unbroken": _unbroken,
        "span": words.span,
        "number": words.number,
        "eps": words.eps,
    }
    return environment


def _harmless(value: object) -> object:
    """Texts without control characters, which could turn the direction of what follows."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    glue = "\N{NO-BREAK SPACE}"  # Python does not count it as printable
    return glue.join(map(words.printable, value.split(glue)))


def _render(folder: Path, manifest: Manifest) -> str:
    with store.untrusted(folder):
        return _page(folder, manifest)


def _page(folder: Path, manifest: Manifest) -> str:
    return rendered("report.html.j2", **shown(folder, manifest))


def shown(
    folder: Path, manifest: Manifest, rows_of: Callable[..., str] = lambda **asked: ""
) -> dict[str, Any]:
    """What the sections of a run's page show, by the names that their template has for it.

    Args:
        rows_of: the address of the rows of a `status`, `label`, `group` or trial (`broken_by`), or
            of one `sample`; empty: nothing is linked.

    Raises:
        InputError: a file of the folder is damaged.
    """
    stored, examples = _gallery(folder, manifest)
    counts = manifest.metrics.confusion
    names = [words.class_name(manifest, c) for c in range(len(getattr(counts, "clean", ())))]
    matrices = (
        ("On clean inputs", "Clean inputs", "clean"),
        ("Under attack", "Under attack", "attacked"),
    )
    return {
        "m": manifest,
        "rows_of": rows_of,
        "inf": math.inf,
        "audit": audit,
        "name": lambda label: words.class_name(manifest, label),
        "curve": Markup(figures.curve(manifest.metrics.curve, manifest.threat.eps)),
        "confusions": [
            (
                title,
                Markup(figures.confusion(getattr(counts, part), names, said, f"confusion-{part}")),
            )
            for title, said, part in matrices
            if counts is not None
        ],
        "numbered": len(names) <= figures.NUMBERED,
        "examples": examples,
        "stored": stored,
        "rules": tables.rules(manifest),
        "ranked": _most_changed(folder, manifest),
        "named": tables.CHANGED,
    }


def _glued(text: str) -> str:
    """Text in which no line ends before a percent sign."""
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _unbroken(text: str) -> Markup:
    """Text in which no line ends within the name of an option."""
    parts = re.split(r"(--[a-z][a-z-]*)", str(_harmless(text)))
    whole = [Markup('<span class="option">{}</span>').format(part) for part in parts[1::2]]
    parts[1::2] = whole
    return Markup("").join(parts)


def _text(name: str) -> str:
    return files("holdfast.reporting").joinpath(name).read_text("utf-8")


def _most_changed(folder: Path, manifest: Manifest) -> list[tables.ColumnChanges]:
    """Which columns of a table change most, over the examples that are kept."""
    tensors, columns = store.read_gallery(folder), manifest.data.columns
    if not tensors or tensors["x"].shape[1:] != (len(columns),):
        return []
    return tables.most_changed(columns, *pairs(tensors))


def pairs(tensors: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Originals and examples [n, *shape] float64: the originals as the examples' type holds them,
    so that what it rounds is no change."""
    x, x_adv = tensors["x"], tensors["x_adv"]
    return x.astype(x_adv.dtype).astype(np.float64), x_adv.astype(np.float64)


def _gallery(folder: Path, manifest: Manifest) -> tuple[int, list[Example]]:
    """How many examples the gallery holds, and those to show."""
    tensors, path = store.read_gallery(folder), folder / "gallery.safetensors"
    if not tensors:
        return 0, []
    if list(tensors["x"].shape[1:]) != manifest.model.shape:
        raise InputError(
            f"{path} holds inputs {tensors['x'].shape[1:]}, but run.json says "
            f"{manifest.model.shape}."
        )
    ids, examples = tensors["id"][:SHOWN].tolist(), []
    rows = {row["id"]: row for row in Samples(folder).of_ids(ids).to_pylist()}
    before, after = pairs(tensors)
    masks = {name: tensors[name] for name in store.MASKS if name in tensors}
    for k, i in enumerate(ids):
        if (row := rows.get(i)) is None:
            raise InputError(
                f"{path} holds sample {i}, but samples.parquet does not. The folder mixes two runs."
            )
        own = {name: mask[k] for name, mask in masks.items()}
        examples.append(example(manifest, row, before[k], after[k], own))
    columns = manifest.data.columns
    if tensors["x"].shape[1:] == (len(columns),):
        lists = tables.changes(columns, before, after, SHOWN)
        both = zip(examples, lists, strict=True)
        examples = [replace(e, changes=found, changed=len(found)) for e, found in both]
    return len(tensors["id"]), examples


def example(
    manifest: Manifest,
    row: dict[str, Any],
    x: np.ndarray,
    x_adv: np.ndarray,
    masks: dict[str, np.ndarray],
) -> Example:
    """An example x_adv [*shape] and its original x, as pages show them; of a row of a table
    without its changes.

    Args:
        row: of samples.parquet.
        masks: of a segmenter, [h, w] each, by `store.MASKS`.
    """
    found = _example(row, x, x_adv, manifest)
    if not found.pictures or not (masks or manifest.model.task.startswith("detection")):
        return found
    pictures, said = scenes.shown(manifest, row, x, x_adv, masks)
    return replace(found, pictures=pictures, said=said)


def picture(manifest: Manifest, x: np.ndarray) -> str:
    """One input [*shape] as a data URI; empty where it is no image."""
    layout, (low, high) = manifest.model.layout, manifest.model.bounds
    grey = x.ndim == 2 and min(x.shape) >= SMALLEST
    if not (grey or words.is_image(x.shape, layout)) or max(x.shape) > LARGEST:
        return ""
    return scenes.png((x - low) / (high - low), layout)


def _example(row: dict[str, Any], x: np.ndarray, x_adv: np.ndarray, manifest: Manifest) -> Example:
    if manifest.model.free:  # what may change stands last
        free = manifest.model.free
        x, x_adv = (row.reshape(-1)[-math.prod(free) :].reshape(free) for row in (x, x_adv))
    difference = x_adv - x
    at = np.unravel_index(int(np.abs(difference).argmax()), difference.shape)
    widest = (", ".join(map(str, at)), float(x[at]), float(x_adv[at]))
    changed, pictures = int(np.count_nonzero(difference)), ()
    if original := picture(manifest, x):
        layout, (low, high) = manifest.model.layout, manifest.model.bounds
        reach = float(np.abs(difference[at])) / (high - low)
        times = float(f"{0.5 / (reach or 0.5):.2g}")
        pictures = (
            ("original", original),
            ("adversarial", picture(manifest, x_adv)),
            (f"change × {times:g}", scenes.png(0.5 + times * difference / (high - low), layout)),
        )
    return Example(row, changed, widest, pictures)
