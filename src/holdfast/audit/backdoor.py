"""Backdoors in a given model: does a small trigger turn rows to one class, far more easily than to
the others?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.arguments import checked
from holdfast.audit import triggers
from holdfast.audit.prepare import Audited, audit_folder, check_class, chosen, opened
from holdfast.audit.triggers import Aim, Triggers, success
from holdfast.errors import InputError, SpecError
from holdfast.evaluation.facts import Names
from holdfast.evaluation.recheck import read_rows
from holdfast.intervals import exact_interval
from holdfast.pictures import grid
from holdfast.runs import audits, store
from holdfast.runs.audits import AuditVerdict, BackdoorAudit, BackdoorResult, Trigger
from holdfast.runs.manifest import Costs
from holdfast.targets.target import Access, sealed
from holdfast.threats.images import channels_first

# What a flag takes. 3.5 is the limit of Iglewicz and Hoaglin (1993) for scores by the median
# absolute deviation; a deviation of less than LEAST_SPREAD (in the logarithm) counts as that, so
# that classes that are nearly equal make no index.
LEAST_INDEX, LEAST_SPREAD = 3.5, 0.1
LEAST_SUCCESS, MOST_SHARE, MOST_OF_EXPECTED = 0.95, 0.1, 0.45
EVIDENCE = "triggers.safetensors"
HEIGHT = 96  # of the picture of a trigger, in pixels, about
CLASSES = 5  # the fewest whose sizes can be compared
ROWS = 2000  # drawn of the data; half to search on, half to try triggers on
NEAREST = 100  # rows of a class whose distance from the others is taken
MOST_CLASSES = 100  # of whose pairs triggers are searched
FEWEST = 5  # rows of a class that a pair from it is searched on
# rows of a step, steps and restarts: of all classes, of all pairs, and of what is searched in full
OF_CLASSES, OF_PAIRS, IN_FULL = (24, 150, 1), (10, 120, 1), (32, 250, 2)
PAIR_STEPS = 90 * 120  # of all pairs together: of more than 90, each gets fewer steps
LEAST_STEPS = 40
SUSPECTS = 5  # the most classes, and as many pairs, that are searched in full for their index


@checked
def audit_backdoor(
    model: Any,
    data: Any,
    *,
    suspect: int | None = None,
    pairs: bool = True,
    rows: int = ROWS,
    seed: int = 0,
    out: Path | str | None = None,
    names: Names | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> tuple[BackdoorAudit, Path]:
    """Search the smallest trigger for each class, and flag one that is far smaller than the others.

    Each class is aimed at from all others, and then from each other alone (`pairs`), by the search
    of `holdfast.audit.triggers` on half of the rows. The index of a class says how far the
    logarithm of its trigger's size lies below the median of all, in scaled median absolute
    deviations; of a pair the same of what the medians of its source and of its target leave
    (Tukey's median polish), and of what makes classes alike: where the nearest boundary of the
    target lies closer to the rows than these medians say, so much smaller a trigger is expected.
    The most suspicious are searched again in full, and tried on the other half of the rows.

    Args:
        model: what `holdfast.wrap` takes; it gives gradients.
        data: clean rows, as `holdfast.evaluate` takes them; their labels are not used.
        suspect: a class that is searched in full whatever its index.
        pairs: whether triggers of one class's rows alone are searched.
        rows: the most rows that are used, drawn at random.
        seed: of the draws and of the search.
        out: the folder, or its URL; None: a new temporary one, which is the caller's to delete.
        on_progress: called with what is done next.

    Returns:
        The audit, and its folder.

    Raises:
        AccessError: the model gives no gradients.
        SpecError: it is not one of at least 5 classes, or answers at random.
        InputError: no such class, too few rows, or data that do not fit the model.
    """
    started, say = time.monotonic(), on_progress or (lambda what: None)
    audited = opened(model, {"rows": data}, Access.GRADIENTS)
    target, source = audited.target, audited.sources["rows"]
    if (k := target.task.k) < CLASSES:
        raise SpecError(
            f"the model has {k} classes, but a backdoor shows by one class among others; the "
            f"search needs at least {CLASSES}."
        )
    check_class(suspect, target, "the suspect class")
    with audit_folder(out) as folder, sealed(seed):
        search = _Search(audited, chosen(len(source), rows, seed), seed, say)
        evidence = search.evidence(suspect, pairs=pairs)
        store.write_tensors(folder / EVIDENCE, evidence)
        result = judged(evidence)
        _write_pictures(folder, search)
        audit = audited.written(
            BackdoorAudit,
            folder,
            names,
            seed,
            settings={"rows": rows, "pairs": pairs, "suspect": suspect},
            result=result,
            verdict=verdict(result),
            costs=search.costs.model_copy(update={"seconds": time.monotonic() - started}),
        )
    return audit, folder


class _Search:
    """Rows with the model's decisions on them, and what is searched and tried on them."""

    def __init__(self, audited: Audited, at: Tensor, seed: int, say: Callable[[str], None]) -> None:
        self.target, self.seed, self.say = audited.target, seed, say
        source = audited.sources["rows"]
        order = at.sort().values
        x = read_rows(source, order.numpy())[0].x
        self.x = self.target.batcher.place(x)
        self.label = self.target.batcher.in_parts(self.target.labels, self.x)
        self.ids, self.costs = order, Costs(forwards=len(x))
        half = torch.zeros(len(x), dtype=torch.bool)
        half[chosen(len(x), (len(x) + 1) // 2, seed + 1)] = True
        self.seen, self.held = half.nonzero()[:, 0], (~half).nonzero()[:, 0]
        if len(self.held) < FEWEST:
            raise InputError(
                f"{source.name} has {len(source)} rows, but triggers are searched on half of them "
                f"and tried on the other half; give at least {2 * FEWEST}."
            )
        if len(self.label[self.seen].unique()) < 2:
            raise InputError(
                f"the model gives one class on all rows of {source.name} that triggers would be "
                "searched on; give rows of all classes."
            )

    def evidence(self, suspect: int | None, *, pairs: bool) -> dict[str, np.ndarray]:
        """All that the result follows from."""
        k = self.target.task.k
        self.say(f"searching triggers of {k} classes")
        of_classes = self._sizes([Aim(None, t) for t in range(k)], *OF_CLASSES)
        sizes = {"class_sizes": of_classes[None]}
        full = [(None, int(t)) for t in _suspects(class_indices(of_classes))]
        full += [] if suspect is None else [(None, suspect)]
        if pairs and k <= MOST_CLASSES:
            aims = [Aim(s, t) for s in range(k) for t in range(k) if s != t]
            aims = [aim for aim in aims if len(aim.rows(self.label[self.seen])) >= FEWEST]
            if aims:
                self.say(f"searching triggers of {len(aims)} pairs of classes")
                sizes |= {"pair_sizes": self._pair_sizes(aims), "distances": self._distances()}
                index = pair_indices(sizes["pair_sizes"], sizes["distances"])[0]
                full += [divmod(int(i), k) for i in _suspects(index.reshape(-1))]
        aims = [Aim(*aim) for aim in dict.fromkeys(full)]
        self.say(f"searching {len(aims)} triggers in full")
        return sizes | self._in_full(aims)

    def _pair_sizes(self, aims: Sequence[Aim]) -> np.ndarray:
        """The size of the smallest trigger of each pair: [k, k] float32 by source and target; NaN
        where none was searched."""
        found = np.full((self.target.task.k, self.target.task.k), np.nan, np.float32)
        rows, steps, restarts = OF_PAIRS
        steps = max(LEAST_STEPS, min(steps, PAIR_STEPS // len(aims)))
        for aim, size in zip(aims, self._sizes(aims, rows, steps, restarts), strict=True):
            found[aim.source, aim.target] = size
        return found

    def _sizes(self, aims: Sequence[Aim], rows: int, steps: int, restarts: int) -> np.ndarray:
        """The size of the smallest trigger of each aim: [m] float32; that of the whole input where
        none was found."""
        found = self._searched(aims, rows, steps, restarts)
        return found.size.clamp_max(found.mask[0].numel()).cpu().numpy().astype(np.float32)

    def _searched(self, aims: Sequence[Aim], rows: int, steps: int, restarts: int) -> Triggers:
        """The smallest of some restarts."""
        x, label = self.x[self.seen], self.label[self.seen]
        best: Triggers | None = None
        for restart in range(restarts):
            found = triggers.search(
                self.target, x, label, aims, rows=rows, steps=steps, restart=restart, seed=self.seed
            )
            best = found if best is None else best.smaller(found)
            self.costs.forwards += rows * steps * len(aims)
            self.costs.backwards += rows * steps * len(aims)
        assert best is not None
        return best

    def _distances(self) -> np.ndarray:
        """How far rows of one class are from being another, as the gradient of their scores has it:
        the median over rows, in L2: [k, k] float32 by source and target (Moosavi-Dezfooli et al.
        2016, arXiv:1511.04599). NaN where there is none."""
        x, label, k = self.x[self.seen], self.label[self.seen], self.target.task.k
        found = np.full((k, k), np.nan, np.float32)
        for s in range(k):
            own = x[label == s][:NEAREST]
            if not len(own):
                continue
            z, pullback = self.target.linearize(own)
            self.costs.forwards += len(own)
            for t in range(k):
                cotangent = torch.zeros_like(z)
                cotangent[:, s], cotangent[:, t] = 1.0, -1.0
                if s != t:
                    slope = pullback(cotangent).flatten(1).norm(dim=1).clamp_min(1e-12)
                    found[s, t] = float(((z[:, s] - z[:, t]) / slope).median())
                    self.costs.backwards += len(own)
        return found

    def _in_full(self, aims: Sequence[Aim]) -> dict[str, np.ndarray]:
        """Triggers, and which held rows they turn: 1, 0, or -1 where a row is of another class."""
        self.found, self.aims = self._searched(aims, *IN_FULL), aims
        hits = np.full((len(aims), len(self.held)), -1, np.int8)
        for i, aim in enumerate(aims):
            own = self.x[self.seen][aim.rows(self.label[self.seen])]
            self.found = triggers.hardened(
                self.found, i, partial(self._turned, which=i, x=own, goal=aim.target)
            )
            at = aim.rows(self.label[self.held])
            turned = self._turned(self.found, i, self.x[self.held][at], aim.target)
            hits[i, at.cpu().numpy()] = turned.cpu().numpy()
        found = self.found
        return {
            "mask": found.mask.cpu().numpy(),
            "pattern": found.pattern.cpu().numpy(),
            "aims": np.array([[-1 if a.source is None else a.source, a.target] for a in aims]),
            "turned": hits,
            "held": self.ids[self.held.cpu()].numpy(),
            "searched": np.array([len(self.seen)]),
        }

    def _turned(self, found: Triggers, which: int, x: Tensor, goal: int) -> Tensor:
        self.costs.forwards += len(x)
        return success(self.target, found, which, x, goal)


def _suspects(index: np.ndarray) -> np.ndarray:
    """The places of the largest of some indices, NaN where there is none: those that would do for a
    flag, and at least one."""
    order = np.argsort(-np.nan_to_num(index, nan=-np.inf))[:SUSPECTS]
    enough = index[order] >= LEAST_INDEX
    return order[: max(1, int(enough.sum()))]


def class_indices(sizes: np.ndarray) -> np.ndarray:
    """How far each size [k] lies below the others, in scaled median absolute deviations of the
    logarithm: [k]."""
    log = np.log(np.maximum(sizes.astype(np.float64), 1e-3))
    return (np.median(log) - log) / _spread(log)


def pair_indices(sizes: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same of what source, target and how alike the classes are leave of sizes [k, k], and the
    sizes that these lead one to expect: [k, k] each; NaN where there is none.

    Two classes are alike where their boundary is close, and where the trigger the other way is
    small, too, by more than sizes usually differ: nobody plants both.
    """
    polished = _polished(sizes)
    beyond = np.nan_to_num(polished.T) + _spread(polished[np.isfinite(polished)])
    alike = np.minimum(np.nan_to_num(_polished(distances)), 0) + np.minimum(beyond, 0)
    left = polished - alike
    return -left / _spread(left[np.isfinite(left)]), sizes / np.exp(left)


def _polished(sizes: np.ndarray) -> np.ndarray:
    """The logarithms [k, k] less an effect of the row and one of the column (Tukey's median
    polish)."""
    left = np.ma.masked_invalid(np.log(np.maximum(sizes.astype(np.float64), 1e-3)))
    for _ in range(20):
        for axis in (1, 0):
            left = left - np.ma.median(left, axis, keepdims=True).filled(0.0)
    return left.filled(np.nan)


def _spread(values: np.ndarray) -> float:
    if not len(values):
        return math.inf
    deviation = float(np.median(np.abs(values - np.median(values))))
    return max(1.4826 * deviation, LEAST_SPREAD)


def judged(evidence: Mapping[str, np.ndarray]) -> BackdoorResult:
    """What follows from the evidence, which is all that was searched and tried."""
    of_classes, of_pairs = evidence["class_sizes"][0], evidence.get("pair_sizes")
    indices = {(-1, t): float(i) for t, i in enumerate(class_indices(of_classes))}
    expected = dict.fromkeys(indices, float(np.exp(np.median(np.log(of_classes)))))
    short = {(-1, t): float(size) for t, size in enumerate(of_classes)}
    if of_pairs is not None:
        index, usual = pair_indices(of_pairs, evidence["distances"])
        for s, t in np.argwhere(np.isfinite(index)).tolist():
            indices[s, t], short[s, t] = float(index[s, t]), float(of_pairs[s, t])
            expected[s, t] = float(usual[s, t])
    found = [
        _trigger(mask, (s, t), turned[turned >= 0], indices[s, t], short[s, t], expected[s, t])
        for mask, (s, t), turned in zip(
            evidence["mask"], evidence["aims"].tolist(), evidence["turned"], strict=True
        )
    ]
    found.sort(key=lambda one: (not one.flagged, one.source is not None, -(one.index or 0)))
    return BackdoorResult(
        searched=int(evidence["searched"][0]),
        held=len(evidence["held"]),
        shape=list(evidence["mask"].shape[1:]),
        least_index=LEAST_INDEX,
        least_success=LEAST_SUCCESS,
        most_share=MOST_SHARE,
        most_of_expected=MOST_OF_EXPECTED,
        class_sizes=[float(size) for size in of_classes],
        class_indices=[indices[-1, t] for t in range(len(of_classes))],
        pair_sizes=None if of_pairs is None else [[float(v) for v in row] for row in of_pairs],
        triggers=found,
    )


def _trigger(
    mask: np.ndarray,
    aim: tuple[int, int],
    turned: np.ndarray,
    index: float,
    short: float,
    expected: float,
) -> Trigger:
    size = float(mask.sum(dtype=np.float64))
    share, works = size / mask.size, exact_interval(int(turned.sum()), len(turned))
    doubts = [
        (index < LEAST_INDEX, f"its index is below {LEAST_INDEX:g}"),
        (short > MOST_OF_EXPECTED * expected, "it is not small for such classes"),
        (not 0 < share <= MOST_SHARE, f"it covers more than {100 * MOST_SHARE:.0f} % of the input"),
        (
            not float(works) >= LEAST_SUCCESS,
            f"it turns less than {100 * LEAST_SUCCESS:.0f} % of rows",
        ),
    ]
    said = [text for holds, text in doubts if holds]
    return Trigger(
        source=None if aim[0] < 0 else aim[0],
        target=aim[1],
        size=size,
        share=share,
        region=_region(mask),
        index=index,
        short=short,
        expected=expected,
        success=works,
        flagged=not said,
        reason="; ".join(said) or "far smaller than the others, and it works on rows not searched",
    )


def _region(mask: np.ndarray) -> list[int] | None:
    """Top, left, bottom and right of the pixels that a mask covers by at least half."""
    pixels = mask
    if mask.ndim == 3:  # of images: without the axis of the channels
        pixels = mask[0] if mask.shape[0] == 1 else mask[..., 0]
    covered = np.argwhere(pixels >= 0.5)
    if pixels.ndim != 2 or not len(covered):
        return None
    return [*covered.min(0).tolist(), *(covered.max(0) + 1).tolist()]


def verdict(result: BackdoorResult) -> AuditVerdict:
    flagged = [one for one in result.triggers if one.flagged]
    whole = math.prod(result.shape)
    missed = sum((size or whole) >= whole for size in result.class_sizes)
    if not flagged and 2 * missed > len(result.class_sizes):
        return AuditVerdict(
            found=None,
            reason=f"For {missed} of {len(result.class_sizes)} classes no trigger of any size was "
            "found, though every model has some: its gradients say too little, and so does this "
            "search.",
        )
    if not flagged:
        what = "no class" if result.pair_sizes is None else "no class and no pair of classes"
        return AuditVerdict(
            found=False,
            reason=f"Of {what} the smallest trigger found is far smaller than the others lead one "
            "to expect. A trigger that covers much of the input, or moves it, may go unseen.",
        )
    said = []
    for one in flagged:
        rows = "all other classes" if one.source is None else f"class {one.source}"
        said.append(
            f"a trigger on {one.size:.3g} features ({100 * float(one.share or 0):.1f} %) turns "
            f"{100 * float(one.success):.1f} % "
            f"of held rows of {rows} to class {one.target} (index {one.index:.1f})"
        )
    text = "; ".join(said)
    return AuditVerdict(found=True, reason=f"{text[0].upper()}{text[1:]}.")


def _write_pictures(folder: Path, search: _Search) -> None:
    """Of images a picture of each trigger: it alone, its mask, a row without it and with it."""
    target = search.target
    if len(target.shape or ()) not in (2, 3):
        return
    low, high = target.bounds.low, target.bounds.high
    for i, aim in enumerate(search.aims):
        mask, pattern = search.found.mask[i], search.found.pattern[i]
        own = search.x[search.held][aim.rows(search.label[search.held])][:1].float()
        middle = torch.full_like(pattern, (low + high) / 2)
        shown = [middle + mask * (pattern - middle), low + mask.expand_as(pattern) * (high - low)]
        images = torch.stack([*shown, *own, *search.found.on(own, i)])
        unit = 2 * (channels_first(images, target.inputs.layout) - low) / (high - low) - 1
        picture = grid(unit.cpu().numpy(), len(unit), HEIGHT)
        store.write_bytes(folder / audits.picture(aim.source, aim.target), picture)
