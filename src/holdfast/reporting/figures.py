"""The figures of the page: SVG that takes its colours from the page, and is the same text at each
call."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from holdfast.intervals import Interval
from holdfast.reporting import words
from holdfast.runs.manifest import CurvePoint

# Colours to draw with, which `_svg` turns into the page's own.
INK, MUTED, LINE, ACCENT, PAPER = "#010203", "#040506", "#070809", "#0a0b0c", "#0d0e0f"
_PAGE = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    PAPER: "var(--paper)",
}
# pixels cannot take a variable: a blue that serves on light and dark, by its opacity
_HUE = (0x2F, 0x6F, 0xB5)
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "holdfast",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
NUMBERED = 20  # up to so many classes, the matrix shows names and counts


@matplotlib.rc_context(_STYLE)
def curve(points: Sequence[CurvePoint], eps: float, name: str = "curve") -> str:
    """Robust accuracy over eps with its interval; hollow where it only follows from recorded
    sizes."""
    points = [p for p in points if p.robust_accuracy.value is not None]
    known = [(p.eps, p.robust_accuracy, p.measured) for p in points]
    x = np.array([e for e, _, _ in known])
    y, low, high = (
        np.array([getattr(i, k) for _, i, _ in known], dtype=float)
        for k in ("value", "low", "high")
    )
    measured = np.array([m for _, _, m in known], dtype=bool)
    figure, axes = _empty(4.7, 2.9, "y")
    if np.isfinite(eps):
        axes.axvline(eps, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    axes.fill_between(x, low, high, color=ACCENT, alpha=0.18, linewidth=0, label="95 % interval")
    axes.plot(x, y, color=ACCENT, linewidth=0.9, linestyle=(0, (4, 2)))
    dots = {
        "linestyle": "none",
        "marker": "o",
        "markeredgecolor": ACCENT,
        "markersize": 6,
        "clip_on": False,
    }
    axes.plot(x[measured], y[measured], markerfacecolor=ACCENT, label="measured", zorder=4, **dots)
    if not measured.all():
        axes.plot(
            x[~measured],
            y[~measured],
            markerfacecolor=PAPER,
            label="upper bound, from recorded sizes",
            zorder=3,
            **dots,
        )
    proved = [p.certified_accuracy for p in points if p.certified_accuracy is not None]
    if len(proved) == len(x):
        lower = np.array([i.value for i in proved], dtype=float)
        # what is proved at one eps is proved at every smaller one
        ends, above, below = np.repeat(x, 2)[1:-1], np.repeat(y, 2)[1:-1], np.repeat(lower[1:], 2)
        gap = {"color": MUTED, "alpha": 0.16, "linewidth": 0}
        axes.fill_between(ends, below, above, label="neither proved nor broken", **gap)
        axes.plot(x, lower, color=INK, linewidth=1.2, drawstyle="steps-pre", label="proved")
    of_task = _of_task(axes, points)
    widest = max(value for value in (*x, eps, 1e-9) if np.isfinite(value))
    axes.set(xlim=(0, widest * 1.02), ylim=(0, 1), xlabel="eps", ylabel="robust accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    figure.legend(
        loc="outside upper left",
        ncols=3,
        frameon=False,
        fontsize=9,
        handletextpad=0.4,
        columnspacing=1.2,
    )
    said = "; ".join(f"{words.percent(i.value)} at eps {words.eps(e)}" for e, i, m in known if m)
    at = [(e, i) for (e, _, m), i in zip(known, proved, strict=False) if m]
    held = "; ".join(f"{words.percent(i.value)} at eps {words.eps(e)}" for e, i in at)
    shown = f" Proved: {held}." if held else ""
    return _svg(
        figure, name, f"Robust accuracy over eps. Measured: {said or 'nothing'}.{shown}{of_task}"
    )


OF_TASK = ("objects found", "AP50", "pixel accuracy", "mIoU of an image")  # shares that are drawn


def _of_task(axes: Axes, points: Sequence[CurvePoint]) -> str:
    """Draw the figures of a task that are known at each of these points, and say them."""
    x, said = [p.eps for p in points], ""
    found = {name: [p.of_task.get(name) for p in points] for name in OF_TASK}
    known = [(name, v) for name, v in found.items() if v and None not in v]
    for (label, values), dashes in zip(known, ("-", "--"), strict=False):
        each = np.array(values, dtype=float)
        axes.plot(x, each, color=INK, linewidth=1.2, linestyle=dashes, label=label)
        said += f" {label}: {'; '.join(map(words.number, values))}."
    return said


@matplotlib.rc_context(_STYLE)
def line(points: Sequence[tuple[float, float]], across: str, up: str, name: str) -> str:
    """One figure over another."""
    x, y = np.array([p for p, _ in points]), np.array([v for _, v in points])
    figure, axes = _empty(4.2, 2.4, "y")
    axes.plot(x, y, color=ACCENT, linewidth=1.2, marker="o", markersize=4, clip_on=False)
    axes.set(
        xlim=(0, x.max() * 1.02),
        ylim=(min(0.0, float(np.nanmin(y))), None),
        xlabel=across,
        ylabel=up,
    )
    return _svg(
        figure, name, f"{up} over {across}: from {words.number(y[0])} to {words.number(y[-1])}."
    )


DRAWN = 1_000  # points of a wave; of a longer one the least and the largest value of each part


@matplotlib.rc_context(_STYLE)
def waves(x: np.ndarray, x_adv: np.ndarray, name: str = "waves") -> str:
    """An input [n], such as a wave, before and after an attack, and the change between."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    rows = figure.subplots(3, sharex=True)
    shown = ("original", x), ("adversarial", x_adv), ("change", x_adv - x)
    for axes, (label, values) in zip(rows, shown, strict=True):
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.plot(*_outline(values), color=ACCENT, linewidth=0.8)
        axes.set_ylabel(label)
    rows[-1].set_xlabel("place of the value")
    most = words.number(float(np.abs(x_adv - x).max()))
    return _svg(
        figure, name, f"An input of {len(x):,} values; the most that one changed is {most}."
    )


def _outline(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places and values of a line of at most `DRAWN` points that looks as all values [n] do."""
    places = np.arange(len(values))
    if len(values) <= DRAWN:
        return places, values
    parts = np.array_split(places, DRAWN // 2)
    ends = [sorted((p[values[p].argmin()], p[values[p].argmax()])) for p in parts]
    kept = np.ravel(ends)
    return kept, values[kept]


@matplotlib.rc_context(_STYLE)
def tradeoff(
    first: tuple[Interval, Interval],
    second: tuple[Interval, Interval],
    epochs: Sequence[tuple[float, float]] = (),
    labels: tuple[str, str] = ("first", "second"),
    name: str = "tradeoff",
) -> str:
    """Robust over clean accuracy: two models as points with their intervals, and the epochs of the
    training between them."""
    figure, axes = _empty(4.7, 3.6, "both")
    if epochs:
        axes.plot(
            *np.array(epochs).T,
            color=MUTED,
            linewidth=0.8,
            marker=".",
            markersize=4,
            label="epochs, on rows held out",
        )
    said = []
    for label, pair, fill in ((labels[0], first, PAPER), (labels[1], second, ACCENT)):
        at, low, high = np.array(
            [[getattr(i, k) for i in pair] for k in ("value", "low", "high")], dtype=float
        )
        if np.isnan(at).any():
            continue
        bars = np.stack([at - low, high - at], 1)[..., None]  # [clean or robust, down or up, 1]
        axes.errorbar(
            *at,
            xerr=bars[0],
            yerr=bars[1],
            fmt="o",
            color=ACCENT,
            markerfacecolor=fill,
            markersize=8,
            elinewidth=1.4,
            label=f"{label}, with 95 % intervals",
            zorder=4,
        )
        said.append(f"{label} {words.percent(at[0])} clean and {words.percent(at[1])} robust")
    axes.set(ylim=(-0.02, 1), xlabel="clean accuracy", ylabel="robust accuracy")
    axes.set_xlim(right=min(1.0, axes.get_xlim()[1]) + 0.004)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    figure.legend(loc="outside upper left", ncols=1, frameon=False, fontsize=9, handletextpad=0.4)
    return _svg(
        figure, name, f"Robust over clean accuracy: {'; '.join(said) or 'nothing measured'}."
    )


@matplotlib.rc_context(_STYLE)
def confusion(counts: Sequence[Sequence[int]], names: Sequence[str], title: str, name: str) -> str:
    """A matrix of counts, true class by predicted class, coloured by (the root of) the share of the
    true class."""
    table = np.asarray(counts, dtype=np.int64)
    k = len(table)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    pixels = np.zeros((k, k, 4), dtype=np.uint8)
    pixels[..., :3] = _HUE
    pixels[..., 3] = np.rint(255 * np.sqrt(share))
    figure = Figure(figsize=(4.6, 4.6))
    axes = figure.add_axes((0.16, 0.16, 0.82, 0.82))
    axes.imshow(pixels, interpolation="none")
    axes.set(xlabel="predicted", ylabel="true")
    if k <= NUMBERED:
        short = [n if len(n) <= 12 else n[:11] + "…" for n in map(words.printable, names)]
        size = min(10, 190 / k)
        axes.set_xticks(
            range(k), short, rotation=90 * (max(map(len, short)) > 45 / k), fontsize=size
        )
        axes.set_yticks(range(k), short, fontsize=size)
        widest = len(f"{table.max():,}")
        for true, predicted in np.argwhere(table):
            color = "#ffffff" if share[true, predicted] > 0.75 else INK
            axes.text(
                predicted,
                true,
                f"{table[true, predicted]:,}",
                color=color,
                fontsize=min(10, 440 / (k * max(widest, 2))),
                ha="center",
                va="center",
            )
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set(visible=True, color=LINE)
    said = (
        f"{title}: of {table.sum():,} inputs {np.trace(table):,} lie on the diagonal "
        "(predicted as what they are)."
    )
    return _svg(figure, name, said)


def _empty(width: float, height: float, grid: Literal["y", "both"]) -> tuple[Figure, Axes]:
    """A figure of this size in inches with lines behind what is drawn."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(axis=grid, color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _svg(figure: Figure, name: str, said: str) -> str:
    """The figure as inline SVG: no prolog, no metadata, no size of its own, ids that begin with
    `name`."""
    file = io.StringIO()
    empty: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # the reader's fonts draw the text, not ours
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(
            file,
            format="svg",
            transparent=True,
            bbox_inches="tight",
            pad_inches=0.03,
            metadata=empty,
        )
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"(style=\"font[^\"]*?)'[^;\"]*sans-serif", r"\1system-ui, sans-serif", text)
    # a page that allows no style in its lines shows what attributes say
    text = re.sub(r'style="([^"]*)"', lambda found: _attributes(found[1]), text)
    text = re.sub("|".join(_PAGE), lambda found: _PAGE[found[0]], text)
    label = html.escape(words.printable(said), quote=True)
    return re.sub(
        r'<svg [^>]*?(viewBox="[^"]*")[^>]*>',
        r'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        rf'class="figure {name}" '
        rf'\1 role="img" aria-label="{label}" stroke-linejoin="round" stroke-linecap="butt">',
        text,
        count=1,
    )


def _attributes(style: str) -> str:
    """Declarations of CSS as attributes of SVG: `fill="none" stroke-width="0.8"`."""
    said = dict(part.split(":", 1) for part in style.split(";"))
    return " ".join(f'{name.strip()}="{value.strip()}"' for name, value in said.items())
