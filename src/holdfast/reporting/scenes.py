"""What a report shows of objects: the boxes of a detector over an image, and the regions of a
segmenter in colours."""

from __future__ import annotations

import base64
import colorsys
import html
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from holdfast import spec
from holdfast.reporting import words
from holdfast.runs.detection import boxes, matched, objects
from holdfast.runs.manifest import Manifest

LABELLED = 8  # up to so many boxes on an image, each is named


def shown(
    m: Manifest, row: Mapping[str, Any], x: np.ndarray, x_adv: np.ndarray, masks: dict[str, Any]
) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """An example as pictures, each with its caption: data URIs of the masks [h, w] of a segmenter,
    or SVG of the boxes of a detector; of these also what is found, before and after."""
    (low, high), layout = m.model.bounds, m.model.layout
    images = [rgb((image - low) / (high - low), layout) for image in (x, x_adv)]
    if masks:
        over = (("truth", images[0], "truth"), ("before", images[0], "clean"))
        parts = (*over, ("after", images[1], "attacked"))
        return tuple(
            (said, png(coloured(image, masks[of]), "nhwc")) for said, image, of in parts
        ), ()
    options, names = spec.call(m.model.task, "task")[2], dict(enumerate(m.data.objects or ()))
    of, least = objects(np.array(row["truth"])), options["iou"]
    drawn: list[tuple[str, str]] = []
    said: list[tuple[str, str]] = []
    for when, image, answer in zip(
        ("before", "after"), images, ("clean_output", "attacked_output"), strict=True
    ):
        found = boxes(np.array(row[answer], float), options["score"])
        size = (image.shape[0], image.shape[1])
        drawn.append((when, boxed(png(image, "nhwc"), size, of, found, least, names, when)))
        said.append((when, described(of, found, least)))
    return tuple(drawn), tuple(said)


def boxed(
    picture: str,
    size: tuple[int, int],
    of: np.ndarray,
    found: np.ndarray,
    least: float,
    names: Mapping[int, str],
    caption: str,
) -> Markup:
    """An image with its objects (dashed) and the boxes of the detector, as inline SVG.

    Args:
        picture: a data URI.
        size: height and width in pixels.
        of: its objects, [m, 5] of class, x0, y0, x1, y1.
        found: [d, 6] of class, score, x0, y0, x1, y1, the best first.
        least: overlap from which on a box finds an object.
    """
    height, width = size
    which = matched(found, of, least)
    parts = [f'<image href="{picture}" width="{width}" height="{height}"/>']
    for j, place in enumerate(of[:, 1:].tolist()):
        parts.append(_rectangle(place, "object" if j in which else "object lost"))
    step = max(size) / 16
    for box, hit in zip(found.tolist(), which >= 0, strict=True):
        kind = "box" if hit else "box free"
        parts.append(_rectangle(box[2:], kind))
        if len(found) <= LABELLED:
            text = f"{names.get(int(box[0]), int(box[0]))} {box[1]:.2f}"
            top = box[3] - step / 3 if box[3] > 1.4 * step else box[3] + step
            left = max(0, min(box[2], width - 0.55 * step * len(text)))
            parts.append(
                f'<text class="{kind}" x="{left:.1f}" y="{top:.1f}" font-size="{step:.1f}">'
                f"{html.escape(words.printable(text))}</text>"
            )
    said = html.escape(f"{caption}: {described(of, found, least)}", quote=True)
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" class="scene" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="{said}">{"".join(parts)}</svg>'
    )


def described(of: np.ndarray, found: np.ndarray, least: float) -> str:
    """How many objects are found, and how many boxes find none."""
    hits = int((matched(found, of, least) >= 0).sum())
    others = len(found) - hits
    return f"{hits} of {len(of)} found, {others} box{'es' * (others != 1)} without an object"


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


def rgb(x: np.ndarray, layout: str) -> np.ndarray:
    """An image with values in [0, 1] as [h, w, 3]."""
    image = np.moveaxis(x, 0, -1) if x.ndim == 3 and layout == "nchw" else x
    image = image[..., None] if image.ndim == 2 else image
    return np.broadcast_to(image, (*image.shape[:2], 3)).clip(0, 1)


def png(x: np.ndarray, layout: str) -> str:
    """An image with values in [0, 1] as a data URI."""
    pixels = np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8)
    if pixels.ndim == 3 and layout == "nchw":
        pixels = pixels.transpose(1, 2, 0)
    file = io.BytesIO()
    if pixels.shape[2:] == (1,):
        pixels = pixels[..., 0]
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
