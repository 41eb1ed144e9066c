"""Training data that may be poisoned: rows with a planted trigger, wrong labels, rows that occur
twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdfast.arguments import checked
from holdfast.audit.groups import (
    AMONG,
    FEWEST,
    LEAST_GAP,
    MOST_RESEMBLANCE,
    features,
    parted,
    spectral,
)
from holdfast.audit.labels import MOST_AGREEING, NEIGHBOURS, agreeing, twins
from holdfast.audit.prepare import audit_folder, chosen, opened
from holdfast.data.source import HELD, Source, sized
from holdfast.errors import InputError
from holdfast.evaluation.facts import Names
from holdfast.evaluation.recheck import read_rows
from holdfast.intervals import Interval, exact_interval
from holdfast.pictures import grid
from holdfast.runs import store
from holdfast.runs.audits import AuditVerdict, DataAudit, DataResult, LabelGroups, Planted
from holdfast.runs.manifest import Costs
from holdfast.targets.target import Access, Bounds, sealed
from holdfast.threats.images import channels_first
from holdfast.training.poison import poisoned

EVIDENCE = "rows.safetensors"
ROWS = 100_000
SHOWN = 10  # rows of each group in the picture of a flagged label
AT_ONCE = 1000  # rows that the model is asked about


@checked
def audit_data(
    model: Any,
    data: Any,
    *,
    poison: str | None = None,
    rows: int = ROWS,
    seed: int = 0,
    out: Path | str | None = None,
    names: Names | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> tuple[DataAudit, Path]:
    """Look in the rows that a model was trained on for those that were planted.

    Of each label, the rows are parted in two groups by what the model makes of them; a label is
    flagged where the groups lie far apart, and one of them resembles rows of other labels: see
    `holdfast.audit.groups`. Rows are counted whose neighbours have other labels, and rows that
    occur twice.

    Args:
        model: what `holdfast.wrap` takes, trained on these rows; best a network of torch.
        data: the training rows, as `holdfast.evaluate` takes them.
        poison: planted before, as `holdfast.train` does it with this seed, to see what is found.
        rows: the most rows that are looked at, drawn at random.
        seed: of the draws, and of the poison.
        out: the folder, or its URL; None: a new temporary one, which is the caller's to delete.
        on_progress: called with what is done next.

    Returns:
        The audit, and its folder.

    Raises:
        SpecError: the model is not one of classes, or answers at random; no such poison.
        InputError: the data or the poison do not fit the model; the rows do not fit in memory.
    """
    started, say = time.monotonic(), on_progress or (lambda what: None)
    audited = opened(model, {"rows": data}, Access.SCORES)
    target, source = audited.target, audited.sources["rows"]
    changed = np.zeros(len(source), dtype=bool)
    if poison is not None:
        source = poisoned(target, source, poison, seed)
        changed = source.changed
    at = chosen(len(source), rows, seed).sort().values.numpy()
    if len(at) < 2 * FEWEST:
        raise InputError(
            f"{source.name} has {len(at)} rows, but rows are compared with others of their label "
            f"and of other labels; give at least {2 * FEWEST}."
        )
    x, y = _rows(source, at)
    with audit_folder(out) as folder, sealed(seed):
        say(f"asking the model about {len(x):,} rows")
        parts = [features(target, part) for part in torch.from_numpy(x).split(AT_ONCE)]
        if len(odd := (~torch.cat(parts).isfinite()).any(1).nonzero()[:, 0]):
            raise InputError(
                f"what the model makes of row {at[int(odd[0])]} of {source.name} before its last "
                "layer is no finite number, so its rows cannot be compared."
            )
        say("looking for groups and neighbours")
        found = _evidence(torch.cat(parts).numpy(), x, y, target.task.k, seed)
        width = target.bounds.high - target.bounds.low
        twice = twins(x.reshape(len(x), -1), y, width)
        evidence = found | {"rows": at, "labels": y}
        evidence |= {"twice": twice.twice, "at_odds": twice.at_odds}
        if poison is not None:
            evidence["changed"] = changed[at]
        store.write_tensors(folder / EVIDENCE, evidence)
        result = judged(evidence)
        for label in result.labels:
            if label.flagged:
                own = y == label.label
                shown = [x[own & (evidence["planted"] == side)] for side in (True, False)]
                _picture(folder / label.picture, shown, target.bounds, target.inputs.layout)
        audit = audited.written(
            DataAudit,
            folder,
            names,
            seed,
            settings={"rows": rows, "poison": poison},
            result=result,
            verdict=verdict(result),
            costs=Costs(forwards=len(x), seconds=time.monotonic() - started),
        )
    return audit, folder


def _rows(source: Source, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [n, *shape] and labels [n] of these rows."""
    size = 4 * int(np.prod(source.shape))
    if len(at) * size > HELD:
        raise InputError(
            f"{len(at):,} rows of {source.name} take {sized(len(at) * size)}, and an audit holds "
            f"{sized(HELD)} of them; give --samples {HELD // size}."
        )
    batch, y = read_rows(source, at)
    return batch.x.numpy(), y.astype(np.int64)


def _evidence(
    values: np.ndarray, x: np.ndarray, y: np.ndarray, k: int, seed: int
) -> dict[str, np.ndarray]:
    """Of each label its groups, of each row its part in them."""
    flat, draw = x.reshape(len(x), -1), np.random.default_rng(seed)
    planted, score = np.zeros(len(y), dtype=bool), np.zeros(len(y))
    groups = np.full((k, 3), np.nan)
    for label in range(k):
        own, others = np.flatnonzero(y == label), np.flatnonzero(y != label)
        if not len(own):
            continue
        score[own] = spectral(values[own])
        others = flat[draw.permutation(others)[:AMONG]]
        found = parted(values[own], flat[own], others, seed)
        if found is not None:
            planted[own], groups[label] = found.planted, (found.gap, *found.apart)
    return {
        "groups": groups,
        "planted": planted,
        "score": score,
        "agreeing": agreeing(values, y),
    }


def judged(evidence: Mapping[str, np.ndarray]) -> DataResult:
    """What follows from the evidence."""
    y, planted = evidence["labels"], evidence["planted"].astype(bool)
    labels = [
        _label(label, planted[y == label], *map(float, numbers))
        for label, numbers in enumerate(evidence["groups"])
        if (y == label).any()
    ]
    suspect = planted & np.isin(y, [one.label for one in labels if one.flagged])
    doubted = evidence["agreeing"] <= MOST_AGREEING
    check = None
    if "changed" in evidence:
        changed = evidence["changed"].astype(bool)
        check = Planted(
            found=_share(suspect[changed]),
            false_alarms=_share(suspect[~changed]),
            ranked=_share(_highest(evidence["score"], y, changed)[changed]),
            doubted=_share(doubted[changed]),
            falsely_doubted=_share(doubted[~changed]),
        )
    return DataResult(
        rows=len(y),
        least_gap=LEAST_GAP,
        most_resemblance=MOST_RESEMBLANCE,
        labels=labels,
        suspects=int(suspect.sum()),
        first=[int(row) for row in evidence["rows"][suspect][:20]],
        neighbours=NEIGHBOURS,
        most_agreeing=MOST_AGREEING,
        doubted=int(doubted.sum()),
        twice=int(evidence["twice"].sum()),
        at_odds=int(evidence["at_odds"].sum()),
        planted=check,
    )


def _label(
    label: int, planted: np.ndarray, gap: float, apart: float, rest_apart: float
) -> LabelGroups:
    if np.isnan(gap):
        said = "too few rows to judge"
    elif gap < LEAST_GAP:
        said = "the model sees one kind of rows"
    elif apart > MOST_RESEMBLANCE * rest_apart:
        said = "the model sees two kinds of rows, but neither resembles other labels"
    else:
        said = ""
    return LabelGroups(
        label=label,
        rows=len(planted),
        gap=gap,
        share=float(planted.mean()),
        apart=apart,
        rest_apart=rest_apart,
        flagged=not said,
        reason=said or "the model sees two kinds of rows, and one resembles other labels",
    )


def _highest(score: np.ndarray, y: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Rows whose score is among the highest of their label, one and a half times as many as were
    changed there: what Tran et al. take out."""
    taken = np.zeros(len(y), dtype=bool)
    for label in np.unique(y[changed]):
        own = np.flatnonzero(y == label)
        count = round(1.5 * changed[own].sum())
        taken[own[np.argsort(-score[own])[:count]]] = True
    return taken


def _share(holds: np.ndarray) -> Interval:
    return exact_interval(int(holds.sum()), len(holds))


def verdict(result: DataResult) -> AuditVerdict:
    flagged = [one for one in result.labels if one.flagged]
    if flagged:
        names = ", ".join(str(one.label) for one in flagged)
        return AuditVerdict(
            found=True,
            reason=f"{result.suspects:,} rows look planted. The model sees them as a kind of their "
            f"own within the label {names}, and they resemble rows of other labels.",
        )
    if all(one.gap is None for one in result.labels):
        return AuditVerdict(found=None, reason="No label has rows enough to judge.")
    return AuditVerdict(
        found=False,
        reason="Of no label the rows are of two kinds of which one resembles other labels. Poison "
        "that the model did not learn, or that keeps the labels right, may go unseen.",
    )


def _picture(path: Path, groups: list[np.ndarray], bounds: Bounds, layout: str) -> None:
    """Rows of the group that looks planted, above rows of the other; nothing where inputs are no
    pictures."""
    x = torch.from_numpy(np.concatenate([rows[:SHOWN] for rows in groups]))
    if x.ndim in (3, 4) and len(x) == 2 * SHOWN:
        images = 2 * (channels_first(x, layout) - bounds.low) / (bounds.high - bounds.low) - 1
        store.write_bytes(path, grid(images.numpy(), SHOWN))
