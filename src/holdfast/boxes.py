"""What a box must be: the checks that data and tasks share, in NumPy, since data load without
torch."""

from __future__ import annotations

import numpy as np

from holdfast.errors import InputError

BEYOND = 0.01  # of a side of its image, but at least a pixel: so far may a box reach out of it


def check_boxes(
    boxes: np.ndarray,
    width: float,
    height: float,
    what: str,
    classes: int | None = None,
    other: str = "x, y, width, height",
) -> None:
    """Check the boxes [m, 5] of an image: class, x0, y0, x1, y1 in pixels.

    Args:
        what: the image, for the message.
        classes: how many there are, where that is known.
        other: the likely mistake in how the boxes are written.

    Raises:
        InputError: no such boxes (x, y, width, height, or fractions of the image, say), or a class
            that there is not.
    """
    if not len(boxes):
        return
    c, x0, y0, x1, y1 = boxes.T
    corners = boxes[:, 1:]
    whole = (c == np.rint(c)) & (c >= 0) & (c < (classes or np.inf))
    known = f"from 0 to {classes - 1}" if classes else "from 0 on"
    fractions = min(width, height) > 1 and bool(((corners >= 0) & (corners <= 1)).all())
    beyond = np.stack([-x0, -y0, x1 - width, y1 - height])
    allowed = max(1, BEYOND * width), max(1, BEYOND * height)
    far = (beyond > np.array([*allowed, *allowed])[:, None]).any(0)
    size = f"of an image of {width:g} x {height:g} pixels (width, height)"
    complaints = (
        (~np.isfinite(boxes).all(1), "expected finite numbers."),
        (~whole, f"its class, in front, is no whole number {known}."),
        (
            np.full(len(boxes), fractions),
            f"it seems to be in fractions {size}, where pixels are expected.",
        ),
        ((x1 <= x0) | (y1 <= y0), f"x1 or y1 is not above x0 or y0: is it {other}?"),
        (
            far,
            f"it reaches {beyond.max():.4g} pixels out {size}: are the boxes those of another "
            f"size, or written as {other}?",
        ),
    )
    for bad, why in complaints:
        if bad.any():
            i = int(np.argmax(bad))
            seen = ", ".join(f"{value:.6g}" for value in boxes[i])
            raise InputError(f"box {i} of {what} is (class, x0, y0, x1, y1) = ({seen}); {why}")
