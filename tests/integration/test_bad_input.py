"""Mistakes and mishaps at the command line: one sentence says what was seen, nothing is lost, no
traceback."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import holdfast, names, refused, same_run

from holdfast.data import open_data
from holdfast.runs import store
from holdfast.runs.run import Run

N = 20
PGD = ("--attack", "pgd(steps=2)")
LINF = ("--threat", "linf(0.1)")
MODELS = """
import os
from pathlib import Path
from torch import nn
from holdfast.targets.demo import demo_model, demo_net

class Stoppable(nn.Module):
    '''Ctrl-C comes after as many calls as the file `interrupt` says.'''

    def __init__(self):
        super().__init__()
        self.inner, self.calls = demo_model(), 0

    def forward(self, x):
        self.calls += 1
        if os.path.exists("interrupt") and self.calls > int(Path("interrupt").read_text()):
            raise KeyboardInterrupt
        return self.inner(x)

class Rescaled(nn.Module):
    '''As a Keras model that begins with Rescaling(1/255).'''

    def __init__(self):
        super().__init__()
        self.inner = demo_model()

    def forward(self, x):
        return self.inner(x / 255)

class Narrow(Rescaled):
    '''Blind to what is above 1.'''

    def forward(self, x):
        return self.inner(x * (x <= 1))

class Wrong(nn.Module):
    '''Never right within [0, 1]; beyond, one class for all.'''

    def __init__(self):
        super().__init__()
        self.inner = demo_model()

    def forward(self, x):
        z = self.inner(x).roll(1, 1)
        first = nn.functional.one_hot(z.argmax(1) * 0, 10)
        return z + 100 * (x.amax((1, 2, 3)) > 1)[:, None] * first
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.py").write_text(MODELS)
    return tmp_path


def put(array: np.ndarray, at: object, value: float) -> np.ndarray:
    array[at] = value
    return array


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lambda x, y: (put(x, 3, np.nan), y), (), ("row 3 ", "NaN", "must be finite")),
        (lambda x, y: (put(x, 4, np.inf), y), (), ("row 4 ", "infinity", "must be finite")),
        (
            lambda x, y: (x * 255, y),
            (),
            ("[0, 255]", "[0, 1]", "bytes", "divide by 255", "--bounds 0,255"),
        ),
        (
            lambda x, y: (x, y),
            ("--bounds", "0,255"),
            ("[0, 1]", "[0, 255]", "scaled to [0, 1] already"),
        ),
        (
            lambda x, y: ((x - 0.3) / 0.4, y),
            (),
            ("[-0.75, 1.75]", "[0, 1]", "normalised", "--preprocess"),
        ),
        (
            lambda x, y: (x, put(np.eye(10)[y], (4, slice(3)), 1)),
            (),
            ("20 x 10", "row 4", "one-hot", "--task multilabel"),
        ),
        (
            lambda x, y: (x, put(y, 5, 10)),
            (),
            ("row 5 ", "label 10", "10 classes", "0 to 9", "count from 1"),
        ),
        (lambda x, y: (x, put(y, 5, -1)), (), ("row 5 ", "label -1", "count from 0")),
        (lambda x, y: (x, y / 2), (), ("float64", "integers", "astype(int)")),
        (lambda x, y: (x, y[:7]), (), ("20 inputs", "7 labels")),
        (lambda x, y: (x[:, :, :4], y), (), ("(1, 4, 8)", "the model fails", "shape of the data")),
    ],
    ids="nan inf bytes scaled normalised one-hot too-large negative floating short shape".split(),
)
def test_data(change: Callable, options: tuple[str, ...], words: tuple[str, ...]) -> None:
    x, y = change(*open_data("digits").rows(0, N))
    np.savez("set.npz", x=x, y=y)
    for command in ("evaluate", "attack"):
        names(refused(command, "demo", "set.npz", *LINF, *PGD, *options), *words)
    assert sorted(os.listdir()) == ["models.py", "set.npz"]


def test_a_model_in_another_range_is_no_broken_model() -> None:
    x, y = open_data("digits").rows(0, 64)
    np.savez("set.npz", x=x, y=y)
    np.savez("bytes.npz", x=x * 255, y=y)
    for command in ("evaluate", "attack"):
        said = refused(command, "models.py:Rescaled", "set.npz", *LINF, *PGD)
        names(
            said,
            "64 rows",
            "in [0, 1] is 10%",
            "93% on the same rows times 255",
            "takes bytes",
            "--bounds 0,255",
            '"normalize(0, 1/255)"',
        )
        said = refused(
            command,
            "models.py:Narrow",
            "bytes.npz",
            "--threat",
            "linf(1)",
            *PGD,
            "--bounds",
            "0,255",
        )
        names(said, "[0, 255]", "93% on the same rows divided by 255", "Leave --bounds out")
    for out, model, options in (
        ("remedy", "models.py:Rescaled", ("set.npz", "--preprocess", "normalize(0, 1/255)")),
        ("wrong", "models.py:Wrong", ("set.npz",)),
    ):
        done = holdfast("evaluate", model, *options, *LINF, *PGD, "--samples", 16, "--out", out)
        assert done.exit_code == 0, done.output
    assert Run(Path("wrong")).metrics.clean_accuracy.value == 0
    assert Run(Path("remedy")).metrics.clean_accuracy.value == 1


def test_rows_of_one_class_say_nothing_of_a_range() -> None:
    x, _ = open_data("digits").rows(0, 20)
    np.savez("set.npz", x=x, y=np.zeros(20, int))
    assert holdfast("evaluate", "models.py:Wrong", "set.npz", *LINF, *PGD).exit_code == 0


@pytest.mark.parametrize(
    "row",
    [  # option, value, words of the sentence
        ("--threat", "linf(-0.1)", "-0.1", "above 0"),
        ("--threat", "linf(0)", "eps is 0 ", "above 0"),
        ("--threat", "linf(nan)", "nan", "above 0"),
        ("--threat", "linf(inf)", "inf", "finite"),
        ("--threat", "linf()", "'linf()'", "eps"),
        ("--threat", "linf(8)", "eps 8", "larger than the whole box", "[0, 1]", "0-255"),
        ("--threat", "lnf(0.1)", "'lnf'", "did you mean linf"),
        ("--threat", "linf(0.1, tagret=3)", "'tagret'", "did you mean target"),
        ("--threat", "linf(0.1, target=10)", "class 10", "0 to 9"),
        ("--threat", "linf(0.1, target='a')", "'a'"),
        ("--threat", "linf(0.1, target=1.5)", "1.5"),
        ("--threat", "linf(0.1", "'linf(0.1'", "cannot read"),
        ("--threat", "linf(__import__('os').mkdir('ran'))", "__import__", "not a number"),
        ("--attack", "pdg(steps=3)", "'pdg'", "did you mean", "pgd"),
        ("--attack", "pgd(setps=3)", "'setps'", "did you mean steps"),
        ("--attack", "pgd(steps=0)", "0 steps", "at least 1"),
        ("--attack", "pgd(restarts=0)", "restarts=0", "at least 1"),
        ("--attack", "pgd(steps='many')", "many"),
        ("--attack", "pgd(steps=2.5)", "2.5"),
        ("--attack", "pgd(momentum='a')", "'a'"),
        ("--attack", "pgd(steps=2, restarts=1.5)", "1.5"),
        ("--attack", "pgd(loss='drl')", "'drl'", "did you mean dlr"),
        ("--attack", "pgd(loss='square')", "'square'", "known: balanced_ce, ce, dlr"),
        ("--attack", "pgd(start_at='bal')", "'bal'", "ball"),
        ("--attack", "pgd(step_size=0)", "step_size=0", "above 0"),
        ("--attack", "pgd(1, 2, 'ce', 'ball', 0, 6)", "too many", "steps"),
        ("--attack", "pgd(steps=3", "'pgd(steps=3'", "cannot read"),
        ("--attack", "pgd(**{'steps': 3})", "**"),
        ("--attack", "pgd(steps=__import__('os').mkdir('ran'))", "__import__", "not a number"),
        ("--attack", "pgd(steps=2).__class__", "cannot read"),
        ("--protocol", "standrad", "'standrad'", "did you mean standard"),
        ("--bounds", "0:1", "--bounds", "'0:1'", "two numbers"),
        ("--bounds", "0,1,2", "--bounds", "'0,1,2'", "two numbers"),
        ("--bounds", "1,0", "[1, 0]", "the lower one first"),
        ("--samples", "many", "--samples", "'many'", "100:200"),
        ("--samples", "0", "0:0", "at least 1"),
        ("--samples", "9:3", "9:3", "start:stop"),
        ("--samples", "360:400", "360", "has 360 rows"),
        ("--samples", "400", "400", "360"),
        ("--layout", "hwc", "--layout", "'hwc'", "nchw or nhwc"),
        ("--resize", "256", "--resize is for DIR", "leave it out"),
        ("--label", "income", "--label is for FILE.csv", "leave it out"),
        ("--device", "gpu", "--device gpu", "cannot be used"),
        ("--device", "meta", "--device meta", "cannot be used"),
        ("--split", "tset", "'tset'", "did you mean test"),
        ("--curve", "0.1;0.2", "--curve", "'0.1;0.2'", "numbers"),
        ("--curve", "eps=0.2", "--curve", "'eps=0.2'", "numbers"),
        ("--curve", "-0.1", "-0.1", "above 0"),
        ("--preprocess", "normalise(0, 1)", "'normalise'", "did you mean normalize"),
        ("--preprocess", "normalize(0)", "normalize(0)", "std"),
        ("--preprocess", "normalize(0, 0)", "std 0", "above 0"),
        ("--preprocess", "normalize('a', 1)", "mean='a'", "one number, or one a channel"),
        ("--gate", "robust_accuracy=0.5", "'robust_accuracy=0.5'", "robust_accuracy>=0.45"),
        ("--gate", "robust_acuracy>=0.5", "'robust_acuracy'", "did you mean robust_accuracy"),
    ],
    ids=lambda row: " ".join(row[:2]),
)
def test_options(row: tuple[str, ...]) -> None:
    option, value, *words = row
    attack = () if option in ("--attack", "--protocol") else PGD
    rows = () if option == "--samples" else ("--samples", N)
    names(refused("evaluate", "demo", "digits", *LINF, *attack, *rows, option, value), *words)
    assert os.listdir() == ["models.py"]


@pytest.mark.parametrize(
    "row",
    [("linf(8)", "larger than the whole box"), ("linf(0.1, target=10)", "class 10", "0 to 9")],
)
def test_threat_of_one_attack(row: tuple[str, ...]) -> None:
    names(refused("attack", "demo", "digits", "--threat", row[0], *PGD, "--samples", N), *row[1:])
    assert os.listdir() == ["models.py"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("evaluate", "demo", "digits", *LINF, "--resume"), ("--resume", "--out")),
        (("evaluate", "demo", "none.npz", *LINF), ("none.npz", "there is no")),
        (("evaluate", "demo", "digitz", *LINF), ("'digitz'", "did you mean digits")),
        (("list", "atacks"), ("'atacks'", "did you mean attacks")),
        (("report", "none"), ("none", "no run", "run.json")),
        (("verify", "none", "demo", "digits"), ("none", "no run", "run.json")),
        (("merge", "none", "--out", "m"), ("none", "no run", "run.json")),
        (("attack", "demo", "digits", *LINF, "--out", "x.csv"), ("x.csv", ".npz")),
        (("attack", "demo", "digits", *LINF, "--out", "models.py"), ("models.py", "exists")),
        (
            ("train", "holdfast.targets.demo:demo_net", "digits", "--out", "w.pt"),
            ("w.pt", ".safetensors"),
        ),
        (
            ("train", "holdfast.targets.demo:demo_net", "digits", "--device", "gpu"),
            ("--device gpu", "cannot be used"),
        ),
        (("train", "builtins:dict", "digits"), ("dict", "torch module")),
        (("train", "torch.nn:Flatten", "digits"), ("Flatten", "no parameters")),
        (
            ("train", "holdfast.targets.demo:demo_net", "digits", "--rate", "1e30"),
            ("the loss is", "lower rate"),
        ),
    ],
    ids=" ".join,
)
def test_other_commands(args: tuple[str, ...], words: tuple[str, ...]) -> None:
    names(refused(*args), *words)
    assert os.listdir() == ["models.py"]


ASKED = ("models.py:Stoppable", "digits", *LINF, *PGD, "--samples", "0:40")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that ASKED asks for, never broken off."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "models.py").write_text(MODELS)
    asked = (f"{folder}/models.py:Stoppable", *ASKED[1:])
    assert holdfast("evaluate", *asked, "--out", folder / "run").exit_code == 0
    return folder / "run"


def test_a_folder_that_holds_something_is_left_alone() -> None:
    holdfast("evaluate", *ASKED, "--out", "run")
    before = store.checksums(Path("run"))
    names(refused("evaluate", *ASKED, "--out", "run"), "run holds a finished run", "another --out")
    names(refused("evaluate", *ASKED, "--out", "."), "other files", "another --out")
    assert store.checksums(Path("run")) == before


@pytest.mark.parametrize("out", ["models.py", "models.py/run"])
def test_a_file_is_no_folder(out: str) -> None:
    names(refused("evaluate", *ASKED, "--out", out), "models.py")


CHANGES = {
    "eps": (*ASKED, "--threat", "linf(0.11)"),
    "model": ("demo", *ASKED[1:]),
    "data": (ASKED[0], "set.npz", *ASKED[2:]),
    "protocol": (*ASKED, *PGD),
    "seed": (*ASKED, "--seed", "1"),
}


@pytest.mark.parametrize("calls", [0, 11, 12])
def test_ctrl_c_leaves_a_run_that_goes_on(calls: int, whole: Path) -> None:
    Path("interrupt").write_text(str(calls))
    done = holdfast("evaluate", *ASKED, "--out", "broken off")
    assert done.exit_code == 130
    assert done.stdout == ""
    names(done.stderr, "interrupted", "--out", "broken off", "--resume")
    assert "Traceback" not in done.stderr
    assert not Path("broken off/run.json").exists()
    Path("interrupt").unlink()
    x, y = open_data("digits").rows(0, 360)
    np.savez("set.npz", x=x * 0.9, y=y)
    assert Path("broken off").exists() == bool(calls)  # 0: not even begun
    if calls:
        names(refused("evaluate", *ASKED, "--out", "broken off"), "unfinished", "--resume")
        names(refused("report", "broken off"), "unfinished", "--resume")
        for key, asked in CHANGES.items():
            text = refused("evaluate", *asked, "--out", "broken off", "--resume")
            names(text, "cannot resume broken off", f"made with {key} ", "another --out")
    assert holdfast("evaluate", *ASKED, "--out", "broken off", "--resume").exit_code == 0
    same_run("broken off", whole)


def test_ctrl_c_while_one_attack_runs() -> None:
    Path("interrupt").write_text("6")
    done = holdfast("attack", "models.py:Stoppable", "digits", *LINF, *PGD)
    assert done.exit_code == 130
    names(done.stderr, "interrupted")
    assert "--resume" not in done.stderr  # it has none
    assert not Path("adversarial.npz").exists()


@pytest.mark.parametrize("syncs", [0, 2, 6, 7, 12, 14])
def test_a_full_disk_loses_nothing(
    syncs: int, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(syncs))

    def fsync(_: int) -> None:
        if next(calls, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        text = refused("evaluate", *ASKED, "--out", "full")
    names(text, "cannot write full/", "No space left on device", "--resume")
    assert not list(Path("full").rglob("*.part"))
    assert holdfast("evaluate", *ASKED, "--out", "full", "--resume").exit_code == 0
    same_run("full", whole)


def test_what_is_of_one_process_is_refused_before_workers_begin() -> None:
    proof = ("certify", "demo", "digits", *LINF, "--export", "open")
    names(refused(*proof, "--workers", 2), "--export", "leave out --workers 2")
    names(refused(*proof, "--ray", "local"), "--export", "leave out --ray local")
    names(refused(*proof, "--shard", "0/2"), "--export", "leave out --shard 0/2")
    asked = ("certify", "demo", "--vnnlib", "property.vnnlib", "--workers", 2)
    names(refused(*asked), "--vnnlib", "leave out --workers 2")


def test_effort_that_cannot_be_spent_is_refused_before_any_pass() -> None:
    text = refused(
        "evaluate", "demo", "digits", "--threat", "linf(0.1)", "--attack", "apgd(targets=20)"
    )
    names(text, "20", "9")
    text = refused("evaluate", "demo", "digits", "--threat", "linf(0.1)", "--max-queries", 1)
    names(text, "1", "2")
    text = refused("evaluate", "demo", "digits", "--threat", "l0(3)", "--attack", "apgd")
    names(text, "apgd", "l0")
    text = refused("evaluate", "demo", "digits", "--threat", "linf(0.1)", "--protocol", "autoatack")
    names(text, "autoattack")
    text = refused("evaluate", "demo", "digits", "--threat", "l2(1)", "--attack", "ddn(restarts=3)")
    names(text, "ddn", "restart")


def test_a_folder_without_a_run_is_named_before_its_model_is_asked_for(tmp_path: Path) -> None:
    done = holdfast("verify", str(tmp_path / "none"))
    assert done.exit_code == 2
    assert "holds no run" in done.stderr


@pytest.mark.parametrize(
    "command", [("train",), ("train", "--poison", "flips()"), ("harden", "--threat", "linf(0.1)")]
)
def test_one_row_is_too_few_to_train_on(command: tuple[str, ...], tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 1, 8, 8), np.float32), y=np.array([0]))
    name, *options = command
    out = tmp_path / ("net.safetensors" if name == "train" else "run")
    done = holdfast(name, "demo", str(tmp_path / "one.npz"), *options, "--out", str(out))
    assert done.exit_code == 2
    names(done.stderr, "1 row, but some rows serve as")
    assert not out.exists()
