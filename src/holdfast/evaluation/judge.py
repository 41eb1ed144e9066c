"""The judge: the only one who says "broken".

It looks at stored inputs, apart from every attack, with the model itself in its full precision,
and twice: in order, and in reverse with another batch size. What flips between the two has no
stable answer. Examples are always asked about twice. Of a model whose two answers to a few rows
agree but for rounding, only those of the data's own rows are whose best scores lie close to each
other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from holdfast.attacks.problem import legal_size, meets_goal
from holdfast.decisions import SILENT
from holdfast.targets.batch import Batch, Batcher, Rows
from holdfast.targets.target import Access, Target, drawing, sealed
from holdfast.targets.truth import WithTruth, objects_at
from holdfast.tasks import silent
from holdfast.threats.threat import Threat


@dataclass(frozen=True)
class Ruling:
    """What the model says of n inputs."""

    # [n] int64; -1 where scores are not finite or the model gave no decision; or REFUSED
    label: Tensor
    confidence: Tensor  # [n] float32: of the decision, by softmax; NaN where there are no scores
    stable: Tensor  # [n] bool: both answers agree
    scores: Tensor | None  # [n, k], of the first answer
    again: Tensor  # [n] bool: asked a second time

    @property
    def silent(self) -> Tensor:
        """Where there is no answer, and no refusal either: [n] bool."""
        return silent(self.label)

    @property
    def forwards(self) -> int:
        """What was asked, in passes of the model."""
        return len(self.label) + int(self.again.sum())


PASSES = 2  # of a row that is asked twice
FEW = 8  # rows that say whether a model is steady
ROUNDING = 1e-5  # of a row's largest score: so far apart two answers of a steady model may be
CLOSE = 100 * ROUNDING  # rows whose best two scores are nearer than this are always asked twice


def rule(target: Target, rows: Rows, seed: int = 0, *, steady: bool = False) -> Ruling:
    """The decisions on n rows, which may lie on any device; of a model that is `steady`?"""
    batch = target.batcher.place(Batch.of(rows))
    with sealed(seed):
        label, confidence, scores = _first(target, batch)
        again = torch.ones_like(label, dtype=torch.bool)
        if steady and scores is not None:
            best = scores.topk(2, 1).values
            again = ~(best[:, 0] - best[:, 1] > CLOSE * scores.abs().amax(1))  # NaN: asked too
        at, stable = again.nonzero()[:, 0].flip(0), torch.ones_like(again)
        if len(at):
            second = _second(target, batch[at])[0]
            stable[at] = second == label[at]
            label[at] = torch.where(silent(second), SILENT, label[at])  # one answer is none
    return Ruling(label, confidence, stable, scores, again)


def is_steady(target: Target, rows: Batch, seed: int = 0) -> bool:
    """Whether both answers to the first of these rows, which are the data's own, agree but for
    rounding: nothing is drawn, and no row depends on others of its batch."""
    of_classes = target.access >= Access.SCORES and not isinstance(target, WithTruth)
    if not of_classes or target.task.refuses or target.cost.draws > 1:
        return False
    batch = target.batcher.place(rows[:FEW])
    with sealed(seed):
        z = _first(target, batch)[2]
        reverse = torch.arange(len(batch) - 1, -1, -1, device=batch.x.device)
        again = _second(target, batch[reverse], FEW // 2 - 1)[2]  # among other rows
    assert z is not None
    assert again is not None
    apart = (z - again.flip(0)).abs().amax(1)
    return bool((apart <= ROUNDING * z.abs().amax(1)).all())


def within(target: Target, threat: Threat, rows: Rows, found: Tensor) -> tuple[Tensor, Tensor]:
    """Whether stored points are legal answers to rows: finite, in the box and on the grid, changed
    where they may be, within eps.

    And their sizes.

    Computed in float64: [n] bool, [n] float64. The tolerance is that of `legal_size`.
    """
    batch = Batch.of(rows)
    x = batch.x
    d = found.double() - threat.origin(x).double()
    size = threat.norm.size(d)
    legal = size <= legal_size(threat, target, len(x)).to(size.device)
    if threat.schema is None:
        legal &= target.bounds.inside(found)
    else:
        legal &= threat.schema.legal(threat.apply(x, found), x)
    if threat.spatial is not None and threat.spatial.avoids:
        legal &= threat.spatial.clear(found, objects_at(target, batch))
    if threat.grid:
        legal &= (target.bounds.as_8bit(found) == found).flatten(1).all(1)
    if threat.mask is not None:
        legal &= (d * ~threat.mask.bool().to(d.device) == 0).flatten(1).all(1)
    return legal, size


def holds_in_8bit(target: Target, threat: Threat, found: Batch, y: Tensor, seed: int = 0) -> Tensor:
    """Whether images `found` still meet the goal as a file of 8 bits holds them: [n]
    bool, on the CPU."""
    rounded = found.with_x(target.bounds.as_8bit(found.x))
    with sealed(seed):
        label = _first(target, target.batcher.place(rounded))[0]
    return meets_goal(threat, label.cpu(), y.cpu())


def _first(target: Target, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    with drawing("judge", 1):  # a random step draws for each answer alone, as no search did
        return _answer(target, batch, target.batcher)


def _second(
    target: Target, reversed_: Batch, size: int | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    size = size or target.batcher.size // 2 + 1
    with drawing("judge", 2):
        return _answer(target, reversed_, replace(target.batcher, size=size))


def _answer(target: Target, batch: Batch, batcher: Batcher) -> tuple[Tensor, Tensor, Tensor | None]:
    n, device = len(batch), batch.x.device
    if target.access < Access.SCORES:
        none = [torch.zeros(0, dtype=torch.int64, device=device)]
        label = torch.cat(list(batcher.parts(lambda rows: target.labels(batch[rows]), n)) or none)
        return label, torch.full((n,), torch.nan), None
    none = [torch.zeros(0, target.task.k, device=device)]
    z = torch.cat(list(batcher.parts(lambda rows: target.scores(batch[rows]), n)) or none)
    finite = z.isfinite().all(1)
    label = torch.where(finite, target.task.predict(z), SILENT)
    return label, torch.where(finite, target.confidence(z).float(), torch.nan), z
