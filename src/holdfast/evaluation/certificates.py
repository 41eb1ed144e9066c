"""Certificates in an evaluation: rows that no trial broke go to a certifier, which proves that no
legal point of a row is wrong, or says nothing.

A certifier is handed in. Of the rows that were broken it is given some as well: one that it
"proves" is a contradiction, and fails the run.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from holdfast.data import Source
from holdfast.errors import InputError
from holdfast.evaluation.chunk import STATUSES, SearchSettings, met_by_proofs
from holdfast.evaluation.contract import randomised
from holdfast.runs.journal import Journal
from holdfast.runs.manifest import CertificationInfo, Finding
from holdfast.targets.batch import read
from holdfast.targets.target import Target
from holdfast.threats.threat import Targeted, Threat

TRIED = 8  # broken rows of a chunk that are to stay without a proof


@dataclass(frozen=True)
class Proofs:
    """What a certifier found of n rows."""

    by: list[str]  # the method that proved each; "": none did
    reason: list[str]  # why a row has no proof; "": it has
    # legal inputs [*shape] that are wrong, by the place of the row, where some were met
    wrong: dict[int, Tensor] = field(default_factory=dict)

    @property
    def held(self) -> np.ndarray:
        """[n] bool."""
        return np.array([bool(one) for one in self.by], dtype=bool)


# the method at work, and how many rows are done with
OnStep = Callable[[str, int], None]


class Prover(Protocol):
    """A certifier of one model.

    Rows are inputs x [n, *shape] of classes y [n]; the eps of their threat is one a row, and so is
    its goal where rows have goals of their own. Nothing is begun after a time `end` (of
    `time.monotonic`).
    """

    @property
    def info(self) -> CertificationInfo:
        """How rows are certified."""
        ...

    def climb(self, x: Tensor, y: Tensor, threat: Threat, end: float, on_step: OnStep) -> Proofs:
        """Prove what can be proved of rows."""
        ...

    def widest(
        self,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        low: Tensor,
        high: Tensor,
        end: float,
        on_step: OnStep,
    ) -> Tensor:
        """The largest sizes [n] that are proved, sought between `low`, which are, and `high`."""
        ...

    def proves(self, x: Tensor, y: Tensor, threat: Threat, method: str) -> Tensor:
        """Whether one method proves each row: [n] bool."""
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
    chunks: Sequence[tuple[int, int]],
    source: Source,
    settings: SearchSettings,
    on_wrong: Callable[[tuple[int, int]], None],
    on_step: Callable[[str, int, int], None],
) -> None:
    """Certify the rows of searched chunks that were not broken, but for chunks where that is done.
    What is left of the time is spread evenly over the rows.

    Args:
        on_wrong: called with a chunk in which a certifier met wrong inputs, which `chunk.search`
            finds in the journal.
        on_step: called with the method at work, how many rows are done with, and of how many.
    """
    for chunk in chunks:
        if _unjudged(journal, chunk):
            on_wrong(chunk)
    parts = [_Chunk(prover, settings, journal, chunk) for chunk in chunks]
    done, total = 0, sum(len(part.at) for part in parts)

    def on_share(before: int, n: int, method: str, share: float) -> None:
        on_step(method, before + int(share * n), total)

    for part in parts:
        n = len(part.at)
        if not part.known(journal):
            left = settings.deadline - time.monotonic()
            seconds = left * n / (total - done) if n else 0.0
            part.prove(source, seconds, partial(on_share, done, n))
            if part.wrong:
                part.write_wrong(journal)
                on_wrong(part.span)
            part.write(journal)
        done += n


def _unjudged(journal: Journal, chunk: tuple[int, int]) -> bool:
    """Whether the journal holds wrong inputs of rows of a chunk that it still calls robust: the
    run ended before they were judged."""
    met = journal.find(met_by_proofs(name := f"{chunk[0]:09d}"))
    if met is None:
        return False
    status = np.array(STATUSES)[journal.read(f"{name}-done")[0]["status"]]
    return bool((status[met[0]["at"]] == "robust").any())


class _Chunk:
    """The rows of one searched chunk, and what is proved of them.

    at: the rows that go to the prover: they were not broken, at the threat's eps or at a smaller
        one that was asked about.
    radius: the largest size that is proved, [n]; NaN: none is.
    by, reason, wrong: as of `Proofs`, at the threat's eps.
    """

    def __init__(
        self, prover: Prover, settings: SearchSettings, journal: Journal, span: tuple[int, int]
    ) -> None:
        self.prover, self.settings, self.span = prover, settings, span
        columns = journal.read(f"{span[0]:09d}-done")[0]
        status, size = np.array(STATUSES)[columns["status"]], columns["size"]
        self.goals = columns.get("target_class")
        self.size = np.where(np.isfinite(size), size, np.inf)
        self.robust, self.broken = status == "robust", status == "broken"
        smallest = 0.0 if prover.info.radius else settings.limit(min(settings.measured))
        self.at = np.flatnonzero(self.robust | (self.broken & (self.size > smallest)))
        self.radius = np.full(len(status), np.nan)
        self.by, self.reason = [""] * len(status), [""] * len(status)
        self.wrong: dict[int, Tensor] = {}
        self.finished = True

    def known(self, journal: Journal) -> bool:
        """Whether the journal has all that can be proved of these rows."""
        found = journal.find(_place(self.span[0]))
        if found is None or found[1]["finished"] != "True":
            return False
        return bool(np.isin(self.at, found[0]["at"]).all())

    def write(self, journal: Journal) -> None:
        at = np.union1d(self.at, np.flatnonzero(self.by)).astype(np.int64)
        texts = {
            name: json.dumps([column[i] for i in at])
            for name, column in (("by", self.by), ("reason", self.reason))
        }
        said = {**texts, "finished": str(self.finished)}
        journal.write(_place(self.span[0]), {"at": at, "radius": self.radius[at]}, said)

    def write_wrong(self, journal: Journal) -> None:
        place, wrong = met_by_proofs(f"{self.span[0]:09d}"), dict[int, np.ndarray]()
        if (before := journal.find(place)) is not None:
            wrong = dict(zip(before[0]["at"].tolist(), before[0]["x"], strict=True))
        wrong |= {i: x.cpu().numpy() for i, x in self.wrong.items()}
        at = np.array(sorted(wrong), dtype=np.int64)
        journal.write(place, {"at": at, "x": np.stack([wrong[i] for i in at.tolist()])})

    def prove(self, source: Source, seconds: float, on_share: Callable[[str, float], None]) -> None:
        """Prove what can be proved: at the threat's eps, at smaller ones of what is not proved
        there, at larger ones of what is.

        Args:
            seconds: begin nothing after this time.
            on_share: called with the method at work, and how much is done, in [0, 1].
        """
        rows, y = read(source, *self.span)
        self.x, self.y = rows.x, torch.from_numpy(y.astype(np.int64))
        info, (own, *others) = self.prover.info, self.settings.measured
        usual = most(self.prover, len(self.at))
        end = time.monotonic() + min(seconds, usual)
        sizes = [own, *sorted((e for e in others if e < own), reverse=True)]
        sizes += sorted(e for e in others if e > own)
        stages, largest = len(sizes) + info.radius, own
        for number, eps in enumerate(sizes):
            asked, held = self.robust, self.size > self.settings.limit(eps)
            if eps < own:
                asked = (self.robust | self.broken) & np.isnan(self.radius) & held
            if eps > own:
                asked, largest = (self.radius == largest) & held, eps
            at = np.flatnonzero(asked)
            self._climb(at, eps, end, partial(_scaled, on_share, number, len(at), stages))
        if info.radius:
            self._widen(end, partial(_scaled, on_share, len(sizes), len(self.at), stages))
        self.finished = not len(self.at) or seconds >= usual or time.monotonic() < end
        self._try_broken(end)

    def _threat(self, at: np.ndarray, eps: Any) -> Threat:
        """The threat of these rows, with an eps for each."""
        sizes = torch.as_tensor(eps, dtype=torch.float64).expand(len(at))
        threat = replace(self.settings.threat, eps=sizes)
        if self.goals is None:
            return threat
        return replace(threat, goal=Targeted(torch.from_numpy(self.goals[at])))

    def _climb(self, at: np.ndarray, eps: float, end: float, on_step: OnStep) -> None:
        if not len(at):
            return
        found = self.prover.climb(self.x[at], self.y[at], self._threat(at, eps), end, on_step)
        self.radius[at[found.held]] = eps
        if eps == self.settings.measured[0]:
            for i, by, reason in zip(at.tolist(), found.by, found.reason, strict=True):
                self.by[i], self.reason[i] = by, reason
            self.wrong |= {int(at[place]): x for place, x in found.wrong.items()}

    def _widen(self, end: float, on_step: OnStep) -> None:
        """Seek the largest size that is proved of each row."""
        own, at = self.settings.measured[0], self.at
        if not len(at):
            return
        low = torch.from_numpy(np.nan_to_num(self.radius[at]))
        high = torch.where(low < own, own, torch.inf)
        found = self.prover.widest(
            self.x[at], self.y[at], self._threat(at, own), low, high, end, on_step
        )
        self.radius[at] = torch.where(found > 0, found, torch.nan)

    def _try_broken(self, end: float) -> None:
        """Hold the methods that proved a row of the chunk against rows that were broken, and write
        down what they prove of those; the dearer ones while there is time."""
        own, info = self.settings.measured[0], self.prover.info
        at = np.flatnonzero(self.broken)[:TRIED]
        end += most(self.prover, len(at))
        used = [method for method in info.methods if method in self.by]
        for method in used:
            if not len(at) or (method != used[0] and time.monotonic() >= end):
                break
            held = self.prover.proves(self.x[at], self.y[at], self._threat(at, own), method)
            for i in at[held.numpy()].tolist():
                self.by[i], self.radius[i] = method, own
            at = at[~held.numpy()]


def most(prover: Prover, rows: int) -> float:
    """Seconds that the proofs of so many rows may take."""
    each = prover.info.seconds_per_row
    return math.inf if each is None else each * rows


def _scaled(
    on_share: Callable[[str, float], None], number: int, n: int, stages: int, method: str, done: int
) -> None:
    """An `OnStep` of one of several stages, of n rows."""
    on_share(method, (number + done / n) / stages)


def _place(start: int) -> str:
    """What the journal calls the proofs of a chunk."""
    return f"{start:09d}-certified"


def columns(journal: Journal, start: int, status: list[str]) -> tuple[dict[str, pa.Array], bool]:
    """The columns of a chunk that say what was proved, its statuses with it; and whether there was
    time for all."""
    held, said = journal.read(_place(start))
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
