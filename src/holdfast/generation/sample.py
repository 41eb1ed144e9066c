"""Sample: rows of every class from a generator, those that a classifier is sure of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from holdfast.errors import InputError
from holdfast.generation.folder import Generator, load_reader
from holdfast.generation.nets import Reader
from holdfast.targets import Target, wrap

_MOST = 20  # rows drawn for one that is kept, at the most


def sample(
    generator: Generator,
    per_class: int,
    *,
    target: Target | None = None,
    confidence: float = 0.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, int]:
    """As many rows of each class: x [k * per_class, *shape] float32, y [k * per_class] int64; and
    how many were drawn.

    Args:
        target: a classifier that must take a row for its class; None: every row is kept, but of a
            generator that knows no classes those that its folder's classifier takes for the class.
        confidence: the least probability that it must give the class.

    Raises:
        InputError: the classifier knows other classes, or is so rarely sure that drawing on is
            idle.
    """
    if target is None and generator.reader is not None:
        target = _as_target(generator.reader, generator)
    if target is not None:
        target.bind(generator.frame.raw)
        if target.task.k != generator.k:
            raise InputError(
                f"the classifier knows {target.task.k} classes, the generator {generator.k}."
            )
    rows: list[np.ndarray] = []
    tried = 0
    for c in range(generator.k):
        kept, drawn = [np.empty((0, *generator.frame.raw), np.float32)], 0
        while (missing := per_class - sum(map(len, kept))) > 0:
            if drawn >= _MOST * per_class:
                raise InputError(
                    f"of {drawn:,} rows drawn for class {c}, the classifier is sure of "
                    f"{per_class - missing:,}, but "
                    f"{per_class:,} are asked for; train the generator longer, or give a lower "
                    "--min-confidence."
                )
            count = (
                missing if target is None else min(max(2 * missing, 50), _MOST * per_class - drawn)
            )
            ids = (torch.arange(drawn, drawn + count)) * generator.k + c
            x = generator.draw(torch.full((count,), c), ids, seed)
            drawn += count
            if target is not None:
                low, high = target.bounds.low, target.bounds.high
                x = x.clamp(low, high)
                p = target.batcher.in_parts(target.scores, target.batcher.place(x)).softmax(1)
                x = x[((p.argmax(1) == c) & (p[:, c] >= confidence)).to(x.device)]
            kept.append(x[:missing].cpu().numpy().astype(np.float32))
        rows.append(np.concatenate(kept))
        tried += drawn
    return np.concatenate(rows), np.repeat(np.arange(generator.k), per_class), tried


def own_classifier(folder: Path, generator: Generator) -> Target:
    """The classifier that the folder's figures are taken with, as a target."""
    return _as_target(load_reader(folder, generator.frame, generator.k), generator)


def _as_target(reader: Reader, generator: Generator) -> Target:
    return wrap(
        reader, bounds=(float(generator.frame.low.min()), float(generator.frame.high.max()))
    )
