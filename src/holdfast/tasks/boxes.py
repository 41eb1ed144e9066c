"""Boxes: how far two overlap, which of many are kept, and which object each one finds.

Boxes are x0, y0, x1, y1 in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 300  # boxes that one image has at most, the best first


@dataclass(frozen=True)
class Boxes:
    """All that a head offers for n images: a places each, each with one box."""

    place: Tensor  # [n, a, 4]
    score: Tensor  # [n, a], of the best class
    label: Tensor  # [n, a] int64: that class
    scores: Tensor | None = None  # [n, a, c], of each class; None: 0 for all but the best

    @staticmethod
    def of_scores(place: Tensor, scores: Tensor) -> Boxes:
        best = scores.max(2)
        return Boxes(place, best.values, best.indices, scores)

    def of_classes(self, classes: Tensor) -> Tensor:
        """The score of each place for each of some classes [n, m]: [n, m, a]."""
        if self.scores is None:
            same = self.label[:, None] == classes[:, :, None]
            return self.score[:, None] * same
        at = classes[:, None].expand(-1, self.scores.shape[1], -1)
        return self.scores.gather(2, at).movedim(2, 1)

    def of_others(self, classes: Tensor) -> Tensor:
        """The best score of each place for any class but each of some [n, m]: [n, m, a]."""
        if self.scores is None or self.scores.shape[2] < 2:
            other = self.label[:, None] != classes[:, :, None]
            return self.score[:, None] * other
        two = self.scores.topk(2, 2)
        best = two.indices[:, None, :, 0] == classes[:, :, None]
        first, second = (two.values[:, None, :, i] for i in (0, 1))
        return torch.where(best, second, first)

    def take(self, at: Tensor) -> Boxes:
        """The places at [n, k] of each image, without the scores of other classes."""
        place = self.place.gather(1, at[:, :, None].expand(-1, -1, 4))
        return Boxes(place, self.score.gather(1, at), self.label.gather(1, at))


def area(box: Tensor) -> Tensor:
    return (box[..., 2:] - box[..., :2]).clamp_min(0).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes [..., p, 4] and [..., q, 4]: [..., p, q]."""
    a, b = a[..., :, None, :], b[..., None, :, :]
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    return shared / (area(a) + area(b) - shared).clamp_min(torch.finfo(shared.dtype).tiny)


def kept(boxes: Boxes, above: float, overlap: float, *, by_class: bool) -> tuple[Tensor, Tensor]:
    """What is left after non-maximum suppression, the best first: places [n, k], and which of them
    are kept, [n, k] bool.

    A box of a score above `above` is kept unless a kept one of a higher score overlaps it by more
    than `overlap`; with `by_class`, one of the same class.
    """
    top = boxes.score.topk(min(4 * MOST, boxes.score.shape[1]), 1)
    k = int((top.values > above).sum(1).amax()) if len(top.values) else 0
    at, keep = top.indices[:, :k], top.values[:, :k] > above
    found = boxes.take(at)
    close = iou(found.place, found.place) > overlap
    if by_class:
        close &= found.label[:, :, None] == found.label[:, None]
    later = torch.ones(k, k, dtype=torch.bool, device=at.device).triu(1)
    close &= later
    for i in close.any(0).any(1).nonzero()[:, 0].tolist():  # those that suppress any other
        keep &= ~(keep[:, i : i + 1] & close[:, i])
    return at, keep & (keep.cumsum(1) <= MOST)


def matched(found: Boxes, keep: Tensor, objects: Tensor, classes: Tensor, least: float) -> Tensor:
    """Which object each kept box finds, -1 for none: [n, k].

    Greedy: the boxes, the best first, each take of the objects [n, m, 4] of their class (`classes`
    [n, m]; negative: none) that are left the one of the highest overlap, of at least `least`.
    """
    overlap = iou(found.place, objects)
    fits = (overlap >= least) & (found.label[:, :, None] == classes[:, None]) & keep[:, :, None]
    which = torch.full_like(found.label, -1)
    rows = torch.arange(len(which), device=which.device)
    for i in fits.any(2).any(0).nonzero()[:, 0].tolist():
        best = torch.where(fits[:, i], overlap[:, i], -1.0).max(1)
        hit = best.values >= least
        which[:, i] = torch.where(hit, best.indices, -1)
        fits[rows[hit], :, best.indices[hit]] = False
    return which
