"""A run on the terminal: the answer, whether to believe it, the figures, and what each trial
gave."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from holdfast.reporting import words
from holdfast.runs.manifest import CurvePoint, Manifest

_TONES = {
    "trusted": "green",
    "upper-bound": "yellow",
    "unreliable": "red",
    "info": "dim",
    "amber": "yellow",
    "red": "red",
}


def summary(manifest: Manifest) -> RenderableType:
    """A renderable of about 20 lines, made for 80 columns and up."""
    sentence = " ".join([words.headline(manifest), *words.notes(manifest)])
    counts = ", ".join(f"{s} {n:,}" for s, n in manifest.metrics.counts.items() if n)
    verdict = Text.assemble(
        "Verdict: ",
        (manifest.verdict.status, f"bold {_TONES[manifest.verdict.status]}"),
        ". ",
        words.VERDICTS[manifest.verdict.status],
    )
    parts: list[RenderableType] = [
        Text(words.printable(sentence), style="bold"),
        "",
        verdict,
        *_findings(manifest),
        "",
        _figures(manifest),
    ]
    if (needed := words.samples_needed(manifest)) is not None:
        parts.append(Padding(Text(needed, style="dim"), (1, 0, 0, 0)))
    if counts:
        parts.append(Padding(Text(f"Inputs: {counts}"), (1, 0)))
    notes = (words.queries(manifest), words.worst_group(manifest), words.corruptions(manifest))
    parts += [Padding(Text(words.printable(note)), (0, 0, 1, 0)) for note in notes if note]
    parts.append(_trials(manifest))
    if left := words.remaining(manifest):
        parts.append(Padding(Text(left, style="dim"), (1, 0, 0, 0)))
    return Group(*parts)


def _figures(manifest: Manifest) -> Table:
    m = manifest.metrics
    table = columns("figure", "value", "95 % interval", "of")
    bounded, without = words.bounded(manifest), None
    if words.without_relations(manifest) and m.relations is not None:
        without = m.relations.robust_accuracy
    for label, share, shown in (
        ("clean accuracy", m.clean_accuracy, True),
        ("robust accuracy", m.robust_accuracy, bounded),
        ("robust accuracy, as 8-bit images", m.accuracy_8bit, bounded),
        ("robust accuracy, without relations", without, bounded),
        ("certified accuracy", m.certified_accuracy, True),
        ("attack success rate", m.attack_success_rate, True),
    ):
        if share is not None and shown:
            table.add_row(label, words.percent(share.value), words.span(share), f"{share.n:,}")
    if not bounded:
        for point in _spread(m.curve):
            share = point.robust_accuracy
            name = f"robust accuracy at eps {words.eps(point.eps)}"
            table.add_row(name, words.percent(share.value), words.span(share), f"{share.n:,}")
        for name, size in m.sizes.quantiles.items():
            table.add_row(
                f"size at which {100 * float(name):.0f} % are broken",
                words.number(size),
                "",
                f"{m.sizes.n:,}",
            )
    pairs = [("precision", m.precision), ("recall", m.recall), ("F1", m.f1)]
    if m.binary is not None:
        of = f"F1 of “{words.printable(words.class_name(manifest, m.binary.label))}”"
        pairs += [(of, m.binary.f1), ("AUROC", m.binary.auroc)]
    for label, pair in pairs:
        if pair.clean is not None:
            both = ", ".join(map(words.percent, (pair.clean, pair.attacked)))
            table.add_row(f"{label}, clean and under attack", both, "", "")
    for label, figure in m.of_task.items():
        both = ", ".join(map(words.number, (figure.clean, figure.attacked)))
        span = "" if figure.interval is None else words.span(figure.interval)
        table.add_row(f"{label}, clean and under attack", both, span, "")
    if m.errors is not None:
        for label, share in (("clean", m.errors.clean), ("attacked", m.errors.attacked)):
            table.add_row(f"{label} error, median", words.number(share.median), "", f"{share.n:,}")
    return table


def _spread(points: list[CurvePoint], most: int = 6) -> list[CurvePoint]:
    """A few points of a curve, evenly spread, without that at 0."""
    rest = [p for p in points if p.eps > 0]
    return rest[:: max(1, len(rest) // most)]


def _trials(manifest: Manifest) -> Table:
    table = columns(
        "trial", "eps", "attacked", "broken", "passes", "seconds", overflow="fold", ratio=1
    )
    for t in manifest.trials:
        passes = t.costs.forwards + t.costs.backwards
        figures = (f"{t.attacked:,}", f"{t.broken:,}", f"{passes:,}", f"{t.costs.seconds:,.1f}")
        table.add_row(Text(words.printable(t.spec)), words.eps(t.eps), *figures)
    return table


def _findings(manifest: Manifest) -> list[RenderableType]:
    return [
        Padding(
            Text.assemble(
                (f"{f.severity:5} ", _TONES[f.severity]),
                (words.printable(f.check), "bold"),
                " ",
                words.printable(f"{f.text} {f.advice}".rstrip()),
            ),
            (0, 0, 0, 2),
        )
        for f in manifest.verdict.findings
    ]


def columns(first: str, *figures: str, **how: Any) -> Table:
    """A table of a column of words, which is laid out as `how` says, and of columns of figures."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False, header_style="dim"
    )
    table.add_column(first, **how)
    for label in figures:
        table.add_column(label, justify="right", no_wrap=True)
    return table
