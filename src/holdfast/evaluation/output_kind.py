"""What a model's outputs are, logits or probabilities, where neither the model nor the user says
it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from holdfast.attacks.shared.pool import spread
from holdfast.data.source import Source
from holdfast.runs.manifest import Finding
from holdfast.targets.batch import Rows, joined, read
from holdfast.targets.target import Access, Target, sealed
from holdfast.targets.threshold import Threshold
from holdfast.targets.truth import TRUTH, WithTruth
from holdfast.targets.wrappers import Around, Ensemble, Surrogate

FIRST, SPREAD = 256, 64  # rows of the data that are asked: the first, and some from all parts
SATURATED = 0.1  # share of rows from which on it is said


def find_reading(target: Target, source: Source, z: Tensor | None = None) -> list[Finding]:
    """Decide whether outputs are logits or probabilities, where neither the model nor the user
    says it, and set `target.head`. Returns what the report should say.

    Several outputs are probabilities where each row is within [0, 1] and sums to 1; that changes no
    decision. With a single output within [0, 1] (or one for each of several labels) it does. There
    both readings are compared with the labels, and the one with the higher accuracy is taken;
    logits where both have the same, or where all labels are of one class.

    Args:
        target: the model; of an ensemble, each member is decided on its own.
        source: the data that it is measured on.
        z: the target's scores of the first rows, as they are now; None: they are asked for.
    """
    raw = z if not target.head.probabilities and target.cost.draws == 1 else None
    return [
        finding
        for one in _members(target)
        if not one.head.said
        for finding in _found(one, source, raw if one is target else None)
    ]


def saturated(target: Target, z: Tensor) -> list[Finding]:
    """Whether scores z [n, k], made of probabilities, lie where these are exactly 0 or 1."""
    with_truth = isinstance(target, WithTruth)
    numbers = with_truth and not target.rule.logits
    if not target.head.probabilities or target.head.reads or numbers or not len(z):
        return []
    most = -math.log(torch.finfo(z.dtype).tiny) - 1
    lead = (
        z.abs().amax(1)
        if with_truth
        else z[:, : target.task.k].topk(2, 1).values.diff(dim=1).abs()[:, 0]
    )
    if (share := float((lead >= most).double().mean())) <= SATURATED:
        return []
    text = (
        f"The model gives probabilities of exactly 0 or 1 for {share:.0%} of the rows probed, "
        "and the logits before "
        "them cannot be read: there an attack cannot see what brings it nearer. Robust accuracy "
        f"is an upper bound; give a model without its last softmax or sigmoid."
    )
    return [
        Finding(
            check="saturated_probabilities",
            severity="amber",
            text=text,
            value=share,
            threshold=SATURATED,
        )
    ]


def sum_to_one(z: Tensor) -> bool:
    """Whether all finite rows of outputs [n, k], of which there is one at least, are within [0, 1]
    and sum to 1."""
    z = z[z.isfinite().all(1)]
    slack = 0.02  # of probabilities in 8 bits
    return (
        bool(len(z))
        and z.shape[1] > 1
        and _inside(z)
        and bool(((z.sum(1) - 1).abs() < slack).all())
    )


def _members(target: Target) -> Iterator[Target]:
    if isinstance(target, Ensemble):
        for member in target.members:
            yield from _members(member)
        return
    if isinstance(target, Threshold):
        yield from _members(target.inner)
        return
    if isinstance(target, Surrogate):
        yield from _members(target.surrogate)
        yield from _members(target.inner)
        return
    if target.access >= Access.SCORES:
        yield target


def _inside(z: Tensor) -> bool:
    return bool(((z >= 0) & (z <= 1)).all())


def _found(target: Target, source: Source, z: Tensor | None) -> list[Finding]:
    x = target.batcher.place(read(source, 0, min(FIRST, len(source)))[0])
    with_truth = isinstance(target, WithTruth)
    _take(target, probabilities=False)
    if with_truth and not target.rule.logits:
        return []
    if z is None or with_truth or target.head.single:
        with sealed(0):
            z = _outputs(target, x)
    else:
        z = z[:, : target.task.k]
    z = z[z.isfinite().all(1)]
    if not len(z) or not _inside(z):
        return []
    if with_truth and target.rule.sum_to_one(z):
        _take(target, probabilities=True)
        text = "The model gives probabilities for each pixel; their log odds serve as logits."
        return [Finding(check="probabilities", severity="info", text=text)]
    if not with_truth and not target.head.single:
        _take(target, probabilities=sum_to_one(z))
        text = "The model gives probabilities; their logarithms serve as logits."
        return (
            [Finding(check="probabilities", severity="info", text=text)]
            if target.head.probabilities
            else []
        )
    return [_by_labels(target, source)]


def _take(target: Target, *, probabilities: bool) -> None:
    target.head = replace(target.head, probabilities=probabilities)


def _outputs(target: Target, x: Rows) -> Tensor:
    """What the model itself gives for rows, [n, ...]; taken for logits already, its scores are
    this."""
    while isinstance(target, Around):
        target, x = target.inner, target.inwards(x)
    z = target.batcher.in_parts(target.scores, x)[:, : target.task.k]
    return z[:, 1:] if target.head.single else z


def _by_labels(target: Target, source: Source) -> Finding:
    """Both readings of outputs within [0, 1], held against the labels."""
    first, y = read(source, 0, min(FIRST, len(source)))
    more, classes = spread(source, SPREAD)
    x = target.batcher.place(joined([first, more]))
    y = torch.cat([torch.from_numpy(y.astype(np.int64)), classes]).to(target.batcher.device)
    right = {}
    for reading in (False, True):
        _take(target, probabilities=reading)
        with sealed(0):
            right[reading] = target.batcher.in_parts(target.labels, x) == y
    truths = x.context.get(TRUTH, y)
    varied = len(truths.unique()) > 1
    as_logits, as_chances = (float(right[reading].double().mean()) for reading in (False, True))
    _take(target, probabilities=varied and as_chances > as_logits)
    differ = int((right[True] != right[False]).sum())
    clear = varied and abs(int(right[True].sum()) - int(right[False].sum())) > 3 * math.sqrt(differ)
    taken, other = (
        ("probabilities", "--no-probabilities")
        if target.head.probabilities
        else ("logits", "--probabilities")
    )
    text = (
        f"All outputs on {len(x)} rows are within [0, 1], and nothing says what they are. Taken "
        "for logits (1 above 0) "
        f"they are right on {as_logits:.0%}, for probabilities (1 above 0.5) on {as_chances:.0%}: "
        f"they were taken for {taken}. If that is wrong, say {other} (in Python: wrap(..., "
        f"probabilities={not target.head.probabilities}))."
    )
    return Finding(check="probabilities", severity="info" if clear else "amber", text=text)
