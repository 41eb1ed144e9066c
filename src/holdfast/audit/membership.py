"""Membership: can rows that a model was trained on be known by its answers?"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from holdfast.arguments import checked
from holdfast.audit.prepare import Audited, audit_folder, opened
from holdfast.audit.references import ToTrain, halves, keep, trained
from holdfast.data import Source
from holdfast.data.part import Part
from holdfast.errors import InputError
from holdfast.evaluation.contract import check_model
from holdfast.evaluation.facts import Names
from holdfast.evaluation.prepare import with_columns
from holdfast.intervals import Interval, exact_interval
from holdfast.memory import rows_at_once
from holdfast.runs import store
from holdfast.runs.audits import (
    AuditVerdict,
    MembershipAttack,
    MembershipAudit,
    MembershipName,
    MembershipResult,
    RateAt,
)
from holdfast.runs.journal import Journal
from holdfast.runs.manifest import Costs
from holdfast.targets import wrap
from holdfast.targets.batch import read
from holdfast.targets.target import Access, Target, copied, sealed

EVIDENCE = "signals.safetensors"
FPRS = (0.01, 0.001)  # false positive rates at which the true positive rate is asked for
ERRORS = 10  # the false positives that such a rate must leave room for
FEWEST = 30  # members, and non-members
SLOPE = 0.3  # a of RMIA's p(x): the paper's for images of CIFAR-10
LEVEL = 0.95


@checked
def audit_membership(
    model: Any,
    members: Any,
    non_members: Any,
    *,
    references: Sequence[Any] | ToTrain = (),
    seen: Sequence[Sequence[int] | np.ndarray] | None = None,
    fprs: Sequence[float] | None = None,
    slope: float = SLOPE,
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    names: Names | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> tuple[MembershipAudit, Path]:
    """Try to know rows that a model was trained on (members) from other rows like them.

    Three attacks: the loss alone (Yeom et al. 2018, arXiv:1709.01604); and where there are
    references, models of the same kind that did not see a row, RMIA (Zarifzadeh et al. 2024,
    arXiv:2312.03262) and offline LiRA (Carlini et al. 2022, arXiv:2112.03570).

    Args:
        model: what `holdfast.wrap` takes; it gives scores.
        members: rows that it was trained on, with their labels, as `holdfast.evaluate` takes data.
        non_members: other rows of the same kind, which it was not trained on, nor was a reference
            that is given. A row that occurs again among them, or among the members, counts once.
        references: models of the same classes; or those to train here, from new weights on random
            halves of the members and of the non-members, which are stored with the audit.
        seen: for each reference that is given the members that it was trained on, by their place;
            None: none.
        fprs: false positive rates in (0, 1) at which to measure; None: 0.01 and 0.001, where there
            are non-members enough.
        slope: a in [0, 1] of RMIA, by which p(x) = ((1 + a) p_out(x) + 1 - a) / 2.
        seed: of a model that draws, and of references that are trained.
        out: the folder, or its URL; None: a new temporary one, which is the caller's to delete.
        resume: go on with the references that were trained in `out` before an interruption.
        on_progress: called with what is done next.

    Returns:
        The audit, and its folder.

    Raises:
        AccessError: the model gives labels alone.
        SpecError: the model is not one of classes.
        InputError: a row is in both, there are too few rows for a rate that is asked for, a
            member was seen by every reference, or references cannot be trained.
    """
    started = time.monotonic()
    audited = opened(model, {"members": members, "non-members": non_members}, Access.SCORES)
    rows = [_once(source) for source in audited.sources.values()]
    refuse_overlap(*rows)
    sizes = [len(one.source) for one in rows]
    check_sizes(sizes, fprs)
    if not 0 <= slope <= 1:
        raise InputError(f"the slope of RMIA is {slope:g}, but it lies in 0 to 1.")
    to_train = isinstance(references, ToTrain)
    count = references.count if isinstance(references, ToTrain) else len(references)
    settings: dict[str, Any] = {"references": count, "slope": slope}
    with audit_folder(out, resumable=to_train) as folder:
        journal = Journal(folder)
        if isinstance(references, ToTrain):
            settings["trained"] = references.options
            journal.open(_question(audited, settings, seed), resume=resume)
            saw = halves(sizes, count, seed)
            sources, say = [one.source for one in rows], on_progress or (lambda what: None)
            own = trained(audited.target, sources, saw, references, seed, journal, say)
        else:
            saw = [_seen(seen, count, rows[0].place), np.zeros((count, sizes[1]), bool)]
            own = [_reference(one, audited) for one in references]
        evidence = {
            "seen": saw[0],
            "seen non-members": saw[1],
            "repeated": np.array([len(one.place) - len(one.source) for one in rows]),
            "slope": np.array([slope]),
            "fprs": np.array(fprs or FPRS),
        }
        with sealed(seed):
            for role, one in zip(audited.sources, rows, strict=True):
                evidence |= _answers(role, one.source, [audited.target, *own])
        store.write_tensors(folder / EVIDENCE, evidence)
        if to_train:
            keep(journal, count)
        result = judged(evidence)
        audit = audited.written(
            MembershipAudit,
            folder,
            names,
            seed,
            settings=settings,
            result=result,
            verdict=verdict(result),
            costs=Costs(forwards=sum(sizes) * (1 + count), seconds=time.monotonic() - started),
        )
        journal.close()
    return audit, folder


def _question(audited: Audited, settings: Mapping[str, Any], seed: int) -> dict[str, str]:
    """What an interrupted audit has to be asked again, to go on."""
    data = {role: source.fingerprint() for role, source in audited.sources.items()}
    asked = {name: json.dumps(value) for name, value in settings.items()}
    return {"model": audited.target.fingerprint(), **data, **asked, "seed": str(seed)}


@dataclass(frozen=True)
class Once:
    """Rows of which each counts once."""

    source: Source
    place: np.ndarray  # of each row of the whole data its row here, [n] int64
    known: dict[bytes, int]  # the rows here, by the digests of their values


def _once(whole: Source) -> Once:
    known = dict[bytes, int]()
    place = np.array([known.setdefault(digest, len(known)) for digest in _digests(whole)])
    first = np.unique(place, return_index=True)[1]
    source = whole if len(first) == len(whole) else Part(whole, first, "each row once")
    return Once(source, place, known)


def refuse_overlap(members: Once, others: Once) -> None:
    """Raises InputError: a member is a non-member too, with the same values."""
    both = [(members.known[d], j) for d, j in others.known.items() if d in members.known]
    if both:
        i, j = (
            int((one.place == at).argmax())
            for one, at in zip((members, others), both[0], strict=True)
        )
        raise InputError(
            f"row {i} of the members is row {j} of the non-members, and {len(both)} rows are in "
            "both; give rows that the model was not trained on as --non-members."
        )


def _digests(source: Source) -> list[bytes]:
    found, stride = list[bytes](), rows_at_once(source.shape)
    for start in range(0, len(source), stride):
        x = np.ascontiguousarray(source.rows(start, start + stride)[0], np.float32)
        found += [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x]
    return found


def check_sizes(sizes: Sequence[int], fprs: Sequence[float] | None) -> None:
    """Raises InputError: too few members or non-members for what is asked."""
    if min(sizes) < FEWEST:
        raise InputError(
            f"there are {sizes[0]} members and {sizes[1]} non-members; give at least {FEWEST} each."
        )
    for fpr in fprs or ():
        if not 0 < fpr < 1:
            raise InputError(f"a false positive rate is {fpr:g}, but it lies between 0 and 1.")
        if sizes[1] < needed(fpr):
            raise InputError(
                f"a true positive rate at {fpr:.3g} false positives needs {needed(fpr):,} "
                f"non-members, and there are {sizes[1]:,}; give more, or ask for a higher rate."
            )


def needed(fpr: float) -> int:
    """How many non-members a false positive rate needs: so many that `ERRORS` of them make it."""
    return math.ceil(round(ERRORS / fpr, 6))


def _seen(
    given: Sequence[Sequence[int] | np.ndarray] | None, references: int, place: np.ndarray
) -> np.ndarray:
    """Which members each reference was trained on, each of them once: [r, n] bool.

    Args:
        place: of each member as given its place among them.
    """
    members, saw = len(place), np.zeros((references, int(place.max()) + 1), bool)
    if given is None:
        return saw
    if len(given) != references:
        raise InputError(
            f"for {references} references there are {len(given)} lists of the members that they "
            "saw; give one for each, in their order."
        )
    for i, rows in enumerate(given):
        at = np.asarray(rows, np.int64).reshape(-1)
        if len(at) and not 0 <= at.min() <= at.max() < members:
            odd = at[(at < 0) | (at >= members)][0]
            raise InputError(
                f"reference {i} saw member {odd}, but the members are rows 0 to {members - 1}."
            )
        saw[i, place[at]] = True
    by_all = np.logical_and.reduce(saw, 0)[place]
    if references and by_all.any():
        raise InputError(
            f"member {int(by_all.argmax())} was seen by every reference; RMIA and LiRA "
            "need one that did not see it."
        )
    return saw


def _reference(model: Any, audited: Audited) -> Target:
    source = audited.sources["members"]
    target = with_columns(copied(wrap(model)), source)
    check_model(target, source)  # which also sees whether it gives probabilities
    if target.task.k != audited.target.task.k or target.access < Access.SCORES:
        raise InputError(
            f"a reference has {target.task.k} classes and gives {target.access.name.lower()}, but "
            f"it is to have {audited.target.task.k}, and to give scores."
        )
    return target


def _answers(role: str, source: Source, targets: Sequence[Target]) -> dict[str, np.ndarray]:
    """The signals of each target on rows of this role, [1 + r, n] by their names."""
    signals = [_signals(target, source) for target in targets]
    return {f"{role} {name}": np.stack([one[name] for one in signals]) for name in signals[0]}


def _signals(target: Target, source: Source) -> dict[str, np.ndarray]:
    """Of each row the logarithm of its class's probability, the log odds of that, and whether the
    answer is right: [n] float64 each."""
    parts: dict[str, list[np.ndarray]] = {"log": [], "odds": [], "right": []}
    stride = rows_at_once(source.shape)
    for start in range(0, len(source), stride):
        batch, labels = read(source, start, min(start + stride, len(source)))
        z = target.batcher.in_parts(target.scores, target.batcher.place(batch.x))
        z, y = z[:, : target.task.k].double().cpu(), torch.from_numpy(labels.astype(np.int64))
        if len(odd := (~z.isfinite()).any(1).nonzero()[:, 0]):
            raise InputError(
                f"a model answers row {start + int(odd[0])} of {source.name} with scores that are "
                "no finite numbers, which say nothing of membership."
            )
        own = z.gather(1, y[:, None])
        others = z.scatter(1, y[:, None], -torch.inf).logsumexp(1)
        parts["log"].append(z.log_softmax(1).gather(1, y[:, None])[:, 0].numpy())
        parts["odds"].append((own[:, 0] - others).numpy())
        parts["right"].append((z.argmax(1) == y).double().numpy())
    return {name: np.concatenate(found) for name, found in parts.items()}


def rmia(log: np.ndarray, seen: np.ndarray, slope: float) -> np.ndarray:
    """ln of p_t(x) / p(x), with p(x) = ((1 + a) p_out(x) + 1 - a) / 2: [n].

    Args:
        log: [1 + r, n], ln of the probability of each row's class by the model and by references.
        seen: [r, n] bool; p_out is the mean over the references that did not see a row.
    """
    out = np.ma.masked_array(np.exp(log[1:]), seen).mean(0).filled(np.nan)
    return log[0] - np.log(((1 + slope) * out + 1 - slope) / 2)


def shares_above(ratio: np.ndarray, population: np.ndarray) -> np.ndarray:
    """The share of a population z with ratio(x) / ratio(z) > 1, of logarithms: [n]."""
    return np.searchsorted(np.sort(population), ratio, "left") / len(population)


def lira(odds: np.ndarray, seen: np.ndarray, variance: float) -> np.ndarray:
    """How far the log odds of each row lie above the mean by references that did not see it, in
    standard deviations: offline LiRA with one variance for all rows, [n]; its likelihood ratio is
    the normal distribution function of that."""
    out = np.ma.masked_array(odds[1:], seen).mean(0).filled(np.nan)
    return (odds[0] - out) / math.sqrt(variance)


def out_variance(odds: Sequence[np.ndarray], seen: Sequence[np.ndarray]) -> float:
    """Of the references' log odds of rows that they did not see, about each row's own mean, over
    all rows; of one reference alone, over the rows."""
    squares, degrees = 0.0, 0
    for values, saw in zip(odds, seen, strict=True):
        out = np.ma.masked_array(values[1:], saw)
        squares += float(((out - out.mean(0)) ** 2).sum())
        degrees += int((out.count(0) - 1).sum())
    if degrees:
        return max(squares / degrees, 1e-12)
    whole = np.concatenate([v[1:][~saw] for v, saw in zip(odds, seen, strict=True)])
    return max(float(whole.var()), 1e-12)


def auc(members: np.ndarray, others: np.ndarray, level: float = LEVEL) -> Interval:
    """The area under the ROC curve of scores [m] and [n], ties counted half, with its interval by
    DeLong et al. (1988), taken on the logit so that it stays within 0 and 1."""
    m, n = len(members), len(others)
    both = _ranks(np.concatenate([members, others]))
    own = (both[:m] - _ranks(members)) / n  # share of others below each member
    theirs = 1 - (both[m:] - _ranks(others)) / m
    value = float(own.mean())
    deviation = math.sqrt(own.var(ddof=1) / m + theirs.var(ddof=1) / n)
    if value in (0, 1) or not deviation:  # apart: the bound of the least that could differ
        edge = exact_interval(round(value * min(m, n)), min(m, n))
        return Interval(value=value, low=edge.low, high=edge.high, n=m + n)
    from scipy.special import ndtri

    logit = math.log(value / (1 - value))
    half = float(ndtri((1 + level) / 2)) * deviation / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-(logit + side))) for side in (-half, half))
    return Interval(value=value, low=low, high=high, n=m + n)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Of each value how many are below it, and half of those that are equal: [n]."""
    order = np.sort(values)
    below, upto = (np.searchsorted(order, values, side) for side in ("left", "right"))
    return (below + upto) / 2


def rate_at(members: np.ndarray, others: np.ndarray, fpr: float) -> RateAt:
    """The share of members above a threshold that at most the share `fpr` of others is above, with
    exact intervals of both; nothing where there are too few others."""
    if len(others) < needed(fpr):
        return RateAt(fpr=fpr, needed=needed(fpr), true_positives=None, false_positives=None)
    allowed = math.floor(round(fpr * len(others), 6))
    threshold = np.sort(others)[::-1][allowed]
    return RateAt(
        fpr=fpr,
        needed=needed(fpr),
        true_positives=exact_interval(int((members > threshold).sum()), len(members)),
        false_positives=exact_interval(int((others > threshold).sum()), len(others)),
    )


def judged(evidence: Mapping[str, np.ndarray]) -> MembershipResult:
    """What follows from the evidence: the model's and the references' answers on every row."""
    log, odds, right = (
        (evidence[f"members {name}"], evidence[f"non-members {name}"])
        for name in ("log", "odds", "right")
    )
    saw, count = evidence["seen"], log[1].shape[1]
    saw_others = evidence.get("seen non-members", np.zeros((len(saw), count), bool))
    scores = dict[MembershipName, tuple[np.ndarray, np.ndarray]]()
    scores["loss"] = log[0][0], log[1][0]
    if len(saw):
        slope = float(evidence["slope"][0])
        inside, outside = rmia(log[0], saw, slope), rmia(log[1], saw_others, slope)
        own = shares_above(outside, outside) * len(outside) / (len(outside) - 1)  # but itself
        scores["rmia"] = shares_above(inside, outside), own
        variance = out_variance(odds, (saw, saw_others))
        scores["lira"] = lira(odds[0], saw, variance), lira(odds[1], saw_others, variance)
    level = 1 - (1 - LEVEL) / len(scores)  # of all together
    attacks = [
        MembershipAttack(
            name=name,
            auc=auc(own, others),
            found=(auc(own, others, level).low or 0) > 0.5,
            rates=[rate_at(own, others, float(fpr)) for fpr in evidence["fprs"]],
        )
        for name, (own, others) in scores.items()
    ]
    return MembershipResult(
        members=log[0].shape[1],
        non_members=count,
        repeated=int(evidence.get("repeated", np.zeros(2, int)).sum()),
        references=len(saw),
        member_accuracy=exact_interval(int(right[0][0].sum()), log[0].shape[1]),
        non_member_accuracy=exact_interval(int(right[1][0].sum()), count),
        member_loss=-float(log[0][0].mean()),
        non_member_loss=-float(log[1][0].mean()),
        attacks=attacks,
    )


def verdict(result: MembershipResult) -> AuditVerdict:
    best = max(result.attacks, key=lambda attack: attack.auc.low or 0)
    gap = 100 * (float(result.member_accuracy) - float(result.non_member_accuracy))
    said = (
        f"the AUC of the best attack ({best.name}) is {best.auc:.3f} [{best.auc.low:.3f}, "
        f"{best.auc.high:.3f}]; accuracy on members is {abs(gap):.1f} points "
        f"{'higher' if gap >= 0 else 'lower'} than on non-members."
    )
    if any(attack.found for attack in result.attacks):
        return AuditVerdict(found=True, reason=f"Members are known better than by chance: {said}")
    more = "" if result.references else " Attacks with reference models were not tried."
    return AuditVerdict(found=False, reason=f"Members are not known from others: {said}{more}")
