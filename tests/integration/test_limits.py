"""Limits of each feature's own through evaluation, evidence and command line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import holdfast
from holdfast.cli.main import app
from holdfast.data import from_arrays
from holdfast.errors import InputError
from holdfast.evaluation.verify import verify
from holdfast.runs import store

N, F = 60, 6
RNG = np.random.default_rng(0)
LIMITS = {
    "low": np.array([0, -1, 0, 10, 0, 0], np.float32),
    "high": np.array([1, 1, 50, 20, 3, 1], np.float32),
    "scale": np.array([0.1, 0.2, 5, 1, 0, 0.1], np.float32),
    "mask": np.array([1, 1, 1, 1, 1, 0], bool),
}
X = (LIMITS["low"] + RNG.random((N, F), np.float32) * (LIMITS["high"] - LIMITS["low"])).astype(
    np.float32
)


def make() -> nn.Module:
    net = nn.Linear(F, 2)
    width = torch.from_numpy(LIMITS["high"] - LIMITS["low"])
    w = torch.tensor([[0.0] * F, [1.0, -1, 1, 1, -1, 1]]) / width
    middle = torch.from_numpy(LIMITS["high"] + LIMITS["low"]) / 2
    net.load_state_dict({"weight": w, "bias": -(w @ middle)})
    return net


Y = make()(torch.from_numpy(X)).argmax(1).numpy()


def command(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    np.savez(tmp_path / "set.npz", x=X, y=Y)
    np.savez(tmp_path / "limits.npz", **LIMITS)
    (tmp_path / "net.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_limits import "
        "make\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_line_keeps_the_limits_as_evidence(here: Path) -> None:
    asked = (
        "net.py:make",
        "set.npz",
        "--threat",
        "linf(0.5)",
        "--limits",
        "limits.npz",
        "--attack",
        "apgd(steps=10)",
    )
    done = command("evaluate", *asked, "--out", "run", "--curve", "1.0")
    assert done.exit_code == 0, done.output
    run = holdfast.Run("run")
    kept = store.read_limits(run.folder)
    np.testing.assert_array_equal(kept["low"], LIMITS["low"])
    assert kept["mask"].tolist() == [True] * 4 + [False] * 2
    status = np.array(run.samples.column("status").to_pylist())
    size = run.samples.column("size").to_numpy(zero_copy_only=False).astype(float)
    w = (make().weight[1] - make().weight[0]).detach().numpy()
    side = np.where(Y[:, None] == 0, w, -w)
    room = np.where(side > 0, LIMITS["high"] - X, X - LIMITS["low"])
    most = (np.minimum(room, 0.5 * LIMITS["scale"]) * np.abs(w) * LIMITS["mask"]).sum(1)
    gap = np.abs(make()(torch.from_numpy(X)).detach().numpy() @ [-1, 1])
    sure = np.abs(most - gap) > 1e-3
    np.testing.assert_array_equal((status == "broken")[sure], (most > gap)[sure])
    assert 0 < (status == "broken").sum() < N
    for ids, found in run.examples():
        shifted = np.abs(found.astype(float) - X[ids])
        assert (shifted[:, 4:] == 0).all()
        np.testing.assert_allclose(
            (shifted[:, :4] / LIMITS["scale"][:4]).max(1), size[ids], rtol=1e-6
        )
        assert (found >= LIMITS["low"]).all()
        assert (found <= LIMITS["high"]).all()
    assert command("verify", "run", "net.py:make", "set.npz").exit_code == 0
    assert "eps has a scale" in (here / "run" / "report.html").read_text()
    assert command("attack", *asked, "--out", "made.npz").exit_code == 0
    with np.load("made.npz") as made:
        assert made["broken"].sum() == (status == "broken").sum()
    np.savez("limits.npz", **(LIMITS | {"scale": LIMITS["scale"] * 2}))
    other = command("evaluate", *asked, "--out", "run", "--curve", "1.0", "--resume")
    assert other.exit_code == 2
    assert "threat" in other.stderr


def test_changed_limits_are_noticed(tmp_path: Path) -> None:
    target = holdfast.wrap(make(), bounds=(LIMITS["low"], LIMITS["high"]))
    threat = holdfast.Threat.linf(0.5, scale=torch.from_numpy(LIMITS["scale"]))
    run = holdfast.evaluate(
        target, (X, Y), threat, attacks=["apgd(steps=10)"], out=tmp_path / "run"
    )
    assert verify(run.folder, target, from_arrays(X, Y)) == []
    wider = tmp_path / "wider"
    shutil.copytree(run.folder, wider)
    kept = store.read_limits(wider)
    store.write_limits(wider, kept | {"scale": kept["scale"] * 2})
    said = " ".join(verify(wider, target, from_arrays(X, Y)))
    assert "checksum" in said
    assert "threat: its text is" in said
    assert "have another size" in said


def test_wrong_limits_are_refused(here: Path) -> None:
    target = holdfast.wrap(make(), bounds=(LIMITS["low"], LIMITS["high"]))
    with pytest.raises(InputError, match=r"row 7 .* at feature 3, whose bounds are \[10, 20\]"):
        holdfast.evaluate(
            target,
            (np.where((np.arange(N) == 7)[:, None] & (np.arange(F) == 3), 9, X), Y),
            "linf(0.1)",
        )
    for name, limits in (
        ("odd", {"eps": Y}),
        ("half", {"low": LIMITS["low"]}),
        ("shape", {"mask": np.ones(3, bool)}),
    ):
        np.savez(f"{name}.npz", **limits)
        done = command(
            "evaluate",
            "net.py:make",
            "set.npz",
            "--bounds=-1,50",
            "--threat",
            "linf(1)",
            "--limits",
            f"{name}.npz",
        )
        assert done.exit_code == 2
        assert done.stderr.strip().startswith("error: ")
        assert done.stderr.strip().count("\n") == 0
    assert (
        command(
            "evaluate", "net.py:make", "set.npz", "--threat", "linf(1)", "--limits", "none.npz"
        ).exit_code
        == 2
    )
