"""A refused command leaves the folder as it found it: the right command goes through with the same
--out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import holdfast
from holdfast.cli.main import app
from holdfast.errors import HoldfastError, InputError, SpecError
from holdfast.evaluation import merge

MODELS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(16, 3)
    def forward(self, x):
        return self.w(x.flatten(1))

class Failing(Net):
    def forward(self, x):
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError("no gradients today")
        return super().forward(x)

def net(): torch.manual_seed(0); return Net()
def failing(): torch.manual_seed(0); return Failing()
"""
TRAIN = ("--epochs", "1", "--recipe", "fast(batch_size=30, judge='')", "--protocol", "quick")
EVALUATE = ("evaluate", "models.py:net", "test.npz", "--threat", "linf(0.1)", "--attack", "fgsm")
HARDEN = (
    "harden",
    "models.py:net",
    "train.npz",
    "--test",
    "test.npz",
    "--threat",
    "linf(0.1)",
    *TRAIN,
)
FLIP = "fast(augment='flip')"  # of images, which flat rows are not


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)
    draw = np.random.default_rng(0)
    for name, n in (("train", 90), ("test", 30)):
        y = np.arange(n) % 3
        x = np.clip(0.3 * y[:, None] + draw.random((n, 16)) * 0.3, 0, 1).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x.reshape(n, 1, 4, 4), y=y)
        np.savez(tmp_path / f"{name}-flat.npz", x=x, y=y)
        np.savez(tmp_path / f"{name}-wrong.npz", x=x[:, :9], y=y)
        np.savez(
            tmp_path / f"{name}-labels.npz", x=x.reshape(n, 1, 4, 4), y=np.array([0, 2, 7])[y % 3]
        )
    return tmp_path


def holdfast_says(*line: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(part) for part in line])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def listed() -> list[str]:
    """What lies here, but for what Python itself keeps of a file of code."""
    return sorted(set(os.listdir(".")) - {"__pycache__"})


def refused_then_done(
    right: Sequence[str], wrong: Sequence[Sequence[str]], out: Sequence[str]
) -> None:
    """Each wrong command is refused and leaves no trace; then the right one goes through."""
    found = listed()
    for line in wrong:
        code, said = holdfast_says(*line, *out)
        assert code == 2, (line, said)
        assert listed() == found, (line, said)
    code, said = holdfast_says(*right, *out)
    assert code == 0, said


def test_evaluate_and_attack(here: Path) -> None:
    """Line 21: mistakes that come to light late leave nothing in --out, of a run or of a file."""
    late = [
        [*EVALUATE, "--samples", "31"],
        ["evaluate", "models.py:net", "test-wrong.npz", "--threat", "linf(0.1)"],
        ["evaluate", "models.py:net", "test-labels.npz", "--threat", "linf(0.1)"],
        [*EVALUATE, "--curve", "inf"],
        [*EVALUATE, "--max-queries", "1"],
        [*EVALUATE, "--corruptions", "--baseline", "nowhere"],
        [*EVALUATE, "--attack", "apgd(loss='nonsense')"],
        [
            "evaluate",
            "models.py:net",
            "test.npz",
            "--threat",
            "linf(0.1)",
            "--protocol",
            "nonsense",
        ],
    ]
    refused_then_done(EVALUATE, late, ("--out", "run"))
    crafted = ["attack", *EVALUATE[1:]]
    late = [
        [*crafted, "--samples", "31"],
        ["attack", "models.py:net", "test-wrong.npz", *EVALUATE[3:]],
    ]
    refused_then_done(crafted, late, ("--out", "crafted.npz"))


def test_harden_and_train(here: Path) -> None:
    """Line 21: harden wrote harden.json before it had looked at the protocol, the rows to measure
    on or the recipe."""
    late = [
        [*HARDEN, "--protocol", "nonsense"],
        [*HARDEN, "--test-samples", "31"],
        [*HARDEN, "--train-samples", "91"],
        [*HARDEN, "--test", "test-wrong.npz"],
        [*HARDEN, "--test", "test-labels.npz"],
        [*HARDEN, "--threat", "rotation(10)"],
        [
            "harden",
            "models.py:net",
            "train-flat.npz",
            *HARDEN[3:],
            "--test",
            "test-flat.npz",
            "--recipe",
            FLIP,
        ],
        [*HARDEN, "--synthetic", "train-wrong.npz"],
        [*HARDEN, "--protocol", "autoattack-rand", "--threat", "l0(3)"],
    ]
    refused_then_done(HARDEN, late, ("--out", "hard/one"))
    trained = ["train", "models.py:net", "train.npz", "--epochs", "1"]
    late = [["train", "models.py:net", "train-wrong.npz"], [*trained, "--precision", "half"]]
    refused_then_done(trained, late, ("--out", "net.safetensors"))


def test_a_model_that_fails_in_the_first_search_blocks_nothing(here: Path) -> None:
    """Line 21: what a model raises before the first finished piece of work leaves nothing
    either."""
    data = holdfast.data.open_data("test.npz")
    failing = holdfast.load("models.py:failing")
    with pytest.raises((RuntimeError, HoldfastError)):
        holdfast.evaluate(
            failing, data, "linf(0.1)", attacks=["fgsm"], out="run", on_estimate=lambda _: None
        )
    assert not Path("run").exists()


def test_merge_compare_report_and_demo(here: Path) -> None:
    """Line 21: a shard that was damaged is refused, and so is a page of runs that cannot be
    compared."""
    for name, rows in (("a", "0:15"), ("b", "15:30")):
        assert holdfast_says(*EVALUATE, "--samples", rows, "--out", name)[0] == 0
    assert holdfast_says(*EVALUATE, "--out", "whole", "--seed", "1")[0] == 0
    refused_then_done(
        ["merge", "a", "b"], [["merge", "a", "a"], ["merge", "a", "whole"]], ("--out", "merged")
    )
    refused_then_done(
        ["compare", "merged", "whole"], [["compare", "a", "b"]], ("--page", "page.html")
    )
    refused_then_done(["report", "a"], [["report", "nowhere"]], ())
    code, said = holdfast_says("demo", "--recipe", "nonsense", "--out", "demo")
    assert (code, Path("demo").exists()) == (2, False), said


def test_merge_leaves_no_half_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line 21: merge wrote examples and table before the last of its checks."""
    for name, rows in (("a", "0:15"), ("b", "15:30")):
        assert holdfast_says(*EVALUATE, "--samples", rows, "--out", name)[0] == 0

    def refuses(*_: object) -> None:
        raise InputError("the last check does not hold.")

    monkeypatch.setattr(merge, "build_manifest", refuses)
    with pytest.raises(InputError):
        merge.merge([Path("a"), Path("b")], Path("merged"))
    assert not Path("merged").exists()


def test_generate(here: Path) -> None:
    """Line 21: generate train and sample refuse before they write."""
    np.savez("cube.npz", x=np.zeros((40, 2, 2, 2, 2), np.float32), y=np.arange(40) % 2)
    asked = ["generate", "train"]
    late = [
        [*asked, "cube.npz"],
        [*asked, "train-labels.npz"],
        [*asked, "train.npz", "--model", "gan(steps=-1)"],
    ]
    found = listed()
    for line in late:
        assert holdfast_says(*line, "--out", "made")[0] == 2
    assert holdfast_says("generate", "sample", "nowhere", "--out", "drawn.npz")[0] == 2
    assert listed() == found


def test_samples_of_harden_say_which(here: Path) -> None:
    """Line 23: --train-samples trains on so many rows, --test-samples measures on so many;
    --samples is refused."""
    code, said = holdfast_says(*HARDEN, "--samples", "20", "--out", "hard")
    assert code == 2
    assert "--train-samples 20" in said
    assert "--test-samples 20" in said
    made = holdfast.harden(
        holdfast.load("models.py:net"),
        holdfast.data.open_data("train.npz"),
        "linf(0.1)",
        recipe="fast(epochs=1, batch_size=16, objective='standard', judge='')",
        test=holdfast.data.open_data("test.npz"),
        protocol="quick",
        train_samples=64,
        test_samples=(10, 20),
        out="hard",
    )
    assert made.after.metrics.clean_accuracy.n == 10
    # 64 rows but for a tenth, one forward and one backward each
    assert made.log[0].passes == 2 * 58


def test_from_python_without_out(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused evaluation or hardening without `out` leaves no temporary folder."""
    monkeypatch.setattr("tempfile.tempdir", str(here / "temporary"))
    (here / "temporary").mkdir()
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    with np.load("train.npz") as one, np.load("test.npz") as other:
        train, test = tuple(one.values()), tuple(other.values())
    with pytest.raises(SpecError, match="targets"):
        holdfast.evaluate(net, test, "linf(0.1)", attacks=["pgd(targets=5)"])
    with pytest.raises(SpecError, match="nonsense"):
        holdfast.harden(net, train, "linf(0.1)", test=test, protocol="nonsense", epochs=1)
    assert list((here / "temporary").iterdir()) == []
