"""A run of a detector or a segmenter is one run, however its rows are measured: at once, broken
off and gone on with, in shards, by workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.commands import holdfast
from helpers.small_runs import interrupted

from holdfast.evaluation import chunk
from holdfast.runs import store
from holdfast.runs.run import Run

N = 12
MODELS = """
import torch
from torch import nn

class Cells(nn.Module):
    def forward(self, x):
        score = nn.functional.avg_pool2d(x, 8).flatten(1)
        at = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]])
        return {"place": at.expand(len(x), 4, 4) + 0 * score[:, :, None], "score": score[..., None]}

def read(outputs):
    return outputs["place"], outputs["score"]

class Pixels(nn.Module):
    def forward(self, x):
        mean = nn.functional.avg_pool2d(x, 3, 1, 1)
        return torch.cat([0.6 - mean, mean, 2 * mean - 0.7], 1)
"""
ASKED = {
    "detection": (
        "models.py:Cells", "boxes.npz", "--task", "detection(head='models.py:read')",
        "--threat", "linf(0.1)", "--attack", "apgd(steps=4)", "--attack", "square(steps=8)",
    ),
    "segmentation": (
        "models.py:Pixels", "masks.npz", "--task", "segmentation(miou=0.4)",
        "--threat", "linf(0.1)", "--attack", "sea(steps=4)", "--attack", "square(steps=8)",
    ),
}  # fmt: skip


def made() -> None:
    """A model of each task, and images of four cells of which those above a half are objects."""
    Path("models.py").write_text(MODELS)
    draw = np.random.default_rng(0)
    bright = 0.3 + 0.4 * draw.random((N, 4))
    x = bright.reshape(N, 1, 2, 2).repeat(8, 2).repeat(8, 3) + 0.05 * draw.random((N, 1, 16, 16))
    at = np.array([[0, 0, 8, 8], [8, 0, 16, 8], [0, 8, 8, 16], [8, 8, 16, 16]])
    y = np.full((N, 4, 5), -1.0)
    there = bright > 0.5
    y[there] = np.concatenate([np.zeros((N, 4, 1)), np.broadcast_to(at, (N, 4, 4))], 2)[there]
    y[~there.any(1), 0] = [0, 0, 0, 8, 8]
    np.savez("boxes.npz", x=x.astype(np.float32), y=y.astype(np.float32))
    masks = np.digitize(x[:, 0], [0.4, 0.6])
    np.savez("masks.npz", x=x.astype(np.float32), y=masks)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made()


CURVE = ("--curve", "0.04,0.2")


def table_of(folder: str) -> str:
    """The checksum of the table of samples of a run."""
    return store.checksum(Path(folder, "samples.parquet"))


def measured(task: str, out: str, *more: object) -> Run:
    done = holdfast("evaluate", *ASKED[task], "--out", out, *more)
    assert done.exit_code == 0, done.output
    return Run(out)


def broken_off(
    task: str, out: str, after: int, monkeypatch: pytest.MonkeyPatch, *more: object
) -> None:
    """A run that is interrupted after so many records."""
    with interrupted(monkeypatch, after):
        assert holdfast("evaluate", *ASKED[task], "--out", out, *more).exit_code != 0
    assert not Path(out, "run.json").exists()


def same(task: str, a: str, b: str) -> None:
    """Two folders hold the same evidence and figures, and the model and data confirm them."""
    assert store.checksums(Path(a)) == store.checksums(Path(b))
    assert Run(a).metrics == Run(b).metrics
    model, data = ASKED[task][:2]
    said = ASKED[task][2:4] if task == "detection" else ()  # which names code
    judged = holdfast("verify", b, model, data, *said)
    assert judged.exit_code == 0, judged.output


@pytest.mark.parametrize("task", ASKED)
def test_a_run_broken_off_and_gone_on_with_and_merged_shards_are_the_run_of_one_process(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunk, "stride_of", lambda shape: 5)
    whole = measured(task, "whole")
    status = whole.samples.column("status").to_pylist()
    assert len(set(status)) > 1
    broken_off(task, "cut", 7, monkeypatch)
    measured(task, "cut", "--resume")
    same(task, "whole", "cut")
    for i in (1, 0):
        measured(task, "all", "--shard", f"{i}/2")
    assert holdfast("merge", "all").exit_code == 0
    same(task, "whole", "all/merged")


@pytest.mark.parametrize(
    "task", ["segmentation", pytest.param("detection", marks=pytest.mark.slow)]
)
def test_each_eps_of_a_curve_is_the_run_at_that_eps(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(task, "whole", *CURVE)
    alone = measured(task, "alone")
    assert table_of("whole") == table_of("alone")
    assert whole.metrics.of_task == alone.metrics.of_task
    points = {point.eps: point for point in whole.metrics.curve}
    assert sorted(points) == [0, 0.04, 0.1, 0.2]
    for eps in (0.04, 0.2):
        one = measured(task, f"at {eps}", "--threat", f"linf({eps})")
        assert table_of(f"whole/curve/{eps}") == table_of(f"at {eps}")
        figures = {name: figure.attacked for name, figure in one.metrics.of_task.items()}
        assert points[eps].of_task == figures
        assert points[eps].robust_accuracy == one.robust_accuracy
    costs = [Run(folder).manifest.costs for folder in ("alone", "at 0.04", "at 0.2")]
    assert whole.manifest.costs.forwards == sum(cost.forwards for cost in costs)
    assert holdfast("report", "whole").exit_code == 0
    page = Path("whole/report.html").read_text()
    assert {page.count(f'<th class="n">{name}</th>') for name in points[0].of_task} == {1}
    broken_off(task, "cut", 5, monkeypatch, *CURVE)
    measured(task, "cut", *CURVE, "--resume")
    same(task, "whole", "cut")
    for i in (1, 0):
        measured(task, "all", *CURVE, "--shard", f"{i}/2")
    assert holdfast("merge", "all").exit_code == 0
    same(task, "whole", "all/merged")
    other = holdfast("evaluate", *ASKED[task], "--out", "cut", "--curve", "0.04", "--resume")
    assert other.exit_code == 2
    assert "eps" in other.output
    table = Run("cut/curve/0.04").samples
    lower = pa.array([0.9 * m if m > 0 else m for m in table["margin"].to_pylist()], pa.float64())
    where = table.column_names.index("margin")
    store.write_samples(Path("cut/curve/0.04"), table.set_column(where, "margin", lower))
    judged = holdfast("verify", "cut", *ASKED[task][:2], *ASKED[task][2:4])
    assert judged.exit_code == 1
    assert "curve/0.04" in judged.output


@pytest.mark.slow
@pytest.mark.parametrize("task", ASKED)
def test_workers_make_the_run_of_one_process(task: str) -> None:
    measured(task, "whole")
    measured(task, "shared", "--workers", 2)
    same(task, "whole", "shared")
