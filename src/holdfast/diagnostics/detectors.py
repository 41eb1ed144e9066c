"""What the first clean answers of a detector or a segmenter show, before any attack."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from holdfast import spec
from holdfast.data.source import Source
from holdfast.memory import rows_at_once
from holdfast.runs.manifest import Finding
from holdfast.targets.batch import Batch, read
from holdfast.targets.target import Target, sealed
from holdfast.targets.truth import WithTruth, objects_at
from holdfast.tasks import Detection
from holdfast.tasks.boxes import Boxes, matched
from holdfast.tasks.detection import LOWEST, Objects
from holdfast.threats.threat import Threat

LOOK = 32  # rows that the model is asked about
ALONE = 4  # of these, asked one by one too
OUT = 0.25  # of a side of the image: so far out reaches no box of what is seen
FEW = 0.05  # of the boxes that count may do so
CUT = 0.02  # a detector that gives no score between 0 and this one drops boxes itself


def first_answers(target: Target, source: Source) -> list[Finding]:
    """The findings on how a detector or a segmenter answers, and on the thresholds of a detector;
    none of other models."""
    if not isinstance(target, WithTruth) or not target.rule.structured:
        return []
    look = min(rows_at_once(source.shape, LOOK), len(source))
    rows = target.batcher.place(read(source, 0, look)[0])
    with sealed(0):
        z, truth = target.answered(rows)
        found = list(_together(target, rows, z))
        if isinstance(target.rule, Detection):
            boxes, objects = target.rule.decode(z), target.rule.objects(truth)
            found += [*_outside(target.rule, boxes), *_thresholds(target.rule, boxes, objects)]
    return found


def no_place(target: Target, threat: Threat, source: Source) -> list[Finding]:
    """A finding on the images in which a patch that must stay off the objects fits nowhere."""
    if threat.spatial is None or not threat.spatial.avoids:
        return []
    ids: list[int] = []
    for start in range(0, len(source), LOOK):
        taken = objects_at(target, read(source, start, min(start + LOOK, len(source)))[0])
        ids += (start + (~threat.spatial.fits(taken)).nonzero()[:, 0]).tolist()
    if not ids:
        return []
    share = len(ids) / len(source)
    return [
        Finding(
            check="no_place",
            severity="amber" if share > FEW else "info",
            text=(
                f"On {len(ids)} of {len(source):,} images the patch fits nowhere without covering "
                "an object: nothing of them can change, and they count as robust."
            ),
            value=share,
            threshold=FEW,
            ids=ids[:100],
            advice="Take a smaller patch, or leave these images out.",
        )
    ]


def _together(target: WithTruth, rows: Batch, z: Tensor) -> Iterator[Finding]:
    """Whether outputs z of rows depend on the other rows of their batch."""
    if target.cost.draws > 1:
        return
    few = min(ALONE, len(rows))
    alone = torch.cat([target.answered(rows[i : i + 1])[0] for i in range(few)])
    again = target.answered(rows[:few])[0]
    off = ((alone - again).abs().amax(1) > 1e-3 * z.abs().amax().clamp_min(1e-6)).double()
    if float(off.mean()):
        yield Finding(
            check="batch_dependent",
            severity="red",
            text=(
                f"On {int(off.sum())} of {few} images the outputs change with the other images of "
                "the batch, as those of batch normalisation in train mode do: no figure of an "
                "image is its own."
            ),
            value=float(off.mean()),
            threshold=0,
            advice="Put the model into eval mode, or give the module itself and not a function.",
        )


def _outside(rule: Detection, boxes: Boxes) -> Iterator[Finding]:
    """Of boxes that count, those far out of their image."""
    left, keep = rule.left(boxes, rule.score)
    height, width = rule.size
    side = left.place.new_tensor([width, height])
    low, high = left.place[..., :2], left.place[..., 2:]
    beyond = torch.maximum(-low, high - side)
    far = keep & (beyond > OUT * side).any(2)
    share = int(far.sum()) / max(1, int(keep.sum()))
    if share > FEW:
        yield Finding(
            check="boxes_outside",
            severity="amber",
            text=(
                f"{int(far.sum())} of {int(keep.sum())} boxes that count reach far out of an image "
                f"of {width} x {height} pixels (width, height), up to "
                f"{float(beyond[far].max()):.4g} pixels: the head may be read wrongly."
            ),
            value=share,
            threshold=FEW,
            advice="Say the head (detection(head=...)), and check the size that the model sees.",
        )


def _thresholds(rule: Detection, boxes: Boxes, objects: Objects) -> Iterator[Finding]:
    """Whether boxes that could be lost, or appear, are below a threshold: that of the task, or one
    of the model's own."""
    left, keep = rule.left(boxes, LOWEST)
    which = matched(left, keep, objects.place, objects.label, rule.iou)
    scores = left.score[which >= 0]
    low = scores[scores <= rule.score]
    if len(low) > len(scores) / 2:
        yield Finding(
            check="high_score",
            severity="amber",
            text=(
                f"Of {len(scores)} objects that boxes match, {len(low)} are matched by none of a "
                f"score above {spec.number(rule.score)} (median {float(low.median()):.2f}): they "
                "are not attacked, and no box of such a score counts as one too many."
            ),
            value=len(low) / len(scores),
            threshold=0.5,
            advice="Give a score that the detector reaches: detection(score=...).",
        )
    there = boxes.score > 0
    given, counts = boxes.score[there], there.sum(1).unique()
    drops = len(counts) > 1 and float(given.min()) > CUT
    if drops and rule.goal in ("ghost", "all"):
        yield Finding(
            check="hidden_boxes",
            severity="amber",
            text=(
                f"The model gives no box of a score below {float(given.min()):.2f}: it drops those "
                "itself, so that an attack sees no box before it is there, and finds too few."
            ),
            value=float(given.min()),
            threshold=CUT,
            advice="Lower the model's own threshold (box_score_thresh in torchvision), or give "
            "its raw head, before suppression.",
        )
