"""Craft: adversarial examples of one attack for every row, judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias, overload

import numpy as np
import torch
from torch import Tensor

from holdfast import spec
from holdfast.arguments import checked
from holdfast.attacks.attack import Attack, run
from holdfast.attacks.autoattack import AutoAttack
from holdfast.attacks.problem import Pool, meets_goal, on_8bit
from holdfast.attacks.result import AttackResult
from holdfast.attacks.trial import Trial, asked_before
from holdfast.data.arrays import is_frame, like
from holdfast.data.columns import frame
from holdfast.data.features import of_frame
from holdfast.errors import SpecError
from holdfast.evaluation import goals, judge, perceptual
from holdfast.evaluation.contract import check_data
from holdfast.evaluation.labels import numbered
from holdfast.evaluation.prepare import (
    Prepared,
    check_threat,
    check_trials,
    open_for,
    prepare,
    sizes_of,
)
from holdfast.evaluation.protocols import PROTOCOLS, chosen, default_attack
from holdfast.targets import wrap
from holdfast.targets.batch import Batch, picked, read
from holdfast.targets.target import Target
from holdfast.targets.truth import TRUTH, nothing_to_lose
from holdfast.threats import spatial
from holdfast.threats.threat import Threat, as_threat

Asked: TypeAlias = str | Attack | AutoAttack | Trial | None

ARRAYS = ("x", "x_adv", "as_8bit")  # of inputs, which come back as float64 where they came as that


@overload
def attack(
    model: Any, x: Any, y: Any, threat: Threat | str, attack: Asked = None, *,
    epsilons: None = None, seed: int = 0, pool: tuple[Any, Any] | None = None,
) -> AttackResult: ...  # fmt: skip


@overload
def attack(
    model: Any, x: Any, y: Any, threat: Threat | str, attack: Asked = None, *,
    epsilons: Sequence[float], seed: int = 0, pool: tuple[Any, Any] | None = None,
) -> list[AttackResult]: ...  # fmt: skip


@checked
def attack(
    model: Any,
    x: Any,
    y: Any,
    threat: Threat | str,
    attack: Asked = None,
    *,
    epsilons: Sequence[float] | None = None,
    seed: int = 0,
    pool: tuple[Any, Any] | None = None,
) -> AttackResult | list[AttackResult]:
    """Adversarial examples for inputs x [n, *shape] of classes y [n], each judged by the model
    itself.

    Args:
        model: what `holdfast.wrap` takes, wrapped or not; inputs outside [0, 1] need it wrapped
            with its bounds.
        x: raw inputs within the model's bounds; an array of torch, NumPy, TensorFlow or JAX. Bytes
            become [0, 1] where the bounds are these. `as_source(...).rows(0, 100)` gives x and y of
            files.
        y: the true classes, whole numbers; [n, k] of a multi-label or regression model.
        threat: what the adversary may do: `"linf(8/255)"`, `"l2(inf)"` for the smallest change, or
            a `Threat`, whose eps and target may be one a row; of images also `"rotation(30, 3)"`,
            `"flow(1)"` or `"patch(5)"`, as in `holdfast.evaluate`.
        attack: its name, with options where wanted: `"pgd(steps=100, restarts=5)"` (`holdfast list
            attacks`); an object, `holdfast.attacks.PGD(steps=100)`; or the name of a protocol,
            `"autoattack"`, whose attacks run in their order on the rows not broken yet. None: PGD,
            or where PGD cannot run (an eps of inf, a movement, scores or labels alone), the first
            of protocol `quick`.
        epsilons: sizes in place of the threat's: one result for each, in their order.
        seed: of all noise; a row's noise depends on it and on the row's place in x alone.
        pool: images and their classes, for an attack that mixes in images of other classes; as x
            and y are. None: up to 64 of the rows of x.

    Returns:
        `x_adv` and the other arrays are of x's framework and on its device. Of a DataFrame x and
        x_adv are DataFrames with the same columns and types.

    Raises:
        InputError: the data or the model breaks the input contract.
        SpecError: the attack or the threat cannot be understood.
        AccessError: the attack needs more than the model gives.

    Example:
        >>> result = holdfast.attack(model, x, y, "linf(0.3)", "fgsm")
        >>> result.success.sum(), result.plot()
    """
    target = wrap(model)
    if epsilons is not None:
        return [_crafted(target, x, y, one, attack, seed, pool) for one in _sized(threat, epsilons)]
    return _crafted(target, x, y, threat, attack, seed, pool)


def _sized(threat: Threat | str, epsilons: Sequence[float]) -> list[Threat]:
    """The threat at each of these sizes."""
    if isinstance(threat, str) and spatial.parse(threat) is not None:
        raise SpecError(
            f"epsilons are sizes in a norm, but the threat is the movement {threat}; call attack "
            "once for each."
        )
    return [as_threat(threat).at(eps) for eps in sizes_of(epsilons)]


def _crafted(
    target: Target,
    x: Any,
    y: Any,
    threat: Threat | str,
    attack: Asked,
    seed: int,
    pool: tuple[Any, Any] | None,
) -> AttackResult:
    """What `craft` gives, in the framework of x."""
    made = craft(target, (x, y), threat, attack, seed=seed, pool=pool)
    arrays = {name: value for name, value in vars(made).items() if isinstance(value, np.ndarray)}
    if str(getattr(x, "dtype", "")).endswith("float64"):
        arrays |= {name: arrays[name].astype(np.float64) for name in ARRAYS if name in arrays}
    if is_frame(x):
        _, columns = of_frame(x, "x")
        if columns is not None:
            tables = {name: frame(arrays[name], columns) for name in ("x", "x_adv")}
            arrays |= {name: table.set_axis(x.index) for name, table in tables.items()}
    return replace(made, **{name: like(value, x) for name, value in arrays.items()})


def craft(
    target: Target,
    data: Any,
    threat: Threat | str,
    attack: Asked,
    *,
    samples: int | tuple[int, int] | None = None,
    seed: int = 0,
    pool: tuple[Any, Any] | None = None,
) -> AttackResult:
    """Examples for rows of a source, as NumPy arrays.

    Args:
        data: what `holdfast.data.as_source` takes.
        pool: as in `attack`.

    Raises:
        InputError, SpecError, AccessError: as `evaluate`.
    """
    name, given = _list_of(attack)
    for trial in given:
        if trial.max_margin < 1 or trial.unless:
            raise SpecError(
                f"{trial!r}: max_margin and unless are of a row that earlier attacks of a list "
                "left, but this is the only one."
            )
    ready = prepare(target, data, threat, name or "quick", given, samples)
    if attack is None:
        usual = default_attack(ready.protocol, ready.threat, ready.target.access)
        ready = replace(ready, protocol=usual)
    check_threat(ready)
    if pool is not None:
        ready.gradient_sources.pool = _images(ready.target, pool)
    check_trials(ready)
    parts = [_chunk(ready, seed, *chunk) for chunk in ready.chunks]
    columns = {
        name: np.concatenate([part[name].cpu().numpy() for part in parts]) for name in parts[0]
    }
    target, asked = ready.target, repr(ready.threat)
    if ready.threat.spatial is not None:
        asked = spec.write(ready.threat.spatial.transform)
    return AttackResult(
        **columns,
        attack=name or _called(ready.protocol.trials[0]),
        threat=asked,
        bounds=(target.bounds.low, target.bounds.high),
        layout=target.inputs.layout,
    )


def _called(trial: Trial) -> str:
    """The text of a trial; of an attack alone, under the name that the user gave it."""
    return repr(trial.attack if trial == Trial(trial.attack) else trial)


def _list_of(attack: Asked) -> tuple[str, tuple[Trial, ...]]:
    """The protocol of that name, or the attack as a list of its own."""
    if isinstance(attack, AutoAttack):
        attack = attack.protocol
    if isinstance(attack, str) and attack.strip() in PROTOCOLS:
        return attack.strip(), ()
    return "", () if attack is None else chosen([attack]).trials


def _images(target: Target, given: tuple[Any, Any]) -> Pool:
    """Images that a user holds, as the target takes them, and their classes."""
    source = open_for(target, given)
    check_data(source, target.bounds)
    (source,), _ = numbered(target, source)
    batch, y = read(source, 0, len(source))
    return batch.x, torch.from_numpy(y.astype(np.int64))


def _chunk(ready: Prepared, seed: int, first: int, stop: int) -> dict[str, Tensor]:
    """The columns of rows first to stop."""
    target, threat, trials = ready.target, ready.threat, ready.protocol.trials
    batch, labels = read(ready.source, first, stop)
    batch = target.batcher.place(batch)
    y = torch.from_numpy(labels.astype(np.int64)).to(target.batcher.device)
    ids = torch.arange(first, stop)
    clean = judge.rule(target, batch, seed)
    threat = goals.resolved(threat.of_eps(ids), y, ids, clean.scores, target.task.k, seed)
    best, size = threat.origin(batch.x).clone(), torch.full((len(y),), torch.inf).double()
    cost = {
        name: torch.zeros(len(y), dtype=torch.int64)
        for name in ("queries", "forwards", "backwards")
    }
    skipped = meets_goal(threat, y, y) | ~threat.accepts(batch.x) | nothing_to_lose(target, batch)
    right = ((clean.label == y) & ~skipped).cpu()
    margin, lowest = _margin(target, clean, y), size.clone()
    searched: dict[int, Tensor] = {}
    units = [(i, *unit) for i, trial in enumerate(trials) for unit in trial.units(target.task.k)]
    for number, restart, rank in units:
        trial = trials[number]
        open_ = right.clone()
        if threat.bounded:
            open_ &= ~target.task.settled(size.isfinite(), lowest)
        open_ &= ~(torch.minimum(lowest, margin) > trial.max_margin * margin)
        for asked in asked_before(trials, number, searched):
            open_ &= ~asked
        left = open_.nonzero()[:, 0]
        found = run(
            trial.attack,
            ready.gradient_sources(trial.gradient),
            batch[left],
            y[left],
            threat.of_rows(left),
            ids=ids[left],
            seed=seed,
            restart=restart,
            rank=rank,
            clean=picked(clean.scores, left),
            warm_start=best[left] if trial.attack.warm else None,
            stop=trial.attack.bounded or (len(trials) > 1 and threat.bounded),
            pool=ready.gradient_sources.images(trial.attack),
        )
        smallest = found.size.where(found.broken, torch.inf).cpu()
        reached = found.margin.cpu()
        better = (smallest < size[left]) | (size[left].isinf() & ~(reached > lowest[left]))
        if target.task.enough and threat.bounded:
            lower = smallest.isfinite() & (reached < lowest[left])
            better = lower | (better & size[left].isinf())
        best[left[better]] = found.best[better.to(best.device)]
        size[left[better]] = smallest[better]
        lowest[left] = torch.minimum(lowest[left], reached)
        asked = searched.setdefault(number, torch.zeros_like(right))
        asked[left] |= found.forwards.cpu() > 0
        for name, column in cost.items():
            column[left] += getattr(found, name).cpu()
    return _judged(target, threat, batch, y, best, clean, skipped, seed) | cost | {"id": ids}


def _margin(target: Target, clean: judge.Ruling, y: Tensor) -> Tensor:
    """The clean margin of each row, float64; inf where the model gives labels alone."""
    if clean.scores is None:
        return torch.full((len(y),), torch.inf).double()
    return target.task.margin(clean.scores, y.clamp(0, target.task.k - 1)).double().cpu()


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
    """What the judge says of the best points, as floats and as images of 8 bits."""
    wrong, x = (clean.label != y) & ~skipped, batch.x

    def success(point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        legal, size = judge.within(target, threat, batch, point)
        label = judge.rule(target, batch.with_x(threat.apply(x, point)), seed).label
        return legal & meets_goal(threat, label, y) & ~wrong & ~skipped, size, label

    hit, size, after = success(best)
    columns: dict[str, Tensor] = {}
    # [h, w]: an image of one channel, where the user says so by --png
    image = (x.ndim == 3 and not target.inputs.context) or perceptual.pictures(target, x)
    if image and threat.additive and target.bounds.each is None:
        columns["as_8bit"] = on_8bit(target, threat, x, best)
        columns["survives_8bit"] = success(columns["as_8bit"])[0] & hit
    return columns | {
        "x": x,
        "x_adv": threat.apply(x, best),
        "y": batch.context.get(TRUTH, y),
        "success": hit,
        "wrong": wrong,
        "skipped": skipped,
        "size": size.where(hit, torch.nan),
        "before": clean.label,
        "after": after,
    }
