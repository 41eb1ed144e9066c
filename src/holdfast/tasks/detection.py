"""Objects in images, and the boxes that a detector puts around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from holdfast import spec, usercode
from holdfast.boxes import check_boxes
from holdfast.errors import InputError, listed, suggest
from holdfast.spec import option
from holdfast.tasks.boxes import MOST, Boxes, area, iou, kept, matched
from holdfast.tasks.detection_heads import HEADS, BoxHead, corners
from holdfast.tasks.form import Form
from holdfast.tasks.task import TaskWithTruth, odds

LOWEST = 0.01  # score of the boxes that a table of samples keeps
CLOSE = 2.0  # log-odds below `score` from which on a place is close to a box
GOALS = ("vanish", "ghost", "mislabel", "all")


class Objects(NamedTuple):
    """The truth of n images."""

    place: Tensor  # [n, m, 4]
    label: Tensor  # [n, m] int64: the class; -1: there is none
    live: Tensor  # [n, m] bool: an adversary is asked to hide it
    before: Tensor  # [n]: boxes without an object on the clean image


@dataclass(frozen=True)
class Detection(TaskWithTruth):
    """Boxes [m, 5] of class, x0, y0, x1, y1 in pixels of the raw image are the truth of an image; a
    class of -1 fills up.

    A box of the detector counts from `score` on, and after non-maximum suppression. It finds an
    object of its class which it overlaps by at least `iou`: greedy, the best box first, each object
    by one box. What the adversary wants is the `goal`: of the objects that are found on the clean
    image, that they are not found ("vanish"), or found with another class ("mislabel"): `lose` any
    of them, or all; or that at least `ghosts` more boxes than on the clean image find no object
    ("ghost"); or any of the three ("all"). Objects that are not found on the clean image are
    counted, and not attacked; an image where none is found is wrong from the start.

    A search goes on past the first object: the margin is 1 less than that of the first one lost,
    and sums up the best scores of boxes that still match, less `score`, over the objects still
    found. The head is read as `detection_heads` says, or by a function of one's own of the raw
    outputs, which gives boxes [n, a, 4] and scores [n, a, c]: `path/file.py:function`.

    Raises:
        SpecError: an option is wrong.
    """

    structured: ClassVar[bool] = True
    relative: ClassVar[bool] = True
    enough: ClassVar[float] = 1.0

    iou: float = option(0.5, "least overlap with an object", above=0, at_most=1)
    score: float = option(0.5, "least score of a box", above=0, below=1)
    goal: str = option("vanish", "what the adversary wants", choices=GOALS)
    lose: str = option("any", "of the objects: any, or all", choices=("any", "all"))
    ghosts: int = option(1, "boxes without an object that are too many", at_least=1, at_most=MOST)
    overlap: float = option(0.45, "most overlap of two boxes", above=0, at_most=1)
    head: Any = "auto"
    # of what it is fitted to: how boxes are read, and the number of classes, where the head says it
    reader: BoxHead = field(default=HEADS["torchvision"], init=False, repr=False, compare=False)
    classes: int | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        spec.check(self)

    # ------------------------------------------------------------------ the head

    def pick(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.head != "auto" and self.head not in HEADS:
            return outputs
        for names in (("logits", "pred_boxes"), ("boxes", "scores", "labels")):
            if set(names) <= outputs.keys():
                return {name: outputs[name] for name in names}
        first, *others = outputs
        if all("." in name for name in others):  # the list of maps that it was decoded from
            return {first: outputs[first]}
        return outputs

    def fitted(self, form: Form) -> Self:
        own = super().fitted(form)
        object.__setattr__(own, "reader", own._head())  # of a frozen dataclass
        if form.seen is None:
            raise InputError(f"{self} is of images, but the inputs are none.")
        boxes = own._tried()
        object.__setattr__(own, "classes", None if boxes.scores is None else boxes.scores.shape[2])
        return own

    def _head(self) -> BoxHead:
        """How the outputs of this form are read.

        Raises:
            InputError: no head gives them, or there is none of that name.
        """
        if callable(self.head) or ":" in self.head:
            function = self.head if callable(self.head) else usercode.find(self.head)
            return BoxHead(lambda form: True, lambda z, form: own(function, z), "")
        if self.head in HEADS:
            return HEADS[self.head]
        if self.head != "auto":
            raise InputError(
                f"unknown head {self.head!r} of a detector; {suggest(self.head, HEADS)}"
            )
        found = [name for name, head in HEADS.items() if head.reads(self.form)]
        if len(found) == 1:
            return HEADS[found[0]]
        known = "; ".join(f"{name}: {head.shapes}" for name, head in HEADS.items())
        raise InputError(
            f"the model gives {self.form}, which {listed(found, 5) or 'no known head'} could give: "
            f'say which with detection(head="..."), one of {known}; or give a function of the raw '
            'outputs, head="path/file.py:function", that returns boxes [n, a, 4] (x0, y0, x1, y1 '
            "in pixels) and scores [n, a, c]."
        )

    def _tried(self) -> Boxes:
        """The boxes that zeros offer.

        Raises:
            InputError: outputs of this form are none of the head that the user names.
        """
        z = torch.zeros(1, sum(self.form.sizes))
        if self.head not in HEADS:
            return self.decode(z)
        try:
            boxes = self.decode(z)
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
            boxes = None
        if boxes is None or boxes.place.ndim != 3 or boxes.place.shape[:2] != boxes.score.shape:
            raise InputError(
                f"the model gives {self.form}, but the head {self.head} is of "
                f"{self.reader.shapes}: leave head out, and it is found, or give a function of the "
                'raw outputs, head="path/file.py:function".'
            )
        return boxes

    def decode(self, z: Tensor) -> Boxes:
        """All boxes that outputs z [n, k] offer, in pixels of the raw images."""
        boxes = self.reader.decode(self.form.split(z), self.form)
        (h, w), (seen_h, seen_w) = self.size, self.form.seen or self.size
        if (h, w) == (seen_h, seen_w):
            return boxes
        scale = torch.tensor([w / seen_w, h / seen_h] * 2).to(z)
        return replace(boxes, place=boxes.place * scale)

    def left(self, boxes: Boxes, above: float) -> tuple[Boxes, Tensor]:
        """The boxes after suppression, the best first, and which of them are kept: [n, k] bool."""
        overlap = self.overlap if self.reader.suppresses else 1.0
        at, keep = kept(boxes, above, overlap, by_class=self.reader.by_class)
        return boxes.take(at), keep

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the raw images."""
        assert self.form.image is not None  # `fitted` saw images
        return self.form.image

    # ------------------------------------------------------------------ the truth

    def truths(self, y: np.ndarray, start: int, name: str) -> np.ndarray:
        if y.dtype.kind not in "biuf" or y.ndim != 3 or y.shape[2] != 5:
            raise InputError(
                f"the labels of {name} are {y.dtype} of shape {list(y.shape[1:])} a row, but a "
                "detector takes boxes [n, m, 5]: class, x0, y0, x1, y1, in pixels; a class of -1 "
                "where there are fewer than m."
            )
        for row, objects in enumerate(y):
            self._check(objects[objects[:, 0] != -1], f"row {start + row} of {name}")
        return np.concatenate([np.zeros_like(y[:, :1]), y], 1)

    def _check(self, objects: np.ndarray, where: str) -> None:
        """Raises InputError: these boxes [m, 5] are none, or of another convention."""
        height, width = self.size
        check_boxes(objects, width, height, where, self.classes)

    def empty(self, truth: Tensor) -> Tensor:
        if self.goal in ("ghost", "all"):  # a box can appear anywhere
            return super().empty(truth)
        return (truth[:, 1:, 0].round() == -1).all(1)

    @property
    def lacking(self) -> str:
        return "object"

    def objects(self, truth: Tensor) -> Objects:
        """The truth as the context holds it, [n, 1 + m, 5]: first how many boxes were without an
        object before; of an object that is not attacked the class c is -2 - c."""
        label = truth[:, 1:, 0].round().long()
        known = torch.where(label < -1, -2 - label, label)
        return Objects(truth[:, 1:, 1:], known, label >= 0, truth[:, 0, 0])

    def mistaken(self, truth: Tensor, z: Tensor) -> str:
        boxes, given = self.decode(z), self.objects(truth)
        at, size = given.place[..., :2], given.place[..., 2:]
        total, found = int(given.live.sum()), int(self.judged(boxes, given)[0].sum())
        for place, label, said in (
            (torch.cat([at, at + size], -1), given.label, "their boxes as x, y, width, height"),
            (corners(at, size), given.label, "their boxes as center x, center y, width, height"),
            (given.place, given.label - 1, "their classes as counted from 1"),
        ):
            other = int(self.judged(boxes, given._replace(place=place, label=label))[0].sum())
            if found < total / 2 and other > max(found + 0.3 * total, 1):
                return (
                    f"of the {total} objects of its first images the detector finds {found}, but "
                    f"{other} when it reads {said}: give class, x0, y0, x1, y1, with classes from "
                    "0, in pixels of the raw image."
                )
        return ""

    def since(self, truth: Tensor, z: Tensor) -> Tensor:
        boxes, objects = self.decode(z), self.objects(truth)
        found, free = self.judged(boxes, objects)[:2]
        held = truth.clone()
        held[:, 0, 0] = free
        lost = objects.live & ~found
        held[:, 1:, 0] = torch.where(lost, -2 - objects.label, objects.label).to(held)
        return held

    # ------------------------------------------------------------------ the judgement

    def judged(self, boxes: Boxes, objects: Objects) -> tuple[Tensor, Tensor, Tensor]:
        """Which objects are found, [n, m] bool; how many boxes find none, [n]; and which objects
        are called something else, [n, m] bool."""
        with torch.no_grad():
            left, keep = self.left(boxes, self.score)
            which = matched(left, keep, objects.place, objects.label, self.iou)
            found = torch.zeros_like(objects.live)
            for j in range(found.shape[1]):
                found[:, j] = (which == j).any(1)
            over = (iou(left.place, objects.place) >= self.iou) & (keep & (which < 0))[:, :, None]
            other = over & (left.label[:, :, None] != objects.label[:, None])
            free = (keep & (which < 0)).sum(1)
            return found, free, other.any(1) & ~found

    def recast(self, z: Tensor, truth: Tensor) -> Tensor:
        boxes, objects = self.decode(z), self.objects(truth)
        found, free, other = self.judged(boxes, objects)
        parts: list[tuple[Tensor, Tensor]] = []
        if self.goal in ("vanish", "all"):
            parts.append(self._lost(boxes, objects, found))
        if self.goal == "mislabel":
            parts.append(self._called(boxes, objects, found, other))
        if self.goal in ("ghost", "all"):
            parts.append(self._ghosts(boxes, free - objects.before))
        broken = torch.stack([b for b, _ in parts]).any(0)
        left = torch.stack([p for _, p in parts]).mean(0)
        v = (broken.to(z) + left).where(z.isfinite().all(1), torch.nan)
        return torch.stack([torch.zeros_like(v), v], 1)

    def objects_at(self, truth: Tensor) -> Tensor:
        objects, (height, width) = self.objects(truth), self.size
        rows, columns = (torch.arange(k, device=truth.device) for k in (height, width))
        x0, y0, x1, y1 = objects.place[..., None].unbind(2)
        down = (rows + 1 > y0) & (rows < y1)  # of a pixel any part
        across = (columns + 1 > x0) & (columns < x1)
        inside = down[..., None] & across[:, :, None] & (objects.label >= 0)[..., None, None]
        return inside.any(1)

    def share(self, z: Tensor, truth: Tensor) -> Tensor:
        """That of the objects that are found, attacked or not; of an image without any 1."""
        objects = self.objects(truth)
        there = objects.label >= 0
        found = self.judged(self.decode(z), objects)[0] & there
        return (found.sum(1) / there.sum(1).clamp_min(1)).double().where(there.any(1), 1.0)

    def _some(self, objects: Objects, done: Tensor) -> Tensor:
        """Whether enough of the live objects are `done` with, [n, m] bool: [n] bool."""
        rest = objects.live & ~done
        if self.lose == "all":
            return ~rest.any(1)
        return (objects.live & done).any(1) | ~objects.live.any(1)

    def _lost(self, boxes: Boxes, objects: Objects, found: Tensor) -> tuple[Tensor, Tensor]:
        """Whether objects are lost, and what is left of those still found: [n] in [-1, 0]."""
        close = iou(objects.place, boxes.place.detach()) >= self.iou
        score = boxes.of_classes(objects.label.clamp_min(0))
        best = torch.where(close, score, 0).amax(2)
        rest = (best - self.score).clamp_min(0) * (objects.live & found)
        return self._some(objects, ~found), -rest.sum(1) / objects.live.sum(1).clamp_min(1)

    def _called(
        self, boxes: Boxes, objects: Objects, found: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Whether objects are called something else, and how far the others are from that."""
        close = iou(objects.place, boxes.place.detach()) >= self.iou
        right = boxes.of_classes(objects.label.clamp_min(0))
        wrong = boxes.of_others(objects.label.clamp_min(0))
        best = torch.where(close, right, 0).amax(2).clamp_min(self.score)
        lead = best - torch.where(close, wrong, 0).amax(2)
        rest = lead.clamp(0, 1) * (objects.live & ~other)
        return self._some(objects, other), -rest.sum(1) / objects.live.sum(1).clamp_min(1)

    def _ghosts(self, boxes: Boxes, new: Tensor) -> tuple[Tensor, Tensor]:
        """Whether there are too many boxes without an object, and how few there are."""
        score = boxes.score.clamp(max=min(self.score + 0.1, (1 + self.score) / 2))
        side = area(boxes.place).clamp_min(1) / math.prod(self.size)
        # small boxes hide few others
        lift = odds(score) - math.log(self.score / (1 - self.score)) - 0.3 * side.log()
        # Log-odds close to those of a box are lifted alike, the others less, by the root of their
        # odds: of a confident head most places are out of reach, and take nothing from the rest.
        share = 0.5 + 2 * F.elu((lift + CLOSE) / 2).mean(1) / 100  # of one more box
        # no more than MOST can have gone
        return new >= self.ghosts, (new + share + MOST) / (2 * MOST + 1) - 1

    # ------------------------------------------------------------------ what is kept

    def answers(self, z: Tensor) -> Tensor:
        """The boxes after suppression, the best first: class, score, x0, y0, x1, y1 of each, and
        NaN up to `MOST` boxes; [n, 6 * MOST]."""
        left, keep = self.left(self.decode(z), LOWEST)
        rows = torch.cat([left.label[..., None].to(z), left.score[..., None], left.place], 2)
        answer = z.new_full((len(z), MOST, 6), torch.nan)
        for row, own, which in zip(answer, rows, keep, strict=True):
            row[: int(which.sum())] = own[which]
        return answer.flatten(1)

    def same(self, said: np.ndarray, found: np.ndarray) -> np.ndarray:
        pairs = zip(said.reshape(-1, MOST, 6), found.reshape(-1, MOST, 6), strict=True)
        return np.array([_alike(a, b) and _alike(b, a) for a, b in pairs], bool)

    def wrong_answers(self, names: Sequence[str]) -> list[str]:
        return [
            {
                "vanish": "an object is lost",
                "mislabel": "an object is called something else",
                "ghost": "a box finds no object",
                "all": "an object is lost, or a box finds none",
            }[self.goal]
        ]

    def __str__(self) -> str:
        named = self
        if callable(self.head):
            named = replace(self, head=f"{self.head.__module__}:{self.head.__qualname__}")
        return spec.write(named, whole=True)


def own(function: Any, outputs: Any) -> Boxes:
    """The boxes that a function of the user's own gives.

    Raises:
        InputError: it raised, or gives something else.
    """
    given = outputs if len(outputs) > 1 else next(iter(outputs.values()))
    n = len(next(iter(outputs.values())))
    with usercode.guarded("the head"):
        found = function(given)
    shapes = [tuple(part.shape) for part in found] if isinstance(found, (tuple, list)) else []
    fits = len(shapes) == 2 and all(len(s) == 3 and s[0] == n for s in shapes)
    if not fits or shapes[0][1] != shapes[1][1] or shapes[0][2] != 4:
        raise InputError(
            f"the head gives {listed([str(list(s)) for s in shapes], 5) or type(found).__name__} "
            f"for {n} images, but it gives boxes [n, a, 4] and scores [n, a, c]."
        )
    return Boxes.of_scores(*found)


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether each box of `a` [MOST, 6], but for those that may fall below the lowest score, has
    its like in `b`."""
    a, b = a[a[:, 1] > LOWEST + 1e-3], b[~np.isnan(b[:, 1])]
    close = np.isclose(a[:, None], b[None], rtol=1e-3, atol=1e-2)
    return bool(close.all(axis=-1).any(axis=-1).all())
