"""Two runs side by side: on the terminal, and as a page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from holdfast.reporting import figures, html, words
from holdfast.reporting.terminal import columns
from holdfast.runs.compare import Comparison, Paired, PartChange, SizeChange, Spread
from holdfast.runs.store import write_bytes

_SHOWN = 6  # losses in the summary
SIGNIFICANT = 0.05  # of McNemar's p


def names(found: Comparison) -> tuple[str, str]:
    """What the two runs are called: before and after, as those of a hardening."""
    folders = tuple(Path(run).name for run in found.runs)
    return ("before", "after") if folders == ("before", "after") else ("first", "second")


def summary(found: Comparison) -> RenderableType:
    """A renderable for 80 columns and up."""
    one, other = names(found)
    table = columns("accuracy", one, "95 % interval", other, "95 % interval", "gained", "lost")
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
    lines: list[RenderableType] = [Text(said, style="bold") for said in sentences(found)]
    lines += [Text(words.printable(warning), style="bold red") for warning in warnings(found)]
    lines += [Text(words.printable(remark), style="yellow") for remark in found.remarks]
    threat = words.as_typed(found.threat)
    lines += [
        "",
        Text(f"{one.capitalize()}: {words.printable(found.runs[0])}, verdict {found.verdicts[0]}"),
        Text(
            f"{other.capitalize()}: {words.printable(found.runs[1])}, verdict {found.verdicts[1]}"
        ),
        Text(f"{found.n:,} inputs under {words.printable(threat)}, compared one by one"),
        "",
        table,
        "",
        *(Text(tests(f), style="dim") for f in reversed(found.figures)),
    ]
    if found.averages:
        lines += ["", _averages(found)]
    if found.of_task:
        lines += ["", _of_task(found)]
    lines += ["", _parts("class", [*found.per_class, *filter(None, [found.class_mean])], found)]
    if found.per_group:
        lines += ["", _parts("group", found.per_group, found)]
    return Group(*lines)


def _averages(found: Comparison) -> Table:
    one, other = names(found)
    table = columns("mean of the classes", f"clean, {one}", other, f"under attack, {one}", other)
    for a in found.averages:
        table.add_row(a.name.replace("f1", "F1"), *map(words.percent, (*a.clean, *a.attacked)))
    return table


def _of_task(found: Comparison) -> Table:
    one, other = names(found)
    table = columns("of the task", f"clean, {one}", other, f"under attack, {one}", other)
    for f in found.of_task:
        table.add_row(f.name, *map(words.number, (*f.clean, *f.attacked)))
    return table


def _parts(kind: str, changes: Sequence[PartChange], found: Comparison) -> Table:
    one, other = names(found)
    robust = [f"robust, {one}", other] if found.sizes is None else []
    table = columns(kind, "inputs", f"clean, {one}", other, *robust)
    for c in changes:
        shares = [*c.clean, *c.robust][: 2 + len(robust)]
        table.add_row(Text(words.printable(c.name)), f"{c.n:,}", *map(words.percent, shares))
    return table


def seeds(found: Spread) -> str:
    """What the seed changes."""
    values = ", ".join(
        f"{seed}: {words.percent(v)}" for seed, v in zip(found.seeds, found.values, strict=True)
    )
    return (
        f"One model, {len(found.seeds)} seeds ({values}): mean {words.percent(found.mean)}, "
        f"standard deviation {100 * found.deviation:.2f} points. "
        f"{words.percent(found.agreed)} of the inputs have the same result under every seed, and "
        f"{words.percent(found.worst.value)} (95 % interval {words.span(found.worst)}) stay right "
        "under all of them."
    )


def warnings(found: Comparison) -> list[str]:
    """What must not be overlooked: a second model that knows nothing, and the classes that lost."""
    said = []
    if found.knows_nothing:
        said.append(f"The second model knows nothing: no gain is one. {found.knows_nothing}")
    said += [
        f"Lost: {loss.kind} recall of class {loss.name}, from {words.percent(loss.first)} to "
        f"{words.percent(loss.second)} of {loss.n:,} inputs."
        for loss in found.losses[:_SHOWN]
    ]
    if (more := len(found.losses) - _SHOWN) > 0:
        said.append(f"{more} more such losses are in the table of classes.")
    return said


def sentences(found: Comparison) -> list[str]:
    """What changes, the figure under attack first."""
    said = [sentence(f, found) for f in reversed(found.figures)]
    return said if found.sizes is None else [_sizes(found.sizes, found), *said]


def _sizes(s: SizeChange, found: Comparison) -> str:
    if s.first is None or s.second is None:
        return "There is no input that both runs changed into an error, so no sizes are compared."
    one, other = names(found)
    chance = "So small a change may be chance."
    if s.p < SIGNIFICANT:
        chance = "Chance alone does not explain this."
    return (
        f"The median of the smallest changes that break an input is {s.first:.4g} in the {one} run "
        f"and {s.second:.4g} in the {other} one, on {s.n:,} inputs that both runs broke: larger "
        f"for {s.larger:,} of them, smaller for {s.smaller:,}. {chance}"
    )


def sentence(f: Paired, found: Comparison) -> str:
    """From what to what a figure changes, and whether that may be chance."""
    first, second = words.percent(f.first.value), words.percent(f.second.value)
    if not f.change:
        said = f"{f.name.capitalize()} stays at {first}"
    else:
        moves = "rises" if f.change > 0 else "falls"
        said = f"{f.name.capitalize()} {moves} from {first} to {second}"
    if found.knows_nothing:
        return f"{said}, but the second model knows nothing."
    said += (
        f": {100 * f.change:+.1f} points (95 % interval {100 * f.low:+.1f} to {100 * f.high:+.1f})."
    )
    if f.p < SIGNIFICANT:
        return f"{said} Chance alone does not explain this."
    return f"{said} So small a change may be chance."


def tests(f: Paired) -> str:
    """The statistics behind the sentence."""
    chance = "less than 0.001" if f.p < 0.001 else f"{f.p:.3f}"
    low, high = f.bootstrap
    return (
        f"{f.name.capitalize()}: McNemar p {chance}; bootstrap interval of the change "
        f"{100 * low:+.1f} to {100 * high:+.1f} points."
    )


def shown(found: Comparison) -> dict[str, Any]:
    """What the sections of a comparison show, by the names that their template has for it."""
    return {
        "c": found,
        "threat": words.as_typed(found.threat),
        "said": sentences(found),
        "tests": [tests(f) for f in reversed(found.figures)],
        "names": names(found),
        "warnings": warnings(found),
    }


def write(path: Path, found: Comparison, epochs: Sequence[tuple[float, float]] = ()) -> Path:
    """Write the comparison as a page. It links to the pages of the two runs, where they have some.

    Args:
        epochs: clean and robust accuracy after each epoch of the training between them, on rows
            held out.
    """
    tradeoff = ""
    if found.sizes is None:
        clean, robust = found.figures[:2]
        ends = (clean.first, robust.first), (clean.second, robust.second)
        tradeoff = Markup(figures.tradeoff(*ends, epochs, names(found)))
    content = html.rendered(
        "paired.html.j2",
        **shown(found),
        links=[
            quote(os.path.relpath(page, path.parent)) if page.exists() else None
            for page in (Path(run) / "report.html" for run in found.runs)
        ],
        tradeoff=tradeoff,
        epochs=len(epochs),
    )
    write_bytes(path, content.encode())
    return path
