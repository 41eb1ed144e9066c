"""What detectors give, and how boxes are read from it: one function a family, of torch, through
which gradients flow.

Each takes the outputs of n images by name, [n, ...] each, and their form, and gives `Boxes` in the
pixels that the model sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.tasks.boxes import Boxes
from holdfast.tasks.form import Form

Outputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class BoxHead:
    """A family of heads."""

    reads: Callable[[Form], bool]  # whether outputs of this form can be no other's
    decode: Callable[[Outputs, Form], Boxes]
    shapes: str  # of its outputs
    by_class: bool = True  # one box suppresses others of its own class alone
    suppresses: bool = True  # boxes that overlap a better one are dropped


def corners(center: Tensor, size: Tensor) -> Tensor:
    """Boxes [..., 4] from their centers and their width and height, [..., 2] each."""
    return torch.cat([center - size / 2, center + size / 2], -1)


def grid(height: int, width: int, like: Tensor) -> Tensor:
    """The column and the row of each cell: [height * width, 2]."""
    rows, columns = torch.meshgrid(
        torch.arange(height).to(like), torch.arange(width).to(like), indexing="ij"
    )
    return torch.stack([columns, rows], -1).flatten(0, 1)


def cells(form: Form, strides: tuple[int, ...]) -> int:
    """How many cells the grids of these strides have."""
    height, width = form.seen or (0, 0)
    return sum(-(-height // s) * -(-width // s) for s in strides)


def only(outputs: Outputs) -> Tensor:
    return next(iter(outputs.values()))


def seen(form: Form, like: Tensor) -> Tensor:
    """Width and height of what the model sees: [2]."""
    height, width = form.seen or (1, 1)
    return torch.tensor([width, height]).to(like)


# ---------------------------------------------------------------------- one stride-16 map


def fastestdet(outputs: Outputs, form: Form) -> Boxes:
    """FastestDet: [5 + c, h, w]; objectness, box, and classes that sum to 1."""
    z = only(outputs)
    h, w = z.shape[2:]
    z = z.flatten(2).movedim(1, 2)  # [n, h * w, 5 + c]
    center = (grid(h, w, z) + z[..., 1:3].tanh()) / torch.tensor([w, h]).to(z)
    place = corners(center, z[..., 3:5].sigmoid()) * seen(form, z).repeat(2)
    least = torch.finfo(z.dtype).tiny  # a power has no slope at 0
    scores = z[..., :1].clamp_min(least) ** 0.6 * z[..., 5:].clamp_min(least) ** 0.4
    return Boxes.of_scores(place, scores)


def is_fastestdet(form: Form) -> bool:
    if len(form.parts) != 1 or len(form.one) != 3 or form.seen is None:
        return False
    channels, h, w = form.one
    return channels > 5 and (16 * h, 16 * w) == form.seen


# ---------------------------------------------------------------------- YOLO


def yolov8(outputs: Outputs, form: Form) -> Boxes:
    """YOLOv8 to v11: [4 + c, a]; center, size and classes, in pixels and probabilities."""
    z = only(outputs).movedim(1, 2)
    return Boxes.of_scores(corners(z[..., :2], z[..., 2:4]), z[..., 4:])


def yolov5(outputs: Outputs, form: Form) -> Boxes:
    """YOLOv5 and v7: [a, 5 + c]; center, size, objectness and classes."""
    z = only(outputs)
    return Boxes.of_scores(corners(z[..., :2], z[..., 2:4]), z[..., 4:5] * z[..., 5:])


def listed(outputs: Outputs, form: Form) -> Boxes:
    """Boxes that were suppressed already, as YOLOv10 gives them: [d, 6]; corners, score, class."""
    z = only(outputs)
    return Boxes(z[..., :4], z[..., 4], z[..., 5].detach().round().long())


STRIDES = ((8, 16, 32), (8, 16, 32, 64))


def is_yolo(form: Form, anchors: int, places: int) -> bool:
    """Whether an output has as many places as YOLO's grids have cells, with so many anchors."""
    return any(places == anchors * cells(form, strides) for strides in STRIDES)


def is_yolov8(form: Form) -> bool:
    one = form.one
    return len(form.parts) == 1 and len(one) == 2 and one[0] > 4 and is_yolo(form, 1, one[1])


def is_yolov5(form: Form) -> bool:
    one = form.one
    return len(form.parts) == 1 and len(one) == 2 and one[1] > 5 and is_yolo(form, 3, one[0])


# ---------------------------------------------------------------------- by the names of parts


def yunet(outputs: Outputs, form: Form) -> Boxes:
    """YuNet: cls, obj and bbox of each stride; no anchors, sizes as logarithms."""
    places, scores = [], []
    height, width = form.seen or (0, 0)
    for name, box in outputs.items():
        kind, _, stride = name.partition("_")
        if kind != "bbox":
            continue
        s = int(stride)
        at = grid(height // s, width // s, box)
        places.append(corners((at + box[..., :2]) * s, box[..., 2:].exp() * s))
        scores.append(outputs[f"cls_{s}"] * outputs[f"obj_{s}"])
    return Boxes.of_scores(torch.cat(places, 1), torch.cat(scores, 1))


def is_yunet(form: Form) -> bool:
    names = {name for name, _ in form.parts}
    strides = {name[5:] for name in names if name.startswith("bbox_") and name[5:].isdigit()}
    return bool(strides) and all({f"cls_{s}", f"obj_{s}"} <= names for s in strides)


def fcos(outputs: Outputs, form: Form) -> Boxes:
    """FCOS (Tian et al. 2019, arXiv:1904.01355): distances to the four sides in strides, centerness
    and logits of classes, all cells of strides 8 to 128 in their order."""
    far = outputs["bbox_regression"]
    height, width = form.seen or (0, 0)
    at, strides = [], []
    for s in FCOS_STRIDES:
        h, w = -(-height // s), -(-width // s)
        at.append(grid(h, w, far) * s)
        strides.append(far.new_full((h * w, 1), s))
    center, stride = torch.cat(at), torch.cat(strides)
    place = torch.cat([center - far[..., :2] * stride, center + far[..., 2:] * stride], -1)
    scores = (outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid()).sqrt()
    return Boxes.of_scores(place, scores)


FCOS_STRIDES = (8, 16, 32, 64, 128)


def is_fcos(form: Form) -> bool:
    shapes = dict(form.parts)
    named = {"bbox_regression", "cls_logits", "bbox_ctrness"} <= shapes.keys()
    return named and shapes["bbox_regression"][0] == cells(form, FCOS_STRIDES)


def detr(outputs: Outputs, form: Form) -> Boxes:
    """DETR and YOLOS: logits [q, c + 1], the last of no object, and pred_boxes [q, 4] in shares of
    the image."""
    return _queries(outputs, form, outputs["logits"].softmax(-1)[..., :-1])


def deformable_detr(outputs: Outputs, form: Form) -> Boxes:
    """Deformable DETR, RT-DETR and others with a sigmoid for each class: logits [q, c]."""
    return _queries(outputs, form, outputs["logits"].sigmoid())


def _queries(outputs: Outputs, form: Form, scores: Tensor) -> Boxes:
    z = outputs["pred_boxes"]
    place = corners(z[..., :2], z[..., 2:]) * seen(form, z).repeat(2)
    return Boxes.of_scores(place, scores)


def is_detr(form: Form) -> bool:
    return {"logits", "pred_boxes"} <= dict(form.parts).keys()


def torchvision(outputs: Outputs, form: Form) -> Boxes:
    """A list of dicts with boxes [d, 4], scores [d] and labels [d] of each image, suppressed
    already."""
    label = outputs["labels"].flatten(1).detach().round().long()
    return Boxes(outputs["boxes"], outputs["scores"].flatten(1), label)


def is_torchvision(form: Form) -> bool:
    return {"boxes", "scores", "labels"} <= dict(form.parts).keys()


def never(form: Form) -> bool:
    return False


HEADS: dict[str, BoxHead] = {
    "fastestdet": BoxHead(is_fastestdet, fastestdet, "[n, 5 + c, h, w]", by_class=False),
    "yolov8": BoxHead(is_yolov8, yolov8, "[n, 4 + c, a]"),
    "yolov5": BoxHead(is_yolov5, yolov5, "[n, a, 5 + c]"),
    "yolov10": BoxHead(
        lambda form: len(form.parts) == 1 and form.one[1:] == (6,), listed, "[n, d, 6]",
        suppresses=False,
    ),
    "yunet": BoxHead(is_yunet, yunet, "cls_8, obj_8, bbox_8, ..."),
    "fcos": BoxHead(is_fcos, fcos, "cls_logits, bbox_regression, bbox_ctrness"),
    "detr": BoxHead(is_detr, detr, "logits [n, q, c + 1], pred_boxes [n, q, 4]", suppresses=False),
    "deformable_detr": BoxHead(
        never, deformable_detr, "logits [n, q, c], pred_boxes [n, q, 4]", suppresses=False
    ),
    "torchvision": BoxHead(
        is_torchvision, torchvision, "a list of dicts of boxes, scores and labels",
        suppresses=False,
    ),
}  # fmt: skip
