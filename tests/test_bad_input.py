"""Mistakes at the command line: one sentence that names what was seen, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from holdfast.cli.main import app
from holdfast.data import open_data
from holdfast.evaluate import Run

N = 20
PGD = ("--attack", "pgd(steps=2)")
LINF = ("--threat", "linf(0.1)")
MODELS = """
import os
import torch
from torch import nn
from holdfast.targets import Access, Target, TorchTarget
from holdfast.targets.demo import demo_model

class Changed(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.inner, self.change = demo_model(), change

    def forward(self, x):
        return self.change(self.inner(x))

def five_classes(): return Changed(lambda z: z[:, :5])
def three_axes(): return Changed(lambda z: z[:, :, None])
def a_pair(): return Changed(lambda z: (z, z))
def one_answer(): return Changed(lambda z: z.mean(0))
def key_error(): return Changed(lambda z: {}["logits"])

class Labels(Target):
    access = Access.LABELS

    def __init__(self):
        self.inner = TorchTarget(demo_model(), shape=(1, 8, 8))
        self.task = self.inner.task

    def scores(self, x): raise AssertionError("scores asked of a target that gives labels only")
    def labels(self, x): return self.inner.labels(x)
    def fingerprint(self): return "labels"

class Interrupted(nn.Module):
    def __init__(self, after):
        super().__init__()
        self.inner, self.after, self.calls = demo_model(), after, 0

    def forward(self, x):
        self.calls += 1
        if os.path.exists("interrupt") and self.calls > self.after:
            raise KeyboardInterrupt
        return self.inner(x)

def stops_at_once(): return Interrupted(0)
def stops_late(): return Interrupted(12)
def other(): return Changed(lambda z: z * 2)
"""


def holdfast(*args: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False)


def refused(*args: object) -> str:
    """The sentence that the command line refuses a mistake with."""
    done = holdfast(*args)
    text = done.stderr.strip()
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 1
    assert text.endswith((".", "?", ")"))
    assert "Traceback" not in text
    return text


def names(text: str, *words: str) -> None:
    for word in words:
        assert word in text


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


def save(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] = lambda x, y: (x, y)) -> str:
    x, y = change(*open_data("digits").rows(0, N))
    np.savez("set.npz", x=x, y=y)
    return "set.npz"


def put(array: np.ndarray, at: object, value: float) -> np.ndarray:
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda x, y: (put(x, 3, np.nan), y), (), ("row 3 ", "NaN", "must be finite")),
        (lambda x, y: (put(x, 4, np.inf), y), (), ("row 4 ", "infinity", "must be finite")),
        (lambda x, y: (x * 255, y), (), ("[0, 255]", "[0, 1]", "bytes", "divide by 255", "--bounds 0,255")),
        (lambda x, y: (x, y), ("--bounds", "0,255"), ("[0, 1]", "[0, 255]", "scaled to [0, 1] already")),
        (lambda x, y: ((x - 0.3) / 0.4, y), (), ("[-0.75, 1.75]", "[0, 1]", "normalised", "--preprocess")),
        (lambda x, y: (x.transpose(0, 2, 3, 1), y), (), ("(8, 8, 1)", "NHWC", "--layout nhwc")),
        (lambda x, y: (x, np.eye(10)[y]), (), ("20 x 10", "one-hot", "y.argmax(1)")),
        (lambda x, y: (x, put(y, 5, 10)), (), ("row 5 ", "label 10", "10 classes", "0 to 9", "count from 1")),
        (lambda x, y: (x, put(y, 5, -1)), (), ("row 5 ", "label -1", "count from 0")),
        (lambda x, y: (x, y / 2), (), ("float64", "integers", "astype(int)")),
        (lambda x, y: (x, y[:7]), (), ("20 inputs", "7 labels")),
        (lambda x, y: (x[:, :, :4], y), (), ("(1, 4, 8)", "the model fails", "shape of the data")),
    ],
    ids="nan inf bytes scaled normalised nhwc one-hot too-large negative floating short shape".split(),
)
def test_data(change: Callable, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    for command in ("evaluate", "attack"):
        names(refused(command, "demo", save(change), *LINF, "--attack", "pgd(steps=2)", *options), *words)
    assert sorted(os.listdir()) == ["models.py", "set.npz"]


@pytest.mark.parametrize(
    ("threat", "words"),
    [
        ("linf(-0.1)", ("-0.1", "above 0")),
        ("linf(0)", ("eps is 0 ", "above 0")),
        ("linf(nan)", ("nan", "above 0")),
        ("linf(inf)", ("inf", "finite")),
        ("linf('big')", ("'big'", "above 0")),
        ("linf(big)", ("big", "not a number")),
        ("linf()", ("'linf()'", "eps")),
        ("linf(8)", ("eps 8", "larger than the whole box", "[0, 1]", "0-255")),
        ("l2(9)", ("eps 9", "larger than the whole box", "8")),
        ("lnf(0.1)", ("'lnf'", "did you mean linf")),
        ("linf(0.1, tagret=3)", ("'tagret'", "did you mean target")),
        ("linf(0.1, target=10)", ("class 10", "0 to 9")),
        ("linf(0.1, target=-1)", ("class -1", "0 to 9")),
        pytest.param("linf(0.1, target='a')", ("'a'",), marks=pytest.mark.xfail(reason="threat.py: TypeError")),
        pytest.param("linf(0.1, target=1.5)", ("1.5",), marks=pytest.mark.xfail(reason="threat.py: taken for 1")),
        ("linf(0.1", ("'linf(0.1'", "cannot read")),
        ("linf(__import__('os').system('touch ran'))", ("__import__", "not a number")),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "attack"])
def test_threat(command: str, threat: str, words: tuple[str, ...], request: pytest.FixtureRequest) -> None:
    if command == "attack":
        if threat == "linf(inf)":
            pytest.skip("asks an attack for the smallest perturbation")
        if threat in ("linf(8)", "l2(9)", "linf(0.1, target=10)", "linf(0.1, target=-1)"):
            request.applymarker(pytest.mark.xfail(reason="craft.py does not check the threat"))
    names(refused(command, "demo", "digits", "--threat", threat, *PGD, "--samples", N), *words)
    assert os.listdir() == ["models.py"]


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ("pdg(steps=3)", ("'pdg'", "did you mean", "pgd")),
        ("pgd(setps=3)", ("'setps'", "did you mean steps")),
        ("pgd(steps=0)", ("0 steps", "at least 1")),
        ("pgd(steps=-3)", ("-3 steps", "at least 1")),
        ("pgd(restarts=0)", ("restarts=0", "at least 1")),
        ("pgd(steps='many')", ("many",)),
        ("pgd(loss='drl')", ("'drl'", "did you mean dlr")),
        ("pgd(loss='square')", ("'square'", "known: ce, dlr, margin, mifpe")),
        ("pgd(start_at='bal')", ("'bal'", "ball")),
        ("pgd(step_size=0)", ("step_size 0", "above 0")),
        ("pgd(1, 2, 'ce', 'ball', 0, 6)", ("too many", "steps")),
        ("pgd(steps=3", ("'pgd(steps=3'", "cannot read")),
        ("pgd(**{'steps': 3})", ("**",)),
        ("pgd(steps=__import__('os').system('touch ran'))", ("__import__", "not a number")),
        ("pgd(steps=2).__class__", ("cannot read",)),
        *[
            pytest.param(f"pgd({option})", (value,), marks=pytest.mark.xfail(reason="attack.py: types unchecked"))
            for option, value in [("steps=2.5", "2.5"), ("momentum='a'", "a"), ("steps=2, restarts=1.5", "1.5")]
        ],
    ],
)
def test_attack(attack: str, words: tuple[str, ...]) -> None:
    names(refused("evaluate", "demo", "digits", *LINF, "--attack", attack, "--samples", N), *words)
    assert os.listdir() == ["models.py"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--protocol", "standrad"), ("'standrad'", "did you mean standard")),
        (("--protocol", "x"), ("'x'", "known: quick, standard")),
        (("--bounds", "0:1"), ("--bounds", "'0:1'", "two numbers")),
        (("--bounds", "0,1,2"), ("--bounds", "'0,1,2'", "two numbers")),
        (("--bounds", "low,high"), ("--bounds", "'low,high'", "two numbers")),
        (("--bounds", "1,0"), ("[1, 0]", "the lower must be below the upper")),
        (("--bounds", "1,1"), ("[1, 1]", "the lower must be below the upper")),
        (("--samples", "many"), ("--samples", "'many'", "100:200")),
        (("--samples", "1:2:3"), ("--samples", "'1:2:3'", "100:200")),
        (("--samples", "0"), ("0:0", "at least 1")),
        (("--samples", "9:3"), ("9:3", "start:stop")),
        (("--samples", "360:400"), ("360", "has 360 rows")),
        pytest.param(("--samples", "400"), ("400", "360"), marks=pytest.mark.xfail(reason="clipped to 360 in silence")),
        (("--layout", "hwc"), ("--layout", "'hwc'", "nchw or nhwc")),
        (("--layout", "nhwc"), ("(1, 8, 8)", "shape of the data")),
        (("--device", "gpu"), ("--device gpu", "cannot be used")),
        (("--device", "meta"), ("--device meta", "cannot be used")),
        (("--split", "tset"), ("'tset'", "did you mean test")),
        (("--curve", "0.1;0.2"), ("--curve", "'0.1;0.2'", "numbers")),
        (("--curve", "eps=0.2"), ("--curve", "'eps=0.2'", "numbers")),
        (("--curve", "-0.1"), ("-0.1", "above 0")),
        (("--preprocess", "normalise(0, 1)"), ("'normalise'", "did you mean normalize")),
        (("--preprocess", "normalize(0)"), ("normalize(0)", "std")),
        (("--preprocess", "normalize(0, 0)"), ("std 0", "above 0")),
        (("--gate", "robust_accuracy=0.5"), ("'robust_accuracy=0.5'", "robust_accuracy>=0.45")),
        (("--gate", "robust_accuracy>=half"), ("'robust_accuracy>=half'", "robust_accuracy>=0.45")),
        (("--gate", "robust_acuracy>=0.5"), ("'robust_acuracy'", "did you mean robust_accuracy")),
        (("--resume",), ("--resume", "--out")),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_options(options: tuple[str, ...], words: tuple[str, ...]) -> None:
    names(refused("evaluate", "demo", "digits", *LINF, *(() if "--protocol" in options else PGD), *options), *words)
    assert os.listdir() == ["models.py"]


def test_an_option_that_does_not_exist_is_named_with_the_nearest() -> None:
    done = holdfast("evaluate", "demo", "digits", *LINF, "--protocl", "quick")
    assert done.exit_code == 2
    names(done.stderr, "--protocl", "--protocol")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("five_classes", ("label 9", "5 classes", "0 to 4")),
        ("three_axes", ("(2, 10, 1)", "[n, classes]")),
        ("a_pair", ("tuple", "[n, classes]")),
        pytest.param("one_answer", ("(10,)", "[n, classes]"), marks=pytest.mark.xfail(reason="targets/torch.py")),
        pytest.param("key_error", ("logits",), marks=pytest.mark.xfail(reason="targets/torch.py: KeyError goes out")),
        ("Labels", ("GRADIENTS", "LABELS", "pgd", "sweep")),
    ],
)
def test_model(model: str, words: tuple[str, ...]) -> None:
    names(refused("evaluate", f"models.py:{model}", "digits", *LINF, *PGD, "--samples", N), *words)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("evaluate", "demo", "none.npz", *LINF), ("none.npz", "there is no")),
        (("evaluate", "demo", "digitz", *LINF), ("'digitz'", "did you mean digits")),
        (("list", "atacks"), ("'atacks'", "did you mean attacks")),
        (("list", "x"), ("'x'", "known: attacks, data, protocols")),
        (("report", "none"), ("none", "no run", "run.json")),
        (("verify", "none", "demo", "digits"), ("none", "no run", "run.json")),
        (("merge", "none", "--out", "m"), ("none", "no run", "run.json")),
        (("attack", "demo", "digits", *LINF, "--out", "x.csv"), ("x.csv", ".npz")),
        (("attack", "demo", "digits", *LINF, "--out", "models.py"), ("models.py", "exists")),
        (("train", "holdfast.targets.demo:demo_net", "digits", "--out", "w.pt"), ("w.pt", ".safetensors")),
        (("train", "holdfast.targets.demo:demo_net", "digits", "--device", "gpu"), ("--device gpu", "cannot be used")),
        (("train", "math:pi", "digits"), ("math", "no callable 'pi'")),
        (("train", "builtins:dict", "digits"), ("dict", "torch module")),
    ],
    ids=" ".join,
)
def test_other_commands(args: tuple[str, ...], words: tuple[str, ...]) -> None:
    names(refused(*args), *words)
    assert os.listdir() == ["models.py"]
