"""Images as one picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def grid(u: np.ndarray, columns: int, least: int = 32) -> bytes:
    """Images u [n, c, h, w] within [-1, 1] as one picture, row by row: a PNG, small images
    enlarged to at least about so many pixels of height; of other than 1 or 3 channels the first."""
    if u.shape[1] != 3:
        u = u[:, :1]
    n, c, h, w = u.shape
    pixels = np.rint(255 * np.clip((u + 1) / 2, 0, 1)).astype(np.uint8)
    times = max(1, least // h)
    pixels = pixels.repeat(times, 2).repeat(times, 3)
    pixels = np.pad(pixels, ((0, -n % columns), (0, 0), (1, 1), (1, 1)), constant_values=128)
    rows, h, w = len(pixels) // columns, h * times + 2, w * times + 2
    sheet = (
        pixels.reshape(rows, columns, c, h, w)
        .transpose(0, 3, 1, 4, 2)
        .reshape(rows * h, columns * w, c)
    )
    file = io.BytesIO()
    Image.fromarray(sheet[..., 0] if c == 1 else sheet).save(file, "PNG")
    return file.getvalue()
