"""A small detector trained on scenes of digits: what an evaluation says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.detector import SIDE, C, Grid, read, trained
from torch import nn

import holdfast
from holdfast.data import from_arrays
from holdfast.evaluation.verify import verify
from holdfast.tasks import Detection
from holdfast.testing import scenes_of_digits


def evaluate(net: nn.Module, n: int, threat: str, **options: Any) -> holdfast.Run:
    test = scenes_of_digits(n, 1, split="test", classes=C, side=SIDE)
    task = Detection(goal=options.pop("goal", "vanish"), head=read)
    target = holdfast.wrap(net, task=task)
    return holdfast.evaluate(target, (test.x, test.boxes), threat, **options)


@pytest.mark.slow
def test_a_trained_detector_is_measured_and_stays_the_same(tmp_path: Path) -> None:
    net = trained()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    lost = []
    for eps in ("0.01", "0.03", "0.1"):
        run = evaluate(net, 40, f"linf({eps})", protocol="quick", out=tmp_path / eps)
        of = run.metrics.of_task
        assert of["objects found"].clean > 0.8
        lost.append(of["objects lost, of those found clean"].attacked)
    assert lost == sorted(lost)
    assert lost[-1] > 0.9
    assert lost[0] < 0.3
    test = scenes_of_digits(40, 1, split="test", classes=C, side=SIDE)
    target = holdfast.wrap(net, task=Detection(head=read))
    assert verify(tmp_path / "0.03", target, from_arrays(test.x, test.boxes)) == []
    stronger = evaluate(net, 40, "linf(0.02)", protocol="standard")
    quick = evaluate(net, 40, "linf(0.02)", protocol="quick")
    name = "objects lost, of those found clean"
    assert stronger.metrics.of_task[name].attacked >= quick.metrics.of_task[name].attacked
    ghosts = evaluate(net, 20, "linf(0.1)", protocol="quick", goal="ghost").metrics.of_task
    boxes = ghosts["boxes without an object per image"]
    assert boxes.attacked > boxes.clean + 3
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_rows_do_not_depend_on_their_batch(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Grid().eval()
    x = scenes_of_digits(4, 1, classes=C, side=SIDE).x
    place, scores = read(net(torch.from_numpy(x)))
    best = scores.amax(2).argmax(1)
    y = np.concatenate(
        [
            scores[torch.arange(4), best].argmax(1)[:, None],
            place[torch.arange(4), best].detach().clamp(0, SIDE),
        ],
        1,
    )[:, None]
    task = Detection(score=0.1, head=read, lose="all")
    columns = []
    for size in (1, 4):
        target = holdfast.wrap(net, task=task, batch_size=size)
        run = holdfast.evaluate(
            target, (x, y.astype(np.float32)), "linf(0.02)", attacks=["apgd(steps=5)"]
        )
        columns.append([run.samples.column(name).to_pylist() for name in ("status", "forwards")])
    assert columns[0] == columns[1]
