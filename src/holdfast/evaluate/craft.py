"""Craft: adversarial examples of one attack for every row of a source, judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from holdfast.attacks.attack import run
from holdfast.evaluate import judge, pool
from holdfast.evaluate.contract import check_data, check_labels, check_model, check_range
from holdfast.evaluate.evaluate import rows_asked, stride_of
from holdfast.evaluate.graded import graded
from holdfast.evaluate.prepare import open_for
from holdfast.evaluate.protocols import parse_trial
from holdfast.targets.target import Target
from holdfast.targets.truth import WithTruth
from holdfast.threat import Threat


def craft(
    target: Target,
    data: Any,
    threat: Threat | str,
    attack: str,
    *,
    samples: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Examples `x`, with `y`, `id`, and what the judge says: `wrong` (misclassified clean) and `broken`.

    Args:
        data: what `holdfast.data.as_source` takes.

    Raises:
        InputError, SpecError, AccessError: as `evaluate`.
    """
    source = open_for(target, data)
    threat = Threat.parse(threat) if isinstance(threat, str) else threat
    trial = parse_trial(attack)
    start, stop = rows_asked(samples, len(source), source.name)
    target, source = graded(target, source, threat)
    check_data(source, target.bounds, target.beside)
    check_model(target, source)
    check_labels(source, target.task.k)
    check_range(target, source)
    pool.fill(target, source, [trial.attack])
    threat.check_classes(target.task.k)
    threat.check_shape(target.free or source.shape)
    threat.check_box(target.bounds.low, target.bounds.high, target.free or source.shape)
    parts: list[dict[str, np.ndarray]] = []
    stride = stride_of(source.shape)
    for first in range(start, stop, stride):
        raw, labels = source.rows(first, min(first + stride, stop))
        x = torch.from_numpy(raw).to(target.device, target.dtype)
        y = torch.from_numpy(np.asarray(labels, dtype=np.int64)).to(target.device)
        ids = torch.arange(first, first + len(y))
        clean = judge.rule(target, x, seed)
        best, size = x.clone(), torch.full((len(x),), torch.inf, dtype=torch.float64)
        for restart, rank in trial.units(target.task.k):
            left = (size.isinf() & (clean.label == y).cpu()).nonzero()[:, 0]
            books = run(
                trial.attack,
                target,
                x[left],
                y[left],
                threat,
                ids=ids[left],
                seed=seed,
                restart=restart,
                rank=rank,
                clean=None if clean.scores is None else clean.scores[left],
            )
            best[left], size[left] = books.best, books.size.where(books.broken, torch.inf).cpu()
        legal, _ = judge.within(target, threat, x, best)
        fooled = judge.meets_goal(threat, judge.rule(target, best, seed).label, y)
        wrong = clean.label != y
        if isinstance(target, WithTruth):
            y = target.parts(best)[0]
        best = target.apart(best)[1]
        columns = {"x": best, "y": y, "id": ids, "wrong": wrong, "broken": legal & fooled & ~wrong}
        parts.append({name: column.cpu().numpy() for name, column in columns.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
