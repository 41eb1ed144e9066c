"""Extraction: how good a copy of a model do its answers give?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from holdfast.arguments import checked
from holdfast.attacks import parse, run
from holdfast.attacks.result import SearchResult
from holdfast.audit.prepare import audit_folder, chosen, opened
from holdfast.errors import InputError
from holdfast.evaluation import judge
from holdfast.evaluation.facts import Names
from holdfast.evaluation.recheck import read_rows
from holdfast.intervals import Interval, exact_interval
from holdfast.runs import store
from holdfast.runs.audits import AuditVerdict, ExtractionAudit, ExtractionResult, Substitute
from holdfast.runs.manifest import Costs
from holdfast.targets.batch import Rows
from holdfast.targets.surrogate import distil
from holdfast.targets.target import Access, Target, sealed
from holdfast.targets.wrappers import Around
from holdfast.threats.threat import Threat, as_threat

EVIDENCE = "answers.safetensors"
QUERIES = (1000, 10_000)
NOISE = "sweep(steps=1)"  # a random perturbation of the largest size
MEASURED = 1000  # rows that copies are measured on
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


@checked
def audit_extraction(
    model: Any,
    data: Any,
    threat: Threat | str,
    *,
    queries: Sequence[int] = QUERIES,
    attack: str = "fgsm",
    rows: int = MEASURED,
    epochs: int = 20,
    seed: int = 0,
    out: Path | str | None = None,
    names: Names | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> tuple[ExtractionAudit, Path]:
    """Copy a model by its answers, and measure what the copy is good for.

    For each budget a network of ours is trained on the answers to so many queries, as
    `targets.surrogate.distil` does, from weights of its own. On other rows: how often it agrees
    with the model, how often it is right, and how often adversarial examples made on it alone turn
    rows that the model has right, against random noise of the same size.

    Args:
        model: what `holdfast.wrap` takes, an endpoint too; scores serve where it gives them.
        data: rows with labels, as `holdfast.evaluate` takes them; those that copies are not
            measured on are the adversary's.
        threat: what the adversarial examples may change; one eps for all rows.
        queries: the budgets, each for a copy of its own; each is spent and never exceeded.
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
        SpecError: the threat or the attack cannot be understood, or the model is not one of
            classes.
        InputError: a budget below 1, or too few rows.
    """
    started, say = time.monotonic(), on_progress or (lambda what: None)
    if not queries or min(queries) < 1:
        raise InputError(f"the budgets are {list(queries)}; give at least one of 1 query or more.")
    asked, maker = as_threat(threat), parse(attack)
    audited = opened(model, {"rows": data}, Access.LABELS)
    target, source = audited.target, audited.sources["rows"]
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
            "queries": np.array(sorted(set(queries))),
            "row": order[:measured].numpy(),
            "truth": y.cpu().numpy(),
            "model": label.cpu().numpy(),
            "noise": _answers(target, asked, x, noise, at, label),
        }
        tried = len(x) + int(noise.queries.sum()) + len(at)
        answered, transferred = list[np.ndarray](), list[np.ndarray]()
        for budget in sorted(set(queries)):
            say(f"copying with {budget:,} queries")
            meter = Metered(target, budget)
            twin = distil(meter, theirs, queries=budget, epochs=epochs, seed=seed)
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
                queries=sum(set(queries)), forwards=tried, seconds=time.monotonic() - started
            ),
        )
    return audit, folder


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

    n = len(truth)
    return ExtractionResult(
        measured=n,
        accuracy=exact_interval(int(right.sum()), n),
        noise=turned(evidence["noise"]),
        substitutes=[
            Substitute(
                queries=int(queries),
                agreement=exact_interval(int((answers == model).sum()), n),
                accuracy=exact_interval(int((answers == truth).sum()), n),
                transfer=turned(transferred),
            )
            for queries, answers, transferred in zip(
                evidence["queries"], evidence["copy"], evidence["transferred"], strict=True
            )
        ],
    )


def verdict(result: ExtractionResult) -> AuditVerdict:
    best = max(result.substitutes, key=lambda one: float(one.agreement))
    gained = (best.transfer.low or 0) > (result.noise.high or 1)
    shares = best.agreement, best.accuracy, result.accuracy, best.transfer, result.noise
    agrees, right, model, turned, shaken = (f"{float(share):.1%}" for share in shares)
    return AuditVerdict(
        found=gained,
        reason=f"A copy made with {best.queries:,} queries agrees with the model on {agrees} of "
        f"rows, and is right on {right} (the model: {model}). Examples made on it turn {turned} "
        f"of the rows that the model has right, random noise of that size {shaken}.",
    )
