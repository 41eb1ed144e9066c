"""Images with boxes or masks, written in the forms that people have them in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = [f"digit {c}" for c in range(10)]


def write_images(home: Path, x: np.ndarray) -> list[str]:
    """Images [n, 1 or 3, h, w] in [0, 1] as PNG, and their names."""
    home.mkdir(parents=True, exist_ok=True)
    names = [f"{row:04}.png" for row in range(len(x))]
    for name, image in zip(names, np.rint(255 * x).astype(np.uint8), strict=True):
        Image.fromarray(image.transpose(1, 2, 0).squeeze()).save(home / name)
    return names


def write_coco(home: Path, x: np.ndarray, boxes: np.ndarray) -> Path:
    """images/ and instances.json, with categories 10, 13, 16, ... listed backwards."""
    names = write_images(home / "images", x)
    ids = [10 + 3 * c for c in range(10)]
    content = {
        "images": [
            {"id": 7 + i, "file_name": name, "width": x.shape[3], "height": x.shape[2]}
            for i, name in enumerate(names)
        ],
        "annotations": [
            {
                "id": 100 * i + j,
                "image_id": 7 + i,
                "category_id": ids[int(c)],
                "bbox": [float(v) for v in (x0, y0, x1 - x0, y1 - y0)],
                "iscrowd": 0,
            }
            for i, own in enumerate(boxes)
            for j, (c, x0, y0, x1, y1) in enumerate(own[own[:, 0] >= 0])
        ],
        "categories": [
            {"id": i, "name": name} for i, name in zip(ids[::-1], NAMES[::-1], strict=True)
        ],
    }
    (home / "instances.json").write_text(json.dumps(content))
    return home


def write_yolo(home: Path, x: np.ndarray, boxes: np.ndarray) -> Path:
    """images/, labels/ and data.yaml."""
    names = write_images(home / "images", x)
    (home / "labels").mkdir()
    sides = np.array([x.shape[3], x.shape[2]])
    for name, own in zip(names, boxes, strict=True):
        lines = [
            " ".join(map(str, [int(c), *(low + high) / 2 / sides, *(high - low) / sides]))
            for c, low, high in ((o[0], o[1:3], o[3:]) for o in own[own[:, 0] >= 0])
        ]
        (home / "labels" / name).with_suffix(".txt").write_text("\n".join(lines))
    (home / "data.yaml").write_text(f"names: {json.dumps(NAMES)}\n")
    return home


def write_masks(home: Path, x: np.ndarray, masks: np.ndarray, mode: str = "L") -> Path:
    """images/ and masks/: grey, or with a palette."""
    names = write_images(home / "images", x)
    (home / "masks").mkdir()
    for name, mask in zip(names, masks.astype(np.uint8), strict=True):
        image = Image.fromarray(mask)
        if mode == "P":
            image = Image.fromarray(mask, "L")
            image.putpalette([v for c in range(256) for v in (c * 37 % 256, c * 91 % 256, 255 - c)])
        image.save(home / "masks" / name)
    return home


def corners(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    """Boxes [m, 5] from lists."""
    return np.array(boxes, np.float64).reshape(-1, 5)
