"""What a report shows of objects: the boxes of a detector over an image, and the regions of a
segmenter in colours."""

from __future__ import annotations

import colorsys
import html
from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from holdfast.reporting import words
from holdfast.runs.detection import matched

LABELLED = 8  # up to so many boxes on an image, each is named


def boxed(
    picture: str,
    size: tuple[int, int],
    objects: np.ndarray,
    boxes: np.ndarray,
    least: float,
    names: Mapping[int, str],
    caption: str,
) -> Markup:
    """An image with its objects (dashed) and the boxes of the detector, as inline SVG.

    Args:
        picture: a data URI.
        size: height and width in pixels.
        objects: [m, 5] of class, x0, y0, x1, y1.
        boxes: [d, 6] of class, score, x0, y0, x1, y1, the best first.
        least: overlap from which on a box finds an object.
    """
    height, width = size
    which = matched(boxes, objects, least)
    found = np.isin(np.arange(len(objects)), which)
    parts = [f'<image href="{picture}" width="{width}" height="{height}"/>']
    for place, hit in zip(objects[:, 1:].tolist(), found, strict=True):
        parts.append(_rectangle(place, "object" if hit else "object lost"))
    step = max(size) / 18
    for box, hit in zip(boxes.tolist(), which >= 0, strict=True):
        kind = "box" if hit else "box free"
        parts.append(_rectangle(box[2:], kind))
        if len(boxes) <= LABELLED:
            text = f"{names.get(int(box[0]), int(box[0]))} {words.number(round(box[1], 2))}"
            top = box[3] - step / 3 if box[3] > 1.4 * step else box[3] + step
            left = min(max(box[2], 0), width - 0.55 * step * len(text))
            parts.append(
                f'<text class="{kind}" x="{max(left, 0):.1f}" y="{top:.1f}" '
                f'font-size="{step:.1f}">{html.escape(words.printable(text))}</text>'
            )
    said = f"{caption}: {told(objects, boxes, least)}"
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="scene" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{html.escape(said, quote=True)}">{"".join(parts)}</svg>'
    )


def told(objects: np.ndarray, boxes: np.ndarray, least: float) -> str:
    """How many objects are found, and how many boxes find none."""
    hits = int((matched(boxes, objects, least) >= 0).sum())
    others = len(boxes) - hits
    return f"{hits} of {len(objects)} found, {others} box{'es' * (others != 1)} without an object"


def _rectangle(place: list[float], kind: str) -> str:
    x0, y0, x1, y1 = place
    return (
        f'<rect class="{kind}" x="{x0:.1f}" y="{y0:.1f}" width="{max(x1 - x0, 0):.1f}" '
        f'height="{max(y1 - y0, 0):.1f}"/>'
    )


def coloured(pixels: np.ndarray, classes: np.ndarray, ignore: int = 255) -> np.ndarray:
    """An image under the colours of its regions.

    Args:
        pixels: [h, w, 3] in [0, 1].
        classes: [h, w]; class 0 is left as it is, and what is not judged is white.

    Returns:
        [h, w, 3] in [0, 1].
    """
    numbers = np.unique(classes)
    table = np.array([colour(int(c)) for c in numbers])[np.searchsorted(numbers, classes)]
    table[classes == ignore] = 1
    weight = np.where(classes == 0, 0.0, 0.6)[..., None]
    return (1 - weight) * pixels + weight * table


def colour(c: int) -> tuple[float, float, float]:
    """A colour for a class, far from those of its neighbours: [0, 1] each."""
    return colorsys.hsv_to_rgb(c * 0.618034 % 1, 0.75, 0.95)
