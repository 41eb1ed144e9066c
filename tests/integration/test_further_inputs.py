"""Models of several inputs, one of which is attacked: the others follow their row wherever it
goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import holdfast
from holdfast.cli.main import app
from holdfast.data import from_arrays, open_data
from holdfast.errors import InputError
from holdfast.evaluation.verify import verify

N = 40
RNG = np.random.default_rng(0)
IMAGE, TABLE = RNG.random((N, 1, 4, 4), np.float32), RNG.normal(50, 20, (N, 3)).astype(np.float32)
W, V = (
    RNG.normal(size=(16, 2)).astype(np.float32),
    RNG.normal(size=(3, 2)).astype(np.float32) / 50,
)
SHAPES = ((3,), (1, 4, 4))  # the table first, so that the attacked input is the second


def scores(table: Any, image: Any) -> Any:
    return (image.reshape(len(image), -1) - 0.5) @ W + (table - 50) @ V


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.from_numpy(W)), nn.Parameter(torch.from_numpy(V))

    def forward(self, table: Tensor, image: Tensor) -> Tensor:
        assert table.shape[1:] == (3,)
        return (image.flatten(1) - 0.5) @ self.w + (table - 50) @ self.v


def make() -> nn.Module:
    return Net()


Y = scores(TABLE, IMAGE).argmax(1)


def broken_rows(eps: float) -> np.ndarray:
    """Which rows an image within eps can break: linear, in closed form."""
    c = W[:, 1] - W[:, 0]
    gap = np.abs(scores(TABLE, IMAGE) @ [-1, 1])
    side = np.where(Y[:, None] == 0, c, -c)
    image = IMAGE.reshape(N, -1)
    return (np.abs(c) * np.minimum(np.where(side > 0, 1 - image, image), eps)).sum(1) > gap


@pytest.mark.parametrize("kind", ["torch", "numpy", "jax", "keras"])
def test_the_others_follow_their_rows(kind: str, tmp_path: Path) -> None:
    attack = "signhunter(steps=64)" if kind == "numpy" else "apgd(steps=10)"
    model: Any = Net()
    if kind == "numpy":
        model = scores
    elif kind == "jax":
        model = pytest.importorskip("jax").jit(scores)
    elif kind == "keras":
        keras = pytest.importorskip("keras")
        table, image = keras.Input((3,)), keras.Input((1, 4, 4))
        parts = [
            (keras.layers.Flatten()(image) - 0.5) @ keras.ops.array(W),
            (table - 50) @ keras.ops.array(V),
        ]
        model = keras.Model([table, image], keras.layers.Add()(parts))
    target = holdfast.wrap(
        model, inputs=SHAPES, attacked=1, batch_size=7, framework=kind if kind == "numpy" else None
    )
    data = from_arrays((IMAGE, TABLE), Y)
    run = holdfast.evaluate(target, data, "linf(0.15)", attacks=[attack], out=tmp_path / "run")
    status = np.array(run.samples.column("status").to_pylist())
    np.testing.assert_array_equal(status == "broken", broken_rows(0.15))
    assert 0 < broken_rows(0.15).sum() < N
    for ids, x in run.examples():
        assert x.shape[1:] == IMAGE.shape[1:]
        assert (scores(TABLE[ids], x).argmax(1) != Y[ids]).all()
    assert verify(run.folder, target, data) == []


def test_the_command_line_takes_further_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "set.npz", x=IMAGE, x2=TABLE, y=Y)
    (tmp_path / "net.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_further_inputs import make\n"
    )
    monkeypatch.chdir(tmp_path)
    asked = [
        "evaluate",
        "net.py:make",
        "set.npz",
        "--threat",
        "linf(0.15)",
        "--attack",
        "apgd(steps=10)",
        "--out",
        "run",
    ]
    done = CliRunner().invoke(app, [*asked, "--attacked", "1"])
    assert done.exit_code == 0, done.output
    assert holdfast.Run("run").metrics.counts["broken"] == broken_rows(0.15).sum()
    assert "data:image/png" in Path("run/report.html").read_text()
    assert CliRunner().invoke(app, ["verify", "run", "net.py:make", "set.npz"]).exit_code == 0
    made = CliRunner().invoke(app, ["attack", *asked[1:-2], "--attacked", "1", "--out", "made.npz"])
    assert made.exit_code == 0, made.output
    with np.load("made.npz") as archive:
        assert archive["x"].shape == IMAGE.shape
    assert CliRunner().invoke(app, [*asked[:-1], "other", "--attacked", "2"]).exit_code == 2


def test_a_gap_in_the_arrays_and_a_preprocess_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=IMAGE, x2=TABLE[:-1], y=Y)
    with pytest.raises(InputError, match="x2"):
        open_data(str(tmp_path / "set.npz"))
    with pytest.raises(InputError, match="no preprocess"):
        holdfast.wrap(Net(), inputs=SHAPES, attacked=1, preprocess=holdfast.Normalize(0.5, 0.5))
    with pytest.raises(InputError, match="attacked is 2"):
        holdfast.wrap(Net(), inputs=SHAPES, attacked=2)


def test_further_inputs_that_are_missing_or_of_another_shape_are_refused() -> None:
    target = holdfast.wrap(Net(), inputs=SHAPES, attacked=1)
    for x, said in ((IMAGE, "x2 did not come"), ((IMAGE, TABLE[:, :2]), r"x2 is \(2,\)")):
        with pytest.raises(InputError, match=said):
            holdfast.evaluate(target, from_arrays(x, Y), "linf(0.15)", attacks=["fgsm"])
