"""Two runs, sample by sample: what was gained, what was lost, and whether it could be chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from holdfast.arguments import checked
from holdfast.errors import InputError
from holdfast.intervals import Interval, interval
from holdfast.runs import store
from holdfast.runs.chance import Answers
from holdfast.runs.manifest import Facts, Manifest, Metrics
from holdfast.runs.metrics import HELD, Z, column_of
from holdfast.runs.run import Run, folder_of
from holdfast.urls import named


class Paired(BaseModel):
    """One yes-or-no figure of the same samples in two runs."""

    name: str
    first: Interval
    second: Interval
    gained: int  # samples that hold in the second run alone
    lost: int  # in the first alone
    change: float  # second - first
    low: float  # 95 % interval of the change (Agresti and Min 2005)
    high: float
    # 95 % interval of the change, by drawing the samples anew in pairs
    bootstrap: tuple[float, float]
    p: float  # of McNemar's exact test: how often chance alone splits gained and lost so unevenly


class PartChange(BaseModel):
    """One class or group, as the right and the robust shares in the two runs."""

    name: str
    n: int
    clean: tuple[float, float]
    robust: tuple[float, float]


class Loss(BaseModel):
    """A class of which the second run has fewer right, by more than chance."""

    name: str
    kind: Literal["clean", "robust"]
    n: int
    first: float  # the share that is right, or robust
    second: float


class Average(BaseModel):
    """Precision, recall or F1, the mean over the classes, or a figure of a detector or a segmenter,
    in the two runs; None where it is not known."""

    name: str
    clean: tuple[float | None, float | None]
    attacked: tuple[float | None, float | None]


class SizeChange(BaseModel):
    """The smallest changes found that break a sample, in the two runs, where eps is inf."""

    n: int  # samples that both runs broke
    first: float | None  # median size, in the threat's norm
    second: float | None
    larger: int  # samples whose change is larger in the second run
    smaller: int
    p: float  # of the sign test: how often chance alone splits larger and smaller so unevenly


class Comparison(BaseModel):
    runs: tuple[str, str]
    models: tuple[str, str]
    verdicts: tuple[str, str]
    threat: str
    n: int
    remarks: list[str]
    # clean accuracy; robust accuracy where eps is finite; certified accuracy where both have it
    figures: list[Paired]
    sizes: SizeChange | None = None  # where eps is inf
    averages: list[Average] = []  # empty where a run has none, as a regression
    of_task: list[Average] = []  # as `Metrics.of_task`, where both runs have the figure
    per_class: list[PartChange]
    per_group: list[PartChange] = []  # where both runs have the same
    class_mean: PartChange | None = None  # the mean of the classes, each of which counts alike
    losses: list[Loss] = []  # what the second run lost, the largest first
    # why the second model's answers are no better than chance; empty where they are better
    knows_nothing: str = ""
    # rows of one model that are certified in one run and broken in the other
    contradictions: list[int] = []

    def __str__(self) -> str:
        lines = [f"{self.runs[0]} and {self.runs[1]}: {self.n:,} rows under {self.threat}"]
        lines += [
            f"{f.name}: {f.first:.3f} and {f.second:.3f}, a change of {f.change:+.3f} "
            f"[{f.low:+.3f}, {f.high:+.3f}]; {f.gained:,} rows gained, {f.lost:,} lost"
            for f in self.figures
        ]
        lines += [
            f"{f.name}, under attack: {f.attacked[0]:.3f} and {f.attacked[1]:.3f}"
            for f in self.of_task
            if None not in f.attacked
        ]
        return "\n".join([*lines, *self.remarks, *filter(None, [self.knows_nothing])])


@checked
def compare(first: Run | Path | str, second: Run | Path | str) -> Comparison:
    """Compare two finished runs, or their folders, on the samples that both attacked.

    Its text (`str`) says what changed; its fields are what `holdfast compare --json` prints.

    Raises:
        InputError: a run is missing, or they differ in data, rows or threat.
    """
    folders = folder_of(first), folder_of(second)
    facts = store.read_manifest(folders[0]), store.read_manifest(folders[1])
    _check_same(folders, *facts)
    with store.untrusted(folders[1]):
        return _compared(folders, facts)


def changed(first: Path, second: Path) -> pa.Table:
    """The samples of two finished runs whose status differs: `id`, and the statuses `first` and
    `second`.

    Raises:
        InputError: as `compare`.
    """
    folders = first, second
    facts = store.read_manifest(first), store.read_manifest(second)
    _check_same(folders, *facts)
    with store.untrusted(second):
        tables, _ = _asked(folders, facts)
        statuses = [column_of(table, "status") for table in tables]
        at = np.flatnonzero(statuses[0] != statuses[1])
        ids = tables[0].column("id").to_numpy()[at]
        return pa.table({"id": ids, "first": statuses[0][at], "second": statuses[1][at]})


def _compared(folders: tuple[Path, Path], facts: tuple[Manifest, Manifest]) -> Comparison:
    tables, skipped = _asked(folders, facts)
    label = tables[0].column("label").to_numpy()
    predicted = [table.column("clean_prediction").to_numpy() for table in tables]
    held = {
        "clean": [answers == label for answers in predicted],
        "robust": [_among(table, *HELD) for table in tables],
    }
    figures = [paired(f"{name} accuracy", *columns) for name, columns in held.items()]
    if None not in (one.certification for one in facts):
        proved = [_among(table, "certified") for table in tables]
        figures.append(paired("certified accuracy", *proved))
    sizes = None
    if math.isinf(facts[0].threat.eps):
        figures, sizes = figures[:1], _sizes(tables)
    group, name = _group(tables), facts[0].data.class_name
    classes = [_part(name(c), label == c, held) for c in np.unique(label).tolist()]
    return Comparison(
        runs=(named(folders[0]), named(folders[1])),
        models=(facts[0].model.spec, facts[1].model.spec),
        verdicts=(facts[0].verdict.status, facts[1].verdict.status),
        threat=facts[0].asked,
        n=len(label),
        remarks=_remarks(*facts, skipped),
        figures=figures,
        sizes=sizes,
        averages=_averages(*(one.metrics for one in facts)),
        of_task=_of_task(*(one.metrics for one in facts)),
        per_class=classes,
        class_mean=_mean(classes),
        losses=[x for x in _losses(label, held, name) if sizes is None or x.kind == "clean"],
        knows_nothing=_nothing(facts[1], label, predicted[1], name),
        per_group=[_part(str(name), group == name, held) for name in np.unique(group)],
        contradictions=_contradictions(tables, facts),
    )


def _sizes(tables: Sequence[pa.Table]) -> SizeChange:
    broken = np.all([_among(table, "broken") for table in tables], 0)
    first, second = (table.column("size").to_numpy()[broken] for table in tables)
    larger, smaller = int((second > first).sum()), int((second < first).sum())
    medians = [float(np.median(size)) if len(size) else None for size in (first, second)]
    return SizeChange(
        n=len(first),
        first=medians[0],
        second=medians[1],
        larger=larger,
        smaller=smaller,
        p=_mcnemar(larger, smaller),
    )


def _contradictions(tables: Sequence[pa.Table], facts: tuple[Manifest, Manifest]) -> list[int]:
    if facts[0].model.fingerprint != facts[1].model.fingerprint:
        return []
    (one, other), (broken, lost) = (
        [_among(table, status) for table in tables] for status in ("certified", "broken")
    )
    return tables[0].column("id").to_numpy()[(one & lost) | (other & broken)].tolist()


def _averages(first: Metrics, second: Metrics) -> list[Average]:
    names = ("precision", "recall", "f1")
    pairs = [(name, getattr(first, name), getattr(second, name)) for name in names]
    return [
        Average(name=name, clean=(a.clean, b.clean), attacked=(a.attacked, b.attacked))
        for name, a, b in pairs
        if a.clean is not None and b.clean is not None
    ]


def _of_task(first: Metrics, second: Metrics) -> list[Average]:
    pairs = [
        (name, a, second.of_task[name])
        for name, a in first.of_task.items()
        if name in second.of_task
    ]
    return [
        Average(name=name, clean=(a.clean, b.clean), attacked=(a.attacked, b.attacked))
        for name, a, b in pairs
    ]


def _asked(folders: Sequence[Path], facts: Sequence[Manifest]) -> tuple[list[pa.Table], int]:
    """The samples of runs of the same rows, but those that one of them skipped; and how many these
    are."""
    tables = []
    for folder, one in zip(folders, facts, strict=True):
        table = store.read_samples(folder)
        store.ids_of(folder, one, table)
        tables.append(table.sort_by("id"))
    asked = np.all([~_among(table, "skipped") for table in tables], 0)
    return [table.filter(pa.array(asked)) for table in tables], int((~asked).sum())


def _group(tables: Sequence[pa.Table]) -> np.ndarray:
    """The groups of the rows; none where the tables have none, or others."""
    found = [table.column("group") for table in tables if "group" in table.column_names]
    if len(found) < len(tables) or not found[0].equals(found[1]):
        return np.empty(0, str)
    return found[0].to_numpy(zero_copy_only=False).astype(str)


def _part(name: str, rows: np.ndarray, held: dict[str, list[np.ndarray]]) -> PartChange:
    clean, robust = (
        (float(a[rows].mean()), float(b[rows].mean())) for a, b in (held["clean"], held["robust"])
    )
    return PartChange(name=name, n=int(rows.sum()), clean=clean, robust=robust)


def _mean(classes: Sequence[PartChange]) -> PartChange | None:
    """The mean of the classes; None where there are not several."""
    if len(classes) < 2:
        return None
    clean, robust = (
        np.mean([getattr(c, kind) for c in classes], axis=0).tolist()
        for kind in ("clean", "robust")
    )
    return PartChange(
        name="mean of classes",
        n=sum(c.n for c in classes),
        clean=tuple(clean),
        robust=tuple(robust),
    )


def _losses(
    label: np.ndarray, held: dict[str, list[np.ndarray]], name: Callable[[int], str]
) -> list[Loss]:
    """Classes of which the second run has fewer rows right, by more than chance (the paired exact
    test), or none."""
    from scipy.stats import binomtest

    classes, found = np.unique(label).tolist(), []
    for c in classes:
        for kind in ("clean", "robust"):
            first, second = (column[label == c] for column in held[kind])
            lost, gained = int((first & ~second).sum()), int((second & ~first).sum())
            if lost <= gained:
                continue
            p = binomtest(lost, lost + gained, alternative="greater").pvalue
            if p > 0.05 / len(classes) and (second.any() or lost < 2):
                continue
            found.append(
                Loss(
                    name=name(c), kind=kind, n=len(first), first=first.mean(), second=second.mean()
                )
            )
    return sorted(found, key=lambda loss: loss.second - loss.first)


def _nothing(
    facts: Facts, label: np.ndarray, predicted: np.ndarray, name: Callable[[int], str]
) -> str:
    """Why the clean answers are no better than chance; empty where they are better."""
    if facts.model.task != "classes" or not len(label):
        return ""
    answers = Answers(label, predicted, facts.model.classes)
    given = np.unique(predicted)
    if given.max() < 0 and answers.one_class is None:
        return "It never answers."
    if len(given) == 1 and answers.one_class is None:
        return f"It answers class {name(int(given[0]))} to every input."
    if answers.chance_level():
        return "Its clean answers are no better than chance."
    return ""


def paired(name: str, first: np.ndarray, second: np.ndarray) -> Paired:
    """The paired figures of two columns of truths, [n] each."""
    n, gained, lost = len(first), int((second & ~first).sum()), int((first & ~second).sum())
    # Half a sample is added to each of the four kinds: without it the interval has no width where
    # nothing changed.
    g, b, m = gained + 0.5, lost + 0.5, n + 2
    spread = Z * math.sqrt(g + b - (g - b) ** 2 / m) / m
    return Paired(
        name=name,
        first=interval(int(first.sum()), n),
        second=interval(int(second.sum()), n),
        gained=gained,
        lost=lost,
        change=(gained - lost) / max(n, 1),
        low=(g - b) / m - spread,
        high=(g - b) / m + spread,
        bootstrap=_bootstrap(gained, lost, n),
        p=_mcnemar(gained, lost),
    )


def _mcnemar(gained: int, lost: int) -> float:
    """The exact test: a fair coin splits the changed rows at least so unevenly."""
    from scipy.stats import binomtest

    if not gained + lost:
        return 1.0
    return float(binomtest(gained, gained + lost).pvalue)


def _bootstrap(gained: int, lost: int, n: int, draws: int = 10_000) -> tuple[float, float]:
    """Percentiles of the change. To draw pairs is to draw their three kinds: gained, lost and
    equal."""
    if not n:
        return 0.0, 0.0
    kinds = np.random.default_rng(0).multinomial(
        n, [gained / n, lost / n, 1 - (gained + lost) / n], draws
    )
    low, high = np.quantile((kinds[:, 0] - kinds[:, 1]) / n, [0.025, 0.975])
    return float(low), float(high)


class Spread(BaseModel):
    """The robust accuracy of one model over runs that differ in their seed alone."""

    seeds: list[int]
    values: list[float]
    mean: float
    deviation: float  # of a run, by n - 1
    agreed: float  # the share of samples with the same outcome in all runs
    worst: Interval  # robust in every run: all seeds together are one stronger attack


def spread(folders: Sequence[Path | str]) -> Spread | None:
    """How far the figure depends on the seed; None where the runs are not of one model with several
    seeds.

    Raises:
        InputError: a run is missing, or they differ in data, rows or threat.
    """
    paths = [Path(folder) for folder in folders]
    facts = [store.read_manifest(path) for path in paths]
    seeds = [one.seed for one in facts]
    if len({one.model.fingerprint for one in facts}) > 1 or len(set(seeds)) < max(2, len(seeds)):
        return None
    if any(one.protocol != facts[0].protocol for one in facts):
        return None
    for path, one in zip(paths[1:], facts[1:], strict=True):
        _check_same((paths[0], path), facts[0], one)
    tables, _ = _asked(paths, facts)
    held = np.stack([_among(table, *HELD) for table in tables])
    if not held.size:
        return None
    values = held.mean(1)
    return Spread(
        seeds=seeds,
        values=values.tolist(),
        mean=float(values.mean()),
        deviation=float(values.std(ddof=1)),
        agreed=float((held == held[0]).all(0).mean()),
        worst=interval(int(held.all(0).sum()), held.shape[1]),
    )


def _check_same(folders: tuple[Path, Path], a: Facts, b: Facts) -> None:
    parts = [", ".join(f"{start}:{stop}" for start, stop in facts.data.parts) for facts in (a, b)]
    said = [f"{facts.data.spec} {facts.data.fingerprint[:12]}" for facts in (a, b)]
    for what, same, one, other in (
        ("threats", a.asked == b.asked, a.asked, b.asked),
        ("data", a.data.fingerprint == b.data.fingerprint, *said),
        ("rows", parts[0] == parts[1], *parts),
    ):
        if not same:
            raise InputError(
                f"{folders[0]} and {folders[1]} cannot be compared: their {what} differ, {one} and "
                f"{other}; evaluate both models on the same {what}."
            )


def _remarks(a: Facts, b: Facts, skipped: int) -> list[str]:
    same = a.model.fingerprint == b.model.fingerprint
    said = {
        f"The protocols differ ({a.protocol.name}, {b.protocol.name}): the attacks were not the "
        "same.": a.protocol != b.protocol,
        "Both runs are of the same model, by its fingerprint.": same,
        "Of a plain function the fingerprint is its name alone: the two may still differ.": same
        and a.model.access != "gradients",
        f"Left out, since one run skipped them: {skipped}.": skipped > 0,
    }
    return [text for text, holds in said.items() if holds]


def _among(table: pa.Table, *statuses: str) -> np.ndarray:
    return np.isin(column_of(table, "status"), statuses)
