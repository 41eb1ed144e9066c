"""Craft: adversarial examples of one attack for every row, judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.attack import Attack, check_fit, run
from holdfast.attacks.problem import goal_classes, on_8bit
from holdfast.attacks.result import AttackResult
from holdfast.attacks.shared import pool
from holdfast.attacks.trial import Trial
from holdfast.data import Source
from holdfast.data.arrays import like
from holdfast.diagnostics.gradient_sources import Ways
from holdfast.errors import InputError, SpecError
from holdfast.evaluation import goals, judge, perceptual
from holdfast.evaluation.chunking import stride_of
from holdfast.evaluation.contract import check_data, check_model, check_range
from holdfast.evaluation.labels import numbered
from holdfast.evaluation.prepare import open_for, rows_asked
from holdfast.evaluation.protocols import chosen, default_attack
from holdfast.evaluation.truths import with_truths
from holdfast.targets import wrap
from holdfast.targets.batch import Batch, picked, read
from holdfast.targets.target import Target
from holdfast.targets.truth import TRUTH
from holdfast.threats.threat import Threat, as_threat

ARRAYS = ("x", "x_adv", "as_8bit")  # of inputs, which come back as float64 where they came as that


def attack(
    model: Any,
    x: Any,
    y: Any,
    threat: Threat | str,
    attack: str | Attack | Trial | None = None,
    *,
    seed: int = 0,
) -> AttackResult:
    """Adversarial examples for inputs x [n, *shape] of classes y [n], each judged by the model
    itself.

    Args:
        model: what `holdfast.wrap` takes, wrapped or not; inputs outside [0, 1] need it wrapped
            with its bounds.
        x: raw inputs within the model's bounds; an array of torch, NumPy, TensorFlow or JAX. Bytes
            become [0, 1] where the bounds are these.
        y: the true classes, whole numbers; [n, k] of a multi-label or regression model.
        threat: what the adversary may do: `"linf(8/255)"`, `"l2(inf)"` for the smallest change, or
            a `Threat`, whose eps and target may be one a row.
        attack: its name, with options where wanted: `"pgd(steps=100, restarts=5)"` (`holdfast list
            attacks`). None: PGD, or where PGD cannot run (an eps of inf, scores or labels alone),
            the first of protocol `quick`.
        seed: of all noise; a row's noise depends on it and on the row's place in x alone.

    Returns:
        `x_adv` and the other arrays are of x's framework and on its device.

    Raises:
        InputError: the data or the model breaks the input contract.
        SpecError: the attack or the threat cannot be understood.
        AccessError: the attack needs more than the model gives.

    Example:
        >>> result = holdfast.attack(model, x, y, "linf(0.3)", "fgsm")
        >>> result.success.sum(), result.plot()
    """
    target = wrap(model)
    made = craft(target, (x, y), threat, attack, seed=seed)
    wide = str(getattr(x, "dtype", "")).endswith("float64")
    for name, value in vars(made).items():
        if isinstance(value, np.ndarray):
            value = value.astype(np.float64) if wide and name in ARRAYS else value
            object.__setattr__(made, name, like(value, x))
    return made


def craft(
    target: Target,
    data: Any,
    threat: Threat | str,
    attack: str | Attack | Trial | None,
    *,
    samples: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> AttackResult:
    """Examples for rows of a source, as NumPy arrays.

    Args:
        data: what `holdfast.data.as_source` takes.

    Raises:
        InputError, SpecError, AccessError: as `evaluate`.
    """
    target = target.copied()
    source = open_for(target, data)
    threat = as_threat(threat)
    # a typing error is refused before the data are read
    named = None if attack is None else _named(attack)
    start, stop = rows_asked(samples, len(source), source.name)
    target, source = with_truths(target, source, threat)
    check_data(source, target.bounds)
    target.bind(source.shape)
    (source,), _ = numbered(target, source)
    check_model(target, source)
    check_range(target, source)
    trial = named or default_attack(threat.norm.name, target.access, bounded=threat.bounded)
    _check(target, source, threat, trial)
    with pool.filled(target, source, [trial.attack]):
        way = Ways(target, threat, source)(trial.through)
        check_fit(trial.attack, way, threat)
        stride = stride_of(source.shape)
        parts = [
            _chunk(target, way, source, threat, trial, seed, first, min(first + stride, stop))
            for first in range(start, stop, stride)
        ]
    columns = {
        name: np.concatenate([part[name].cpu().numpy() for part in parts]) for name in parts[0]
    }
    bounds = (target.bounds.low, target.bounds.high)
    return AttackResult(
        **columns, attack=repr(trial), threat=repr(threat), bounds=bounds, layout=target.layout
    )


def _named(attack: str | Attack | Trial) -> Trial:
    trial = chosen([attack]).trials[0]
    if trial.near < 1:
        raise SpecError(
            f"{trial!r}: near is of a row that earlier attacks of a list left, but this is the "
            "only one."
        )
    return trial


def _check(target: Target, source: Source, threat: Threat, trial: Trial) -> None:
    """Refuse a threat that these rows cannot have, before any pass is spent."""
    shape = source.shape
    goals.check(threat, target, len(source), source.name)
    threat.check_shape(shape)
    threat.check_grid(target.bounds, moves=False)
    threat.check_box(target.bounds.low, target.bounds.high, shape)
    if isinstance(threat.eps, Tensor) and len(threat.eps) != len(source):
        raise InputError(
            f"eps holds {len(threat.eps)} sizes, but {source.name} has {len(source)} rows; give "
            "one a row."
        )
    if trial.targets > target.task.k - 1:
        raise SpecError(
            f"{trial!r} aims at {trial.targets} wrong classes, but the model has "
            f"{target.task.k - 1}."
        )


def _chunk(
    target: Target,
    way: Target,
    source: Source,
    threat: Threat,
    trial: Trial,
    seed: int,
    first: int,
    stop: int,
) -> dict[str, Tensor]:
    """The columns of rows first to stop."""
    batch, labels = read(source, first, stop)
    batch = batch.to(target.device, target.dtype)
    y = torch.from_numpy(labels.astype(np.int64)).to(target.device)
    ids = torch.arange(first, stop)
    clean = judge.rule(target, batch, seed)
    if isinstance(threat.eps, Tensor):
        threat = threat.of_eps(ids)
    threat = goals.resolved(threat, y, ids, clean.scores, target.task.k, seed)
    best, size = batch.x.clone(), torch.full((len(y),), torch.inf, dtype=torch.float64)
    cost = {
        name: torch.zeros(len(y), dtype=torch.int64)
        for name in ("queries", "forwards", "backwards")
    }
    goal = goal_classes(threat, y)
    skipped = torch.zeros_like(y, dtype=torch.bool) if goal is None else y == goal
    right = ((clean.label == y) & ~skipped).cpu()
    for restart, rank in trial.units(target.task.k):
        left = (right & (size.isinf() | (not threat.bounded))).nonzero()[:, 0]
        ledger = run(
            trial.attack,
            way,
            batch[left],
            y[left],
            threat.of_rows(left),
            ids=ids[left],
            seed=seed,
            restart=restart,
            rank=rank,
            clean=picked(clean.scores, left),
            stop=trial.attack.bounded,
        )
        found = ledger.size.where(ledger.broken, torch.inf).cpu()
        better = (found < size[left]) | size[left].isinf()
        best[left[better]], size[left[better]] = ledger.best[better.to(best.device)], found[better]
        for name, column in cost.items():
            column[left] += getattr(ledger, name).cpu()
    return _judged(target, threat, batch, y, best, clean, skipped, seed) | cost | {"id": ids}


def _judged(
    target: Target,
    threat: Threat,
    batch: Batch,
    y: Tensor,
    best: Tensor,
    clean: judge.Ruling,
    skipped: Tensor,
    seed: int,
) -> dict[str, Tensor]:
    """What the judge says of the examples, as floats and as images of 8 bits."""
    wrong, x = (clean.label != y) & ~skipped, batch.x

    def success(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        legal, size = judge.within(target, threat, x, found)
        label = judge.rule(target, batch.with_x(found), seed).label
        return legal & judge.meets_goal(threat, label, y) & ~wrong & ~skipped, size, label

    hit, size, after = success(best)
    columns: dict[str, Tensor] = {}
    # [h, w]: an image of one channel, where the user says so by --png
    grey = not target.context and x.ndim == 3
    if (grey or perceptual.pictures(target, x)) and target.bounds.each is None:
        columns["as_8bit"] = on_8bit(target, threat, x, best)
        columns["survives_8bit"] = success(columns["as_8bit"])[0] & hit
    return columns | {
        "x": x,
        "x_adv": best,
        "y": batch.context.get(TRUTH, y),
        "success": hit,
        "wrong": wrong,
        "skipped": skipped,
        "size": size.where(hit, torch.nan),
        "before": clean.label,
        "after": after,
    }
