"""Two runs side by side: on the terminal, and as a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from holdfast.report import figures, html, words
from holdfast.report.terminal import columns
from holdfast.runs.compare import Average, Comparison, Paired, PartChange, Spread
from holdfast.runs.store import write_bytes

_SHOWN = 6  # losses in the summary


def summary(found: Comparison) -> RenderableType:
    """A renderable for 80 columns and up."""
    table = columns(
        "accuracy", "first", "95 % interval", "second", "95 % interval", "gained", "lost"
    )
    for f in found.figures:
        table.add_row(
            f.name.removesuffix(" accuracy"),
            words.percent(f.first.value),
            words.span(f.first),
            words.percent(f.second.value),
            words.span(f.second),
            f"{f.gained:,}",
            f"{f.lost:,}",
        )
    lines: list[RenderableType] = [
        Text(f"First: {words.printable(found.runs[0])} ({found.verdicts[0]})"),
        Text(f"Second: {words.printable(found.runs[1])} ({found.verdicts[1]})"),
        Text(f"{found.n:,} inputs under {words.printable(found.threat)}"),
        "",
        table,
        "",
    ]
    if found.averages:
        lines += [_averages(found.averages), ""]
    lines += [Text(words.printable(warning), style="bold red") for warning in warnings(found)]
    lines += [Text(sentence(f, found), style="bold") for f in found.figures]
    lines += [Text(words.printable(remark), style="yellow") for remark in found.remarks]
    lines += ["", _parts("class", [*found.per_class, *filter(None, [found.class_mean])])]
    if found.per_group:
        lines += ["", _parts("group", found.per_group)]
    return Group(*lines)


def _averages(averages: Sequence[Average]) -> Table:
    table = columns(
        "mean of the classes", "clean, first", "second", "under attack, first", "second"
    )
    for a in averages:
        table.add_row(a.name.replace("f1", "F1"), *map(words.percent, (*a.clean, *a.attacked)))
    return table


def _parts(kind: str, changes: Sequence[PartChange]) -> Table:
    table = columns(kind, "of", "clean, first", "second", "robust, first", "second")
    for c in changes:
        table.add_row(
            Text(words.printable(c.name)), f"{c.n:,}", *map(words.percent, (*c.clean, *c.robust))
        )
    return table


def seeds(found: Spread) -> str:
    """What the seed changes."""
    values = ", ".join(
        f"{seed}: {words.percent(v)}" for seed, v in zip(found.seeds, found.values, strict=True)
    )
    return (
        f"One model, {len(found.seeds)} seeds ({values}): mean {words.percent(found.mean)}, "
        "standard deviation "
        f"{100 * found.deviation:.2f} points; {words.percent(found.agreed)} of the inputs have one "
        "fate, and "
        f"{words.percent(found.worst.value)} ({words.span(found.worst)}) stand under every seed."
    )


def warnings(found: Comparison) -> list[str]:
    """What must not be read past: a second model that knows nothing, and the classes that lost."""
    said = []
    if found.knows_nothing:
        said.append(f"The second model knows nothing: no gain is one. {found.knows_nothing}")
    said += [
        f"Lost: {loss.kind} recall of class {loss.name} from {words.percent(loss.first)} to "
        f"{words.percent(loss.second)} of {loss.n:,} inputs."
        for loss in found.losses[:_SHOWN]
    ]
    if (more := len(found.losses) - _SHOWN) > 0:
        said.append(f"{more} more such losses are in the table of classes.")
    return said


def sentence(f: Paired, found: Comparison) -> str:
    """What a figure's change means."""
    if found.knows_nothing:
        return (
            f"{f.name.capitalize()} changes by {100 * f.change:+.1f} points, of a model that knows "
            "nothing."
        )
    chance = "less than 0.001" if f.p < 0.001 else f"{f.p:.3f}"
    what = "more than chance" if f.p < 0.05 else "may be chance"
    return (
        f"{f.name.capitalize()} changes by {100 * f.change:+.1f} points (95 % interval "
        f"{100 * f.low:+.1f} to {100 * f.high:+.1f}; bootstrap {100 * f.bootstrap[0]:+.1f} to "
        f"{100 * f.bootstrap[1]:+.1f}; McNemar p {chance}: {what})."
    )


def write(path: Path, found: Comparison, epochs: Sequence[tuple[float, float]] = ()) -> Path:
    """Write the comparison as a page. It links to the pages of the two runs, where they have some.

    Args:
        epochs: clean and robust accuracy after each epoch of the training between them, on rows
            held out.
    """
    clean, robust = found.figures
    content = html.rendered(
        "paired.html.j2",
        c=found,
        said=[sentence(f, found) for f in (robust, clean)],
        warnings=warnings(found),
        links=[
            quote(os.path.relpath(page, path.parent)) if page.exists() else None
            for page in (Path(run) / "report.html" for run in found.runs)
        ],
        tradeoff=Markup(
            figures.tradeoff((clean.first, robust.first), (clean.second, robust.second), epochs)
        ),
        epochs=len(epochs),
    )
    write_bytes(path, content.encode())
    return path
