"""Extraction: how good a copy of a model do its answers give?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast import spec
from holdfast.arguments import checked
from holdfast.attacks import parse, run
from holdfast.attacks.result import SearchResult
from holdfast.audit.prepare import audit_folder, chosen, opened
from holdfast.errors import AccessError, InputError, SpecError
from holdfast.evaluation import judge
from holdfast.evaluation.facts import Names
from holdfast.evaluation.recheck import read_rows
from holdfast.intervals import Interval, exact_interval
from holdfast.runs import store
from holdfast.runs.audits import AuditVerdict, ExtractionAudit, ExtractionResult, Substitute
from holdfast.runs.manifest import Costs
from holdfast.targets.batch import Rows
from holdfast.targets.surrogate import distil, shallow_nets
from holdfast.targets.target import Access, Target, sealed
from holdfast.targets.wrappers import Around
from holdfast.threats.threat import Threat, as_threat

EVIDENCE = "answers.safetensors"
QUERIES = (1000, 10_000)
NOISE = "sweep(steps=1)"  # a random perturbation of the largest size
MEMBERS = 3  # networks of a copy
MEASURED = 1000  # rows that copies are measured on
FIXED = {"scores": math.inf, "labels": 0.0}  # decimals of the probabilities that are seen
FEWEST = 20  # rows to measure on, and as many for the adversary


class Metered(Around):
    """A target that answers so many rows and no more: the budget of an adversary."""

    def __init__(self, inner: Target, budget: int) -> None:
        super().__init__(inner)
        self.budget, self.spent = budget, 0

    def scores(self, x: Rows) -> Tensor:
        return self._charged(self.inner.scores, x)

    def labels(self, x: Rows) -> Tensor:
        return self._charged(self.inner.labels, x)

    def _charged(self, ask: Callable[[Rows], Tensor], x: Rows) -> Tensor:
        if self.spent + len(x) > self.budget:
            raise InputError(
                f"{self.spent + len(x):,} queries were asked for, of a budget of {self.budget:,}."
            )
        answer = ask(x)
        self.spent += len(x)  # once there is an answer: a batch too large is asked for in parts
        return answer


class Rounded(Around):
    """A target whose probabilities are rounded to so many decimals before anybody sees them."""

    def __init__(self, inner: Target, decimals: int) -> None:
        self.decimals = decimals
        super().__init__(inner)

    def scores(self, x: Rows) -> Tensor:
        p = self.inner.scores(x)[:, : self.task.k].softmax(1).round(decimals=self.decimals)
        nothing = p.sum(1, keepdim=True) == 0  # of many classes: then all look alike
        return torch.where(nothing, 1.0, p).log()


class LabelsAlone(Around):
    """A target that gives labels and nothing else."""

    access = Access.LABELS


def decimals_of(answers: str) -> float:
    """How many decimals of its probabilities an adversary is given: of `scores` infinity, of
    `labels` 0, of `rounded(2)` 2.

    Raises:
        SpecError: it is none of these.
    """
    if answers not in FIXED:
        name, given, options = spec.call(answers, "answers")
        if name == "rounded" and not options and given in [[n] for n in range(1, 16)]:
            return float(given[0])
        raise SpecError(
            f"answers are {answers!r}; expected scores, labels, or rounded(2), to 1 to 15 decimals."
        )
    return FIXED[answers]


def answering(target: Target, decimals: float) -> Target:
    """The target, which gives no more than probabilities of so many decimals; see `decimals_of`."""
    if not decimals:
        return LabelsAlone(target)
    return target if decimals == math.inf else Rounded(target, int(decimals))


@checked
def audit_extraction(
    model: Any,
    data: Any,
    threat: Threat | str,
    *,
    queries: Sequence[int] = QUERIES,
    answers: Sequence[str] = (),
    attack: str = "fgsm",
    rows: int = MEASURED,
    epochs: int = 10,
    seed: int = 0,
    out: Path | str | None = None,
    names: Names | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> tuple[ExtractionAudit, Path]:
    """Copy a model by its answers, and measure what the copy is good for.

    For each budget a network of ours, of images the mean of three, is trained on the answers to so
    many queries, as `targets.surrogate.distil` does, from weights of its own. On other rows: how
    often it agrees with the model, how often it is right, and how often adversarial examples made
    on it alone turn rows that the model has right, against random noise of the same size.

    Args:
        model: what `holdfast.wrap` takes, an endpoint too; scores serve where it gives them.
        data: rows with labels, as `holdfast.evaluate` takes them; those that copies are not
            measured on are the adversary's.
        threat: what the adversarial examples may change; one eps for all rows.
        queries: the budgets, each for a copy of its own; each is spent and never exceeded.
        answers: what the adversary sees, each kind for copies of its own: `scores`, `labels`, or
            probabilities that are `rounded(2)` to two decimals; none: what the model gives.
        attack: what makes the examples on the copy.
        rows: the most rows that copies are measured on. To measure asks the model, too, apart from
            the budgets: each row once, and the examples of each copy and the noise as they go.
        epochs: of the training in each round, see `distil`.
        seed: of all draws.
        out: the folder, or its URL; None: a new temporary one, which is the caller's to delete.
        on_progress: called with what is done next.

    Returns:
        The audit, and its folder.

    Raises:
        AccessError: `answers` takes scores, and the model gives labels alone.
        SpecError: the threat, the attack or the answers cannot be understood, or the model is not
            one of classes.
        InputError: a budget below 1, or too few rows.
    """
    started, say = time.monotonic(), on_progress or (lambda what: None)
    if not queries or min(queries) < 1:
        raise InputError(f"the budgets are {list(queries)}; give at least one of 1 query or more.")
    asked, maker = as_threat(threat), parse(attack)
    seen = {decimals_of(one) for one in answers}
    audited = opened(model, {"rows": data}, Access.LABELS)
    target, source = audited.target, audited.sources["rows"]
    if target.access < Access.SCORES and any(seen):
        raise AccessError(
            f"answers are {_named(max(seen))}, but the model gives labels alone; leave them out."
        )
    given = FIXED["scores" if target.access >= Access.SCORES else "labels"]
    to_make = list(product(sorted(set(queries)), sorted(seen or {given}, reverse=True)))
    if len(source) < 2 * FEWEST:
        raise InputError(
            f"{source.name} has {len(source)} rows, but some are for the adversary and some to "
            f"measure on; give at least {2 * FEWEST}."
        )
    with audit_folder(out) as folder, sealed(seed):
        order = chosen(len(source), len(source), seed)
        measured = min(rows, len(source) // 2)
        x, y = _read(target, source, order[:measured])
        theirs = _read(target, source, order[measured:][: max(queries)])[0]
        label = target.batcher.in_parts(target.labels, x)
        at = (label == y).nonzero()[:, 0]
        if not len(at):
            raise InputError(
                f"the model has none of the {len(x):,} rows of {source.name} right that it is "
                "measured on, so that no example could turn one; are the labels those of this "
                "model?"
            )
        noise = run(parse(NOISE), target, x[at], y[at], asked, seed=seed)
        evidence = {
            "queries": np.array([budget for budget, _ in to_make]),
            "decimals": np.array([decimals for _, decimals in to_make]),
            "row": order[:measured].numpy(),
            "truth": y.cpu().numpy(),
            "model": label.cpu().numpy(),
            "noise": _answers(target, asked, x, noise, at, label),
        }
        tried = len(x) + int(noise.queries.sum()) + len(at)
        answered, transferred = list[np.ndarray](), list[np.ndarray]()
        for budget, decimals in to_make:
            say(f"copying with {budget:,} queries, answered by {_named(decimals)}")
            meter = Metered(answering(target, decimals), budget)
            module = shallow_nets(target, MEMBERS, seed)
            twin = distil(meter, theirs, queries=budget, module=module, epochs=epochs, seed=seed)
            answered.append(twin.batcher.in_parts(twin.labels, x).cpu().numpy())
            made = run(maker, twin, x[at], twin.labels(x[at]), asked, seed=seed)
            transferred.append(_answers(target, asked, x, made, at, label))
            tried += len(at)
        evidence |= {"copy": np.stack(answered), "transferred": np.stack(transferred)}
        store.write_tensors(folder / EVIDENCE, evidence)
        result = judged(evidence)
        audit = audited.written(
            ExtractionAudit,
            folder,
            names,
            seed,
            settings={"attack": attack, "threat": repr(asked), "epochs": epochs},
            result=result,
            verdict=verdict(result),
            costs=Costs(
                queries=sum(budget for budget, _ in to_make),
                forwards=tried,
                seconds=time.monotonic() - started,
            ),
        )
    return audit, folder


def _named(decimals: float) -> str:
    names = {value: name for name, value in FIXED.items()}
    return names.get(decimals, f"rounded({decimals:g})")


def _read(target: Target, source: Any, at: Tensor) -> tuple[Tensor, Tensor]:
    """These rows, where the model takes them, and their labels."""
    batch, labels = read_rows(source, at.numpy())
    x = target.batcher.place(batch.x)
    return x, torch.from_numpy(labels.astype(np.int64)).to(x.device)


def _answers(
    target: Target, threat: Threat, x: Tensor, found: SearchResult, at: Tensor, label: Tensor
) -> np.ndarray:
    """The model's answers on what an attack found for the rows `at`; that on the row itself where
    what was found is not within the threat; -1 for all other rows [n]."""
    answers = torch.full_like(label, -1)
    if len(at):
        within = judge.within(target, threat, x[at], found.best)[0].to(label.device)
        asked = target.batcher.in_parts(target.labels, found.best)
        answers[at] = torch.where(within, asked, label[at])
    return answers.cpu().numpy()


def judged(evidence: Mapping[str, np.ndarray]) -> ExtractionResult:
    """What follows from the evidence: the answers of model and copies on the measured rows."""
    truth, model = evidence["truth"], evidence["model"]
    right = model == truth

    def turned(answers: np.ndarray) -> Interval:
        return exact_interval(int((answers[right] != truth[right]).sum()), int(right.sum()))

    n, counts = len(truth), evidence["queries"]
    kinds = [_named(float(decimals)) for decimals in evidence.get("decimals", ())]
    return ExtractionResult(
        measured=n,
        accuracy=exact_interval(int(right.sum()), n),
        noise=turned(evidence["noise"]),
        substitutes=[
            Substitute(
                queries=int(queries),
                answers=kind,
                agreement=exact_interval(int((answers == model).sum()), n),
                accuracy=exact_interval(int((answers == truth).sum()), n),
                transfer=turned(transferred),
            )
            for queries, kind, answers, transferred in zip(
                counts,
                kinds or [""] * len(counts),  # of an audit of before there was a choice
                evidence["copy"],
                evidence["transferred"],
                strict=True,
            )
        ],
    )


def verdict(result: ExtractionResult) -> AuditVerdict:
    best = max(result.substitutes, key=lambda one: float(one.agreement))
    gained = (best.transfer.low or 0) > (result.noise.high or 1)
    shares = best.agreement, best.accuracy, result.accuracy, best.transfer, result.noise
    answered = f", answered by {best.answers}," * bool(best.answers)
    agrees, right, model, turned, shaken = (f"{100 * float(share):.1f} %" for share in shares)
    return AuditVerdict(
        found=gained,
        reason=f"A copy made with {best.queries:,} queries{answered} agrees with the model on "
        f"{agrees} of rows, and is right on {right} (the model: {model}). Examples made on it turn "
        f"{turned} of the rows that the model has right, random noise of that size {shaken}.",
    )
