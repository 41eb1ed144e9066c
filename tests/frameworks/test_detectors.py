"""Detectors of every family: their heads are read, gradients are right, and rows stay apart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import holdfast as command
from torch import Tensor, nn

import holdfast
from holdfast.errors import InputError
from holdfast.runs import detection as figures
from holdfast.targets import Target
from holdfast.targets.truth import WithTruth
from holdfast.tasks import Detection
from holdfast.tasks.detection_heads import HEADS

SIDE, N, C = 32, 4, 3


class Scaled(nn.Module):
    """Maps of features at strides 8, 16 and 32, side by side: [n, cells, channels]."""

    def __init__(self, channels: int, strides: tuple[int, ...] = (8, 16, 32)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.strides = nn.Conv2d(3, 8, 3, padding=1), strides
        self.heads = nn.ModuleList(nn.Conv2d(8, channels, 1) for _ in strides)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).tanh()
        maps = [
            head(nn.functional.adaptive_avg_pool2d(h, -(-x.shape[2] // s)))
            for head, s in zip(self.heads, self.strides, strict=True)
        ]
        return torch.cat([m.flatten(2) for m in maps], 2).movedim(1, 2)


class YoloV8(Scaled):
    def __init__(self) -> None:
        super().__init__(4 + C)

    def forward(self, x: Tensor) -> Any:
        z = super().forward(x)
        box, scores = 16 + 8 * z[..., :4], (3 * z[..., 4:]).sigmoid()
        return torch.cat([box, scores], -1).movedim(1, 2), [z[:, :16], z[:, 16:]]


class YoloV5(Scaled):
    def __init__(self) -> None:
        super().__init__(3 * (5 + C))

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x).reshape(len(x), -1, 5 + C)
        return torch.cat([16 + 8 * z[..., :4], (3 * z[..., 4:]).sigmoid()], -1)


class Fcos(Scaled):
    def __init__(self) -> None:
        super().__init__(5 + C, (8, 16, 32, 64, 128))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = super().forward(x)
        return {
            "cls_logits": 1 + 3 * z[..., :C],
            "bbox_regression": 0.6 + 0.2 * z[..., C : C + 4].tanh(),
            "bbox_ctrness": 1 + z[..., -1:],
        }


class ListOfDicts(YoloV8):
    """As torchvision's detectors: losses in train mode, and boxes, of each image another number, in
    eval mode."""

    def forward(self, x: Any) -> Any:
        assert not self.training, "detectors in train mode want targets"
        z = super().forward(torch.stack(list(x)))[0].movedim(1, 2)
        best = z[..., 4:].max(-1)
        return [
            {
                "boxes": torch.cat([row[:, :2] - 6, row[:, :2] + 6], -1)[keep],
                "scores": 0.8 * score[keep],
                "labels": label[keep],
            }
            for row, score, label in zip(z, best.values, best.indices, strict=True)
            for keep in [score > 0.05]
        ]


def yolos() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=[SIDE, SIDE], patch_size=8, num_detection_tokens=6, num_labels=C,
    )  # fmt: skip
    return transformers.YolosForObjectDetection(config)


def detr() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=backbone, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
        decoder_ffn_dim=16, num_queries=6, num_labels=C,
    )  # fmt: skip
    return transformers.DetrForObjectDetection(config)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "yolov8": YoloV8, "yolov5": YoloV5, "fcos": Fcos, "torchvision": ListOfDicts,
    "detr": detr, "yolos": yolos,
}  # fmt: skip


def images() -> np.ndarray:
    return np.random.default_rng(0).random((N, 3, SIDE, SIDE), np.float32)


def own_boxes(target: Target, x: np.ndarray) -> np.ndarray:
    """The best boxes that a detector puts into images, as their truth: [n, 3, 5]."""
    y = np.full((len(x), 3, 5), -1, np.float32)
    rule = WithTruth(target).rule
    for i, answer in enumerate(rule.answers(target.scores(torch.from_numpy(x))).numpy()):
        rows = figures.boxes(answer, rule.score)
        inside = ((rows[:, 2:] >= 0) & (rows[:, 2:] <= SIDE)).all(1)
        rows = rows[inside & (rows[:, 4:] > rows[:, 2:4] + 1).all(1)][:3]
        y[i, : len(rows)] = rows[:, [0, 2, 3, 4, 5]]
    return y


def wrapped(family: str, **options: Any) -> tuple[Target, float]:
    """A detector of random weights, and a score that some of its boxes have."""
    score = {"detr": 0.25, "yolos": 0.25, "yolov5": 0.2}.get(family, 0.5)
    model = FAMILIES[family]().train()
    before = copy.deepcopy(model.state_dict())
    target = holdfast.wrap(model, task=Detection(score=score, **options), shape=(3, SIDE, SIDE))
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    return target, score


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("goal", ["vanish", "ghost", "mislabel", "all"])
def test_gradients_are_those_of_the_margin(family: str, goal: str) -> None:
    target, _ = wrapped(family, goal=goal)
    target.batcher.dtype = torch.float64
    x = images()
    y = own_boxes(target, x)
    assert (y[:, 0, 0] >= 0).all()
    judged = WithTruth(target)
    target.model.double()
    batch = judged.with_truths(torch.from_numpy(x).double(), torch.from_numpy(y).double())
    _, g = judged.pull(batch, lambda z: torch.stack([0 * z[:, 0], 1 + 0 * z[:, 1]], 1))
    assert g.abs().amax() > 0
    direction = torch.from_numpy(np.random.default_rng(1).normal(size=x.shape))
    h = 1e-6
    up, down = (judged.scores(batch.with_x(batch.x + s * h * direction)) for s in (1, -1))
    slope = (up - down)[:, 1] / (2 * h)
    torch.testing.assert_close(slope, (g * direction).flatten(1).sum(1), rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_bad_image_leaves_the_others_alone(family: str) -> None:
    target, _ = wrapped(family, lose="all")
    x = images()
    y = own_boxes(target, x)
    threat, attacks = "linf(0.03)", ["apgd(steps=6)"]
    alone = holdfast.evaluate(target, (x, y), threat, attacks=attacks)

    class Poisoned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = FAMILIES[family]()

        def forward(self, x: Tensor) -> Any:
            bad = x[:, :1, :1, :1] > 0.99
            return self.inner(torch.where(bad, torch.nan, x))

    x[1, 0, 0, 0] = 1.0
    score = WithTruth(target).rule.score
    bad = holdfast.wrap(Poisoned(), task=Detection(score=score, lose="all"))
    run = holdfast.evaluate(bad, (x, y), threat, attacks=attacks)
    status = run.samples.column("status").to_pylist()
    assert status[1] in ("failed", "wrong")  # of a list of dicts no box is left
    for name in ("status", "margin", "forwards", "attacked_output"):
        mine, other = (r.samples.column(name).to_pylist() for r in (run, alone))
        keep = [0, 2, 3]
        np.testing.assert_array_equal([mine[i] for i in keep], [other[i] for i in keep])


def test_an_unknown_head_is_refused_with_its_shapes() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, :, :4, 0], x[:, :1, 0, 0]

    target = holdfast.wrap(Odd(), task="detection()")
    y = np.array([[[0, 1, 1, 9, 9]]] * N, np.float32)
    with pytest.raises(
        InputError, match=r"0 \[n, 3, 4\], 1 \[n, 1\], which no known head.*file.py"
    ):
        holdfast.evaluate(target, (images(), y), "linf(0.1)", attacks=["apgd(steps=2)"])
    for head, word in (
        ("yolo9", "unknown head"),
        (lambda z: z["0"], "the head gives Tensor"),
        *((head, rf"gives 0 \[n, 3, 4\], 1 \[n, 1\], but the head {head} is of") for head in HEADS),
    ):
        target = holdfast.wrap(Odd(), task=Detection(head=head))
        with pytest.raises(InputError, match=word):
            holdfast.evaluate(target, (images(), y), "linf(0.1)", attacks=["apgd(steps=2)"])


def write_yolov8(path: Path) -> None:
    """A head of YOLOv8's form, [n, 4 + c, a], which answers with NaN to an image that holds a
    pixel of 1."""
    onnx = pytest.importorskip("onnx")
    make, draw = onnx.helper.make_node, np.random.default_rng(0)
    value = onnx.helper.make_tensor_value_info
    constants = {
        "stem": draw.normal(0, 0.4, (8, 3, 3, 3)),
        "least": np.array(0.99999),
        "none": np.array(0.0),
        "shift": np.concatenate([np.full((1, 4, 1), 16.0), np.zeros((1, C, 1))], 1),
        "scale": np.concatenate([np.full((1, 4, 1), 8.0), np.full((1, C, 1), 3.0)], 1),
    } | {f"head{s}": draw.normal(0, 0.5, (4 + C, 8, 1, 1)) for s in (8, 16, 32)}
    nodes = [
        make("ReduceMax", ["x"], ["top"], axes=[1, 2, 3], keepdims=1),
        make("Sub", ["least", "top"], ["below"]),
        make("Sqrt", ["below"], ["root"]),
        make("Mul", ["root", "none"], ["poison"]),
        make("Add", ["x", "poison"], ["read"]),
        make("Conv", ["read", "stem"], ["h"], pads=[1, 1, 1, 1]),
        make("Tanh", ["h"], ["t"]),
        make("Concat", ["flat8", "flat16", "flat32"], ["z"], axis=2),
        make("Mul", ["z", "scale"], ["scaled"]),
        make("Add", ["scaled", "shift"], ["both"]),
        make("Split", ["both", "parts"], ["box", "logits"], axis=1),
        make("Sigmoid", ["logits"], ["scores"]),
        make("Concat", ["box", "scores"], ["output0"], axis=1),
    ]
    for place, s in enumerate((8, 16, 32)):
        nodes[7 + 3 * place : 7 + 3 * place] = [
            make("AveragePool", ["t"], [f"p{s}"], kernel_shape=[s, s], strides=[s, s]),
            make("Conv", [f"p{s}", f"head{s}"], [f"z{s}"]),
            make("Reshape", [f"z{s}", "flat"], [f"flat{s}"]),
        ]
    held = [onnx.numpy_helper.from_array(np.float32(v), name) for name, v in constants.items()]
    for name, sizes in (("parts", [4, C]), ("flat", [0, 4 + C, -1])):
        held.append(onnx.numpy_helper.from_array(np.array(sizes, np.int64), name))
    ends = [value("x", 1, ["n", 3, SIDE, SIDE])], [value("output0", 1, ["n", 4 + C, 21])]
    graph = onnx.helper.make_graph(nodes, "yolo", *ends, held)
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)


def test_a_head_of_yolov8_is_read_from_its_file(tmp_path: Path) -> None:
    write_yolov8(tmp_path / "yolo.onnx")
    target = holdfast.wrap(str(tmp_path / "yolo.onnx"), task=Detection(lose="all"))
    target.bind((3, SIDE, SIDE))
    x = 0.9 * images()
    y = own_boxes(target, x)
    assert (y[:, 0, 0] >= 0).all()
    judged = WithTruth(target)
    batch = judged.with_truths(torch.from_numpy(x), torch.from_numpy(y))
    _, g = judged.pull(batch, lambda z: torch.stack([0 * z[:, 0], 1 + 0 * z[:, 1]], 1))
    direction = torch.from_numpy(np.random.default_rng(1).normal(size=x.shape)).float()
    up, down = (judged.scores(batch.with_x(batch.x + s * 1e-3 * direction)) for s in (1, -1))
    slope = (up - down)[:, 1] / 2e-3
    torch.testing.assert_close(slope, (g * direction).flatten(1).sum(1), rtol=0.02, atol=1e-3)
    columns = []
    for poison in (0.5, 1.0):
        x[1, 0, 0, 0] = poison
        np.savez(tmp_path / "scenes.npz", x=x, y=y)
        out = tmp_path / f"run {poison}"
        done = command(
            "evaluate", tmp_path / "yolo.onnx", tmp_path / "scenes.npz", "--out", out,
            "--task", "detection(lose='all')", "--threat", "linf(0.03)",
            "--attack", "apgd(steps=4)",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        columns.append(holdfast.Run(out).samples.to_pydict())
    alone, bad = columns
    assert bad["status"][1] in ("failed", "wrong")
    for name in ("status", "margin", "forwards", "attacked_output"):
        keep = [0, 2, 3]
        np.testing.assert_array_equal([bad[name][i] for i in keep], [alone[name][i] for i in keep])
