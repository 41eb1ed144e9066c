"""Every figure of a run, computed from its table of samples and nothing else."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from holdfast import spec
from holdfast.decisions import REFUSED, UNASKED
from holdfast.errors import InputError
from holdfast.intervals import Interval, Z, at_most, interval, mean_interval
from holdfast.runs import detection, segmentation
from holdfast.runs.answered import Answered
from holdfast.runs.manifest import (
    BinaryMetrics,
    Calibration,
    ClassMetrics,
    Confusion,
    CorruptionInfo,
    CorruptionMetrics,
    CorruptionPoint,
    CurvePoint,
    Errors,
    GroupMetrics,
    Metrics,
    Pair,
    Perceptual,
    QueryPoint,
    Record,
    Refusals,
    RelationMetrics,
    Restart,
    Sizes,
    Status,
    Survivors,
)

SAMPLES = pa.schema(
    [
        ("id", pa.int64()),  # row of the source
        ("label", pa.int64()),
        ("clean_prediction", pa.int64()),  # -1: no finite scores; -3: the model refuses
        # on the stored example where broken, else on the clean input
        ("attacked_prediction", pa.int64()),
        ("clean_confidence", pa.float32()),  # of the prediction, by softmax
        ("attacked_confidence", pa.float32()),
        ("status", pa.string()),
        # index into run.json's trials; null: not broken at the threat's eps, or found by the proofs
        ("broken_by", pa.int32()),
        ("size", pa.float64()),  # of the stored example, in the threat's norm; null: none found
        ("margin", pa.float64()),  # lowest margin seen at a legal point
        ("queries", pa.int64()),
        ("forwards", pa.int64()),
        ("backwards", pa.int64()),
        ("zero_gradients", pa.int64()),  # backwards that gave exactly zero
        # the whole protocol was run at the threat's eps, or the row broke before its end
        ("finished", pa.bool_()),
        # no legal change of at most this size is wrong, as is proved; null: nothing is
        ("certified_radius", pa.float64()),
        ("psnr", pa.float64()),  # of the stored example, in decibels; null: none found, or no image
        ("ssim", pa.float64()),
    ]
)

# columns that some models and data have besides, in this order
FURTHER = pa.schema(
    [
        # of a model whose task is not one of k classes, k values each; an attacked output is like
        # an attacked prediction
        ("truth", pa.list_(pa.float64())),
        ("clean_output", pa.list_(pa.float64())),
        ("attacked_output", pa.list_(pa.float64())),
        # of boxes and masks: the truth holds nothing that could be lost, and the row is skipped
        ("nothing_to_lose", pa.bool_()),
        # a robust row's worst input is wrong but for that; null: not asked
        ("robust_by_refusal", pa.bool_()),
        ("lpips", pa.float64()),  # of the stored example, by the network that the user gave
        # whether the example of a broken row still fools the model as an image file of 8 bits holds
        # it; null: no example
        ("broken_8bit", pa.bool_()),
        # of a table whose rows were searched again without the relations of its schema: for each
        # relation whether the example so found of a robust row does not satisfy it (1), or does, or
        # there is none (0); -1: not searched; and the passes of that search
        ("relations_broken", pa.list_(pa.int8())),
        ("relations_passes", pa.int64()),
        # where rows were certified: the method that proved the row, or else why none did; neither
        # of rows that were not asked about
        ("certified_by", pa.string()),
        ("not_certified", pa.string()),
        # of a smoothed model: the class that the first votes chose, and how many of the draws gave
        # it
        ("voted_class", pa.int64()),
        ("votes", pa.int64()),
        ("target_class", pa.int64()),  # that counts as a success, where each row has its own
        ("group", pa.string()),  # of data whose rows have groups
    ]
)


def schema_of(columns: Container[str]) -> pa.Schema:
    """All of `SAMPLES`, and those of `FURTHER` that are among `columns`."""
    return pa.schema([*SAMPLES, *(field for field in FURTHER if field.name in columns)])


def narrow(table: pa.Table) -> pa.Table:
    """The same values in less memory: whole numbers in 32 bits where these suffice, and texts as
    places in a dictionary."""
    columns = []
    for column in table.columns:
        if pa.types.is_string(column.type):
            column = column.dictionary_encode()
        if pa.types.is_int64(column.type):
            with suppress(pa.ArrowInvalid):
                column = column.cast(pa.int32())
        columns.append(column)
    return pa.table(columns, table.column_names)


def column_of(table: pa.Table, name: str) -> np.ndarray:
    """The values of a column [n]; equal texts are one object, however many rows have them."""
    cells = table.column(name)
    if not (pa.types.is_string(cells.type) or pa.types.is_dictionary(cells.type)):
        return cells.to_numpy(zero_copy_only=False)
    coded = cells.combine_chunks().dictionary_encode()
    known = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
    return known[coded.indices.fill_null(len(known) - 1).to_numpy()]


def _flags(table: pa.Table, name: str) -> np.ndarray:
    """Truth values; what is null is not true."""
    return table.column(name).fill_null(False).to_numpy(zero_copy_only=False)


NOT_SEARCHED = -1  # in relations_broken
HELD = ("robust", "certified")  # the statuses of rows that count as robust


def samples_for(width: float, share: float = 0.5) -> int:
    """How many samples bring the 95 % interval of a share down to this width; a half is the worst
    share.

    Raises:
        InputError: the width is not between 0 and 1.
    """
    if not 0 < width < 1:
        raise InputError(
            f"an interval of width {width:g} was asked for; a share's lies between 0 and 1."
        )

    def wide(n: int) -> float:
        return 2 * Z * math.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2) / (1 + Z**2 / n)

    return 1 + bisect_left(range(1, 1 << 60), -width, key=lambda n: -wide(n))


def survivors(last: Restart) -> Survivors:
    """What another round would still break, from the last one.

    A row that a round breaks with probability p is left by it and broken by the next one with
    p (1 - p). By Jensen's inequality the mean of these is at most that of the mean p, so the
    estimate is rather too high than too low. So is the limit: the number of broken rows varies less
    where rows differ than where they are alike (Hoeffding 1956).
    """
    if not last.attacked:
        return Survivors(attacked=0, broken=0, expected=0.0, high=0.0)
    left, limit = last.attacked - last.broken, at_most(last.broken, last.attacked, 0.95)
    return Survivors(
        attacked=last.attacked,
        broken=last.broken,
        expected=left * (last.broken / last.attacked),
        high=left * limit,
    )


def measure(
    samples: pa.Table,
    classes: int,
    limits: Sequence[tuple[float, float]],
    class_names: Sequence[str] | None = None,
    task: str = "classes",
    objects: Sequence[str] | None = None,
) -> Metrics:
    """All metrics of a table of samples.

    Skipped rows (never attacked) are in no denominator; but those that had nothing to lose are in
    the figures of boxes. Failed and unstable ones are, and do not count as robust.

    Args:
        samples: rows of `SAMPLES`.
        classes: how many the model knows.
        limits: (eps, largest legal size) of each eps at which the protocol was run, the threat's
            own first.
        class_names: for the per-class table.
        task: what is right; of one that is not one of k classes the label is 0, and another
            prediction says in which way the model is wrong.
        objects: the names of the classes that truths speak of, where they are no labels.
    """
    everything = column_of(samples, "status")
    counts, table = Counter(everything.tolist()), samples
    if counts["skipped"]:
        table = samples.filter(pa.array(everything != "skipped"))
    status, label, clean = (column_of(table, c) for c in ("status", "label", "clean_prediction"))
    size = column_of(table, "size").astype(float)
    right, broken, robust = label == clean, status == "broken", np.isin(status, HELD)
    n, attacked = len(status), int(right.sum())
    groups = _groups(table, right, robust)

    shown = Metrics(
        clean_accuracy=interval(attacked, n),
        robust_accuracy=interval(int(robust.sum()), n),
        attack_success_rate=interval(int(broken.sum()), attacked),
        counts={s: counts.get(s, 0) for s in get_args(Status)},
        sizes=_sizes(size[broken]),
        perceptual=_perceptual(table, broken),
        curve=_curve(size, status, limits, attacked, n),
        **_certified(table, status),
        per_group=groups,
        worst_group=min(groups, key=lambda g: g.robust_accuracy.value or 0, default=None),
        **_queries(column_of(table, "queries")[broken], attacked),
    )
    if shown.certified_accuracy is not None:
        _prove(shown.curve, table, right)
    if "broken_8bit" in table.column_names:
        mended = broken & ~_flags(table, "broken_8bit")
        shown.accuracy_8bit = interval(int((robust | mended).sum()), n)
    if "votes" in table.column_names:
        shown.abstentions = interval(int((clean == REFUSED).sum()), n)
    if "robust_by_refusal" in table.column_names:
        shown.refusals = Refusals(
            clean=interval(int((clean == REFUSED).sum()), n),
            attacked=interval(int(_flags(table, "robust_by_refusal").sum()), attacked),
        )
    if (figures := OF_TASK.get(task.partition("(")[0])) is not None:
        options, called = spec.call(task, "task")[2], dict(enumerate(objects or ()))
        if "nothing_to_lose" in table.column_names:  # such an image may have boxes, too
            empty = _flags(samples, "nothing_to_lose")
            table = samples.filter(pa.array((everything != "skipped") | empty))
        truth, clean, attacked = _outputs(table)
        return shown.model_copy(update=figures(Answered(truth, clean, attacked, options, called)))
    names = dict(enumerate(class_names or map(str, range(classes + 1))))
    return shown.model_copy(update=_by_class(table, classes, names, right, robust, task))


def with_intervals(of: Any, kind: Callable[[int, int], Interval]) -> Any:
    """A record whose shares of rows have intervals of this kind; figures of a task, whose
    intervals are no such shares', stay as they are."""
    if isinstance(of, Interval):
        return of if of.value is None else kind(round(of.value * of.n), of.n)
    if isinstance(of, list):
        return [with_intervals(one, kind) for one in of]
    if not isinstance(of, Record):
        return of
    kept = {"of_task", "of_objects", "corruptions"}
    changed = {n: with_intervals(v, kind) for n, v in dict(of).items() if n not in kept}
    return of.model_copy(update=changed)


def without_relations(table: pa.Table, names: Sequence[str]) -> RelationMetrics | None:
    """The figures of the search without the relations of these names; None where there was none, or
    time ran out before its end.

    Raises:
        InputError: the table tells of another number of relations.
    """
    if "relations_broken" not in table.column_names or not names:
        return None
    status, cells = column_of(table, "status"), table.column("relations_broken").to_pylist()
    if any(cell is None or len(cell) != len(names) for cell in cells):
        raise InputError(f"relations_broken has other relations than the {len(names)} of run.json.")
    broken = np.array(cells, np.int8).reshape(len(cells), len(names))
    held = np.isin(status, HELD)
    if (broken[held] == NOT_SEARCHED).any():
        return None
    found = broken[held] > 0
    count = int(found.any(1).sum())
    by = sorted(zip(found.sum(0).tolist(), names, strict=True), key=lambda one: -one[0])
    return RelationMetrics(
        robust_accuracy=interval(int(held.sum()) - count, int((status != "skipped").sum())),
        searched=int(held.sum()),
        broken=count,
        passes=int(column_of(table, "relations_passes").sum()),
        by_relation={name: times for times, name in by if times},
    )


def _by_class(
    table: pa.Table,
    classes: int,
    names: dict[int, str],
    right: np.ndarray,
    robust: np.ndarray,
    task: str,
) -> dict[str, Any]:
    """The metrics that tell classes or labels apart, by their names in `Metrics`."""
    found: dict[str, Any] = {}
    if task == "multilabel":
        bears, clean, attacked = (outputs > 0 for outputs in _outputs(table))
        label, names = bears, {c - 1: name.removesuffix(" wrong") for c, name in names.items()}
    else:
        label, clean, attacked = (
            column_of(table, name) for name in ("label", "clean_prediction", "attacked_prediction")
        )
        bears = np.where(label < classes, label, -1)
        found["confusion"] = Confusion(
            clean=_confusion(label, clean, classes), attacked=_confusion(label, attacked, classes)
        )
        found["calibration"] = _calibration(table, label, clean, attacked)
    scores = {
        "clean": _scores(label, clean, classes),
        "attacked": _scores(label, attacked, classes),
    }
    rows, hit, held = (_tally(bears[of], classes) for of in (..., right, robust))
    present = rows > 0

    def pair(which: int, of: Any) -> Pair:
        return Pair(**{kind: float(score[which][of].mean()) for kind, score in scores.items()})

    found["per_class"] = [
        ClassMetrics(
            label=c,
            name=names.get(c, str(c)),
            clean_accuracy=interval(int(hit[c]), int(rows[c])),
            robust_accuracy=interval(int(held[c]), int(rows[c])),
            precision=pair(0, c),
            recall=pair(1, c),
            f1=pair(2, c),
        )
        for c in range(classes)
        if present[c]
    ]
    if task == "classes" and classes == 2 and present.all():
        rare = int(rows[0] < rows[1]) ^ 1
        ranked = _ranked(table, label == rare, rare)
        areas = {name: Pair(**{k: of[i] for k, of in ranked.items()}) for i, name in AREAS}
        found["binary"] = BinaryMetrics(
            label=rare,
            share=float(rows[rare] / len(label)),
            precision=pair(0, rare),
            recall=pair(1, rare),
            f1=pair(2, rare),
            balanced_accuracy=pair(1, present),
            **areas,
        )
    if present.any():
        found |= {name: pair(i, present) for i, name in enumerate(("precision", "recall", "f1"))}
    return found


def _tally(bears: np.ndarray, classes: int) -> np.ndarray:
    """How many rows bear each class: [n] int, the class of each row or -1, or [n, classes] of
    truth values."""
    return bears.sum(0) if bears.ndim == 2 else np.bincount(bears[bears >= 0], minlength=classes)


def _certified(table: pa.Table, status: np.ndarray) -> dict[str, Any]:
    """What was proved, where rows were certified."""
    if "certified_by" not in table.column_names:
        return {}
    proved = status == "certified"
    by = Counter(column_of(table, "certified_by")[proved].tolist())
    return {"certified_accuracy": interval(int(proved.sum()), len(status)), "certified_by": by}


def _prove(curve: Sequence[CurvePoint], table: pa.Table, right: np.ndarray) -> None:
    """Say at each eps of a curve what is proved there; a proof that an example contradicts is
    none."""
    radius, size = (column_of(table, name).astype(float) for name in ("certified_radius", "size"))
    for point in curve:
        proved = right & (radius >= point.eps) & ~(size <= radius) if point.eps else right
        point.certified_accuracy = interval(int(proved.sum()), len(right))


def _groups(table: pa.Table, right: np.ndarray, robust: np.ndarray) -> list[GroupMetrics]:
    if "group" not in table.column_names:
        return []
    names, place = np.unique(column_of(table, "group").astype(str), return_inverse=True)
    of, clean, held = (np.bincount(place, w, len(names)) for w in (None, right, robust))
    return [
        GroupMetrics(
            name=str(name),
            clean_accuracy=interval(int(c), int(n)),
            robust_accuracy=interval(int(h), int(n)),
        )
        for name, n, c, h in zip(names, of, clean, held, strict=True)
    ]


def _outputs(table: pa.Table) -> list[np.ndarray]:
    """Truths, and outputs on clean and on attacked inputs, [n, ...] each."""
    names = ("truth", "clean_output", "attacked_output")
    flat = [table.column(name).combine_chunks().flatten().to_numpy() for name in names]
    return [values.reshape(table.num_rows, -1 if len(values) else 0) for values in flat]


def _errors(rows: Answered) -> dict[str, Any]:
    clean, attacked = (
        _sizes(np.abs(given - rows.truth).max(1)) for given in (rows.clean, rows.attacked)
    )
    return {"errors": Errors(clean=clean, attacked=attacked)}


# the figures of a task of its own, by their names in `Metrics`
OF_TASK: dict[str, Callable[[Answered], dict[str, Any]]] = {
    "regression": _errors,
    "detection": detection.figures,
    "segmentation": segmentation.figures,
}


# kinds that are in no mean, as in the paper
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")


def corrupted(answers: pa.Table, samples: pa.Table, asked: CorruptionInfo) -> CorruptionMetrics:
    """The figures of a table of decisions on corrupted inputs; rows that were not asked are in no
    denominator."""
    label, clean = (column_of(samples, name) for name in ("label", "clean_prediction"))
    right, points = {}, []
    for name in answers.column_names[1:]:
        given, (kind, severity) = column_of(answers, name), name.split()
        right[name] = np.where(given == UNASKED, np.nan, given == label)
        held = right[name][given != UNASKED]
        share = interval(int(held.sum()), len(held))
        points.append(CorruptionPoint(kind=kind, severity=int(severity), accuracy=share))
    main = [name for name in right if name.split()[0] not in EXTRA]
    rows = np.stack([right[name] for name in main], 1)  # [n, 75]
    whole = ~np.isnan(rows).any(1)
    shares, clean = rows[whole].mean(1), (clean == label)[whole]
    mce = drop = None
    if asked.baseline_errors is not None and len(shares):
        errors = {
            kind: 1 - rows[whole][:, [n.split()[0] == kind for n in main]].mean()
            for kind in dict.fromkeys(name.split()[0] for name in main)
        }
        mce = float(
            np.mean([error / asked.baseline_errors[kind] for kind, error in errors.items()])
        )
    if clean.any():
        drop = float(1 - shares.mean() / clean.mean())
    return CorruptionMetrics(
        mean_accuracy=mean_interval(shares), relative_drop=drop, mce=mce, points=points
    )


def _scores(label: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Precision, recall and F1 of each class: [3, classes]."""
    if not len(label):
        return np.full((3, classes), np.nan)
    if label.ndim == 2:
        hits, said, borne = (label & predicted).sum(0), predicted.sum(0), label.sum(0)
    else:
        columns = (label[label == predicted], predicted, label)
        hits, said, borne = (
            np.bincount(column[column >= 0], minlength=classes)[:classes] for column in columns
        )
    counts = (said, borne, (said + borne) / 2)
    return np.stack([hits / np.maximum(count, 0.5) for count in counts])


AREAS = list(enumerate(("auroc", "auprc")))


def _ranked(
    table: pa.Table, bears: np.ndarray, rare: int
) -> dict[str, tuple[float | None, float | None]]:
    """AUROC and average precision of the confidence in a class that `bears` [n] says which rows
    are of, clean and attacked, over the rows with a confidence."""
    found: dict[str, tuple[float | None, float | None]] = {}
    for kind in ("clean", "attacked"):
        given, sure = column_of(table, f"{kind}_prediction"), column_of(table, f"{kind}_confidence")
        score = np.where(given == rare, sure, 1 - sure.astype(float))
        known = np.isfinite(score) & (given >= 0)
        own, score = bears[known], score[known]
        both = own.any() and not own.all()
        found[kind] = (
            (area_under_roc(own, score), average_precision(own, score)) if both else (None, None)
        )
    return found


def area_under_roc(bears: np.ndarray, score: np.ndarray) -> float:
    """How probably a row [n] that bears a class scores above one that does not; a tie is a half."""
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2  # from 1, the mean of equal scores
    positive = int(bears.sum())
    above = rank[place][bears].sum() - positive * (positive + 1) / 2
    return float(above / (positive * (len(bears) - positive)))


def average_precision(bears: np.ndarray, score: np.ndarray) -> float:
    """The mean precision at each score at which rows [n] that bear a class are reached, the highest
    first: the area under the curve of precision over recall, by steps."""
    _, place = np.unique(-score, return_inverse=True)
    hits, said = np.bincount(place, bears), np.bincount(place)
    return float((hits * np.cumsum(hits) / np.cumsum(said)).sum() / bears.sum())


def _confusion(label: np.ndarray, predicted: np.ndarray, classes: int) -> list[list[int]]:
    known = (label >= 0) & (predicted >= 0) & (predicted < classes)
    counts = np.bincount(label[known] * classes + predicted[known], minlength=classes**2)[
        : classes**2
    ]
    return counts.reshape(classes, classes).tolist()


BINS = 15


def _calibration(
    table: pa.Table, label: np.ndarray, clean: np.ndarray, attacked: np.ndarray
) -> Calibration:
    """Of the rows whose confidence is known, clean and on the stored examples."""
    figures: list[list[float | None]] = []
    for predicted, name in ((clean, "clean_confidence"), (attacked, "attacked_confidence")):
        confidence = column_of(table, name)
        known = np.isfinite(confidence) & (predicted >= 0)
        sure, right = confidence[known], (predicted == label)[known]
        kinds = (calibration_error, risk_over_coverage)
        figures.append([of(sure, right) if len(sure) else None for of in kinds])
    ece, aurc = (Pair(clean=a, attacked=b) for a, b in zip(*figures, strict=True))
    return Calibration(ece=ece, aurc=aurc)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """ECE (Guo et al. 2017, arXiv:1706.04599): how far confidence [n] is from accuracy, in 15 bins
    of equal width."""
    sure = np.nan_to_num(confidence.astype(float)).clip(0, 1)
    place = np.minimum((sure * BINS).astype(int), BINS - 1)
    gap = np.bincount(place, right.astype(float), BINS) - np.bincount(place, confidence, BINS)
    return float(np.abs(gap).sum() / len(confidence))


def risk_over_coverage(confidence: np.ndarray, right: np.ndarray) -> float:
    """AURC (Geifman et al. 2019, arXiv:1805.08206): the error of the most confident 1, 2, ... n
    rows, averaged.

    Rows of one confidence share their errors evenly, so that their order says nothing.
    """
    _, group = np.unique(-confidence, return_inverse=True)
    share = np.bincount(group, ~right) / np.bincount(group)
    wrong = np.cumsum(share[np.sort(group)])
    return float((wrong / np.arange(1, len(wrong) + 1)).mean())


def _sizes(size: np.ndarray) -> Sizes:
    size = size[np.isfinite(size)]
    if not len(size):
        return Sizes(n=0, minimum=None, median=None, mean=None, maximum=None)
    shares = ("0.05", "0.25", "0.5", "0.75", "0.95")
    values = np.quantile(size, [float(share) for share in shares]).tolist()
    return Sizes(
        n=len(size),
        minimum=float(size.min()),
        median=float(np.median(size)),
        mean=float(size.mean()),
        maximum=float(size.max()),
        quantiles=dict(zip(shares, values, strict=True)),
    )


def _perceptual(table: pa.Table, broken: np.ndarray) -> Perceptual | None:
    names = [name for name in ("psnr", "ssim", "lpips") if name in table.column_names]
    seen = {name: column_of(table, name).astype(float)[broken] for name in names}
    known = ~np.isnan(seen["ssim"])
    if not known.any():
        return None
    return Perceptual(
        n=int(known.sum()), **{name: float(np.median(value[known])) for name, value in seen.items()}
    )


def _queries(spent: np.ndarray, right: int) -> dict[str, Any]:
    """The median cost of the inputs that were broken, and the success after 10, 30, 100, ...
    queries, until all of these are broken."""
    if not len(spent):
        return {"queries": [QueryPoint(queries=10, success=interval(0, right))]}
    marks = [m * 10**p for p in range(1, 12) for m in (1, 3)]
    enough = bisect_left(marks, spent.max()) + 1
    shares = [
        QueryPoint(queries=m, success=interval(int((spent <= m).sum()), right))
        for m in marks[:enough]
    ]
    return {"queries": shares, "median_queries": float(np.median(spent))}


def _curve(
    size: np.ndarray, status: np.ndarray, limits: Sequence[tuple[float, float]], right: int, n: int
) -> list[CurvePoint]:
    """Robust accuracy at 0, at tenths of the threat's eps, and wherever the protocol was run.

    Where eps is inf, at twentieths of the largest size found.
    """
    eps, found = limits[0][0], size[np.isfinite(size)]
    top, parts, digits = (eps, 10, 10) if np.isfinite(eps) else (found.max(initial=0.0), 20, 3)
    steps = {
        e: e for e in (float(f"{top * i / parts:.{digits}g}") for i in range(parts + (parts == 20)))
    }
    reach = sorted((steps | dict(limits)).items())
    measured = {e for e, _ in limits} | {0.0}
    attackable = np.isin(status, (*HELD, "broken"))
    smallest = np.where(np.isnan(size), np.inf, size)
    return [
        CurvePoint(
            eps=e,
            robust_accuracy=interval(
                right if e == 0 else int((attackable & (smallest > limit)).sum()), n
            ),
            measured=e in measured,
        )
        for e, limit in reach
        if np.isfinite(e)
    ]
