"""report.html of a generator: what it draws, how that came about over the training, and how good it
is."""

from __future__ import annotations

import base64
import csv
import json
import math
from pathlib import Path
from typing import Any

from markupsafe import Markup

from holdfast.errors import InputError
from holdfast.reporting import figures, html
from holdfast.runs.store import write_bytes

_PICTURES = 6  # of samples, from the first round to the last

CURVES = (
    ("kid", "KID", "Kernel distance between samples and real rows; 0: none."),
    ("fid", "FID", "Fréchet distance between samples and real rows; lower is closer."),
    (
        "right",
        "taken for the class asked for",
        "Share of samples; by a classifier trained on the same real rows.",
    ),
    (
        "spread",
        "spread of the most uniform class",
        "How far its samples differ among themselves; 1: as real rows do.",
    ),
)
MEANINGS = (
    (
        "FID",
        "fid",
        "fid_real",
        "Fréchet distance between normal distributions of features; too high for few samples.",
    ),
    ("KID", "kid", "kid_real", "Squared maximum mean discrepancy of features, unbiased."),
    ("Precision", "precision", None, "Share of samples that lie among real rows: are they good?"),
    ("Recall", "recall", None, "Share of real rows that lie among samples: is nothing left out?"),
    (
        "Trained on samples",
        "trained",
        "trained_real",
        "Accuracy on real rows of a classifier that saw samples alone.",
    ),
    (
        "Copies",
        "copies",
        None,
        "Share of samples closer to a training row than 99 % of new real rows are: 0.01 is none.",
    ),
)


def write(folder: Path) -> Path:
    """Write report.html into the folder of a generator, from its note, log, measure and pictures.

    Raises:
        InputError: the folder holds no finished generator.
    """
    try:
        note, quality = (
            json.loads((folder / f"{name}.json").read_bytes()) for name in ("generate", "quality")
        )
        with (folder / "log.csv").open(encoding="utf-8", newline="") as file:
            log = list(csv.DictReader(file))
        best = min((line for line in log if not line["note"]), key=lambda line: float(line["kid"]))
        curves = [(name, Markup(_curve(log, key, name)), said) for key, name, said in CURVES]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} holds no finished generator: {error}.") from error
    page = html.rendered(
        "generated.html.j2",
        note=note,
        q=quality,
        log=log,
        best=int(best["round"]),
        curves=curves,
        meanings=MEANINGS,
        pictures=_pictures(folder, int(best["round"])),
    )
    path = folder / "report.html"
    write_bytes(path, page.encode())
    return path


def _curve(log: list[dict[str, Any]], key: str, name: str) -> str:
    found = [(int(line["step"]), float(line[key])) for line in log]
    points = [point for point in found if not math.isnan(point[1])]  # too few rows say nothing
    if not points:
        return ""
    return figures.line(points, "steps", name, f"over-{key}")


def _pictures(folder: Path, best: int) -> list[tuple[int, str]]:
    """Some rounds' samples as data URIs, the best round's first."""
    found = {
        int(path.stem.partition("-")[2]): path for path in (folder / "samples").glob("round-*.png")
    }
    rounds = sorted(found)
    apart = max(1, _PICTURES - 1)
    some = {rounds[i * (len(rounds) - 1) // apart] for i in range(_PICTURES) if rounds}
    return [
        (r, f"data:image/png;base64,{base64.b64encode(found[r].read_bytes()).decode()}")
        for r in (best, *sorted(some - {best}))
        if r in found
    ]
