"""Certificates in an evaluation: rows that no trial broke go to a certifier, which proves that no
legal point of a row is wrong, or says nothing.

A certifier is handed in. Of the rows that were broken it is given some as well: one that it
"proves" is a contradiction, and fails the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from holdfast.data import Source
from holdfast.errors import InputError
from holdfast.evaluation.contract import randomised
from holdfast.runs.journal import Journal
from holdfast.runs.manifest import CertificationInfo, Finding
from holdfast.targets.batch import read
from holdfast.targets.target import Target
from holdfast.threats.threat import Threat

TRIED = 8  # broken rows of a chunk that are to stay without a proof


@dataclass(frozen=True)
class Proofs:
    """What a certifier found of n rows."""

    by: list[str]  # the method that proved each; "": none did
    radius: np.ndarray  # [n] float64: no legal change of at most this size is wrong; NaN: unknown
    reason: list[str]  # why a row has no proof; "": it has
    finished: bool = True  # else time ran out, and more of it may prove more


# how much of the methods is done, in [0, 1]; the one at work; rows that are left
OnStep = Callable[[float, str, int], None]


class Prover(Protocol):
    """A certifier of one model under one threat."""

    @property
    def info(self) -> CertificationInfo:
        """How rows are certified."""
        ...

    def climb(self, x: Tensor, y: Tensor, deadline: float, on_step: OnStep) -> Proofs:
        """Prove what can be proved of inputs x [n, *shape] of classes y [n], and begin nothing
        after this time (of `time.monotonic`)."""
        ...

    def proves(self, x: Tensor, y: Tensor, radius: Tensor, method: str) -> np.ndarray:
        """Whether one method proves that no change of at most these sizes [n] is wrong: [n]
        bool."""
        ...


Certifier = Callable[[Target, Threat], Prover]


def opened(certifier: Certifier, target: Target, threat: Threat, noted: list[Finding]) -> Prover:
    """The certifier of a model that has seen inputs.

    Raises:
        InputError: it cannot follow the model, or the model answers at random.
    """
    if target.cost.draws > 1 or randomised(noted):
        raise InputError(
            "the model is randomised: it answers otherwise when asked again, and these proofs are "
            "of one answer. Leave out --certify, or fix what it draws."
        )
    return certifier(target, threat)


def certify(
    prover: Prover,
    journal: Journal,
    chunk: tuple[int, int],
    status: np.ndarray,
    source: Source,
    deadline: float,
    on_step: OnStep,
) -> None:
    """Certify the rows of a chunk that were not broken, unless that is done.

    Args:
        status: of the chunk's rows, texts.
    """
    name = f"{chunk[0]:09d}-certified"
    known, open_ = journal.find(name), np.flatnonzero(status == "robust")
    if (
        known is not None
        and known[1]["finished"] == "True"
        and np.isin(open_, known[0]["at"]).all()
    ):
        return
    at = np.concatenate([open_, np.flatnonzero(status == "broken")[:TRIED]])
    found = Proofs([], np.zeros(0), [])
    if len(at):
        rows, y = read(source, *chunk)
        found = prover.climb(
            rows.x[at], torch.from_numpy(y[at].astype(np.int64)), deadline, on_step
        )
    texts = {"by": json.dumps(found.by), "reason": json.dumps(found.reason)}
    journal.write(
        name, {"at": at, "radius": found.radius}, {**texts, "finished": str(found.finished)}
    )


def columns(journal: Journal, start: int, status: list[str]) -> tuple[dict[str, pa.Array], bool]:
    """The columns of a chunk that say what was proved, its statuses with it; and whether there was
    time for all."""
    held, said = journal.read(f"{start:09d}-certified")
    radius = np.full(len(status), np.nan)
    radius[held["at"]] = held["radius"]
    texts = {name: [""] * len(status) for name in ("by", "reason")}
    for name, column in texts.items():
        for i, text in zip(held["at"].tolist(), json.loads(said[name]), strict=True):
            column[i] = text
    by, open_ = texts["by"], [one == "robust" for one in status]
    status = ["certified" if a and b else one for one, a, b in zip(status, open_, by, strict=True)]
    reason = [text if a else "" for text, a in zip(texts["reason"], open_, strict=True)]
    return {
        "status": pa.array(status),
        "certified_radius": pa.array(radius, from_pandas=True),
        "certified_by": pa.array([text or None for text in by], pa.string()),
        "not_certified": pa.array([text or None for text in reason], pa.string()),
    }, said["finished"] == "True"
