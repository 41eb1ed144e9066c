"""A wrong argument of any public function is refused in one plain sentence that names it."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import holdfast as hf

X = np.random.default_rng(0).random((20, 4), dtype=np.float32)
HUGE = X * np.float64(1e300)
Y = X[:, :2].argmax(1)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


# Of each function, arguments that are right but for cost: what is wrong is refused before they run.
RIGHT: dict[str, dict[str, Any]] = {
    "attack": {"model": net(), "x": X, "y": Y, "threat": "linf(0.1)", "attack": "fgsm"},
    "evaluate": {"model": net(), "data": (X, Y), "threat": "linf(0.1)", "attacks": ["fgsm"]},
    "certify": {"model": net(), "data": (X, Y), "threat": "linf(0.1)"},
    "harden": {"model": net(), "data": (X, Y), "threat": "linf(0.1)"},
    "train": {"model": net(), "data": (X, Y), "epochs": 1},
    "generate": {"data": (X, Y), "model": "gan(steps=1, rounds=1)"},
    "verify": {"run": "no such folder", "model": net(), "data": (X, Y)},
    "compare": {"first": "no such folder", "second": "no such folder"},
    "report": {"run": "no such folder"},
    "merge": {"shards": ["no such folder"], "out": "merged"},
    "wrap": {"model": net()},
    "load": {"spec": "no such file.onnx"},
    "as_source": {"data": (X, Y)},
}
ODD: list[Any] = [
    None, True, 0, -1, 3, 10**30, 0.5, math.nan, math.inf, "", "x", "linf(", "\x1b[2J", b"x", (),
    [], [1], ["x"], [None], (1, 2), (1, "x"), {}, {"x": 1}, {1}, object(), print, int,
    nn.Linear(2, 2),
    np.zeros(0), np.zeros((2, 2)), np.array(["x"]), np.array([None]), X, X[:1], torch.zeros(3),
    torch.zeros(()), 1j, Path("no such file"), range(3), iter([1]), hf.Threat.linf(0.1),
]  # fmt: skip
DEAR = ("harden", "train", "generate")


def test_every_public_function_is_tried() -> None:
    functions = {name for name in hf.__all__ if inspect.isfunction(getattr(hf, name))}
    assert functions == RIGHT.keys()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "function",
    [pytest.param(name, marks=pytest.mark.slow if name in DEAR else ()) for name in RIGHT],
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_an_odd_argument_is_taken_or_refused_in_a_sentence(
    function: str, data: st.DataObject
) -> None:
    known = inspect.signature(getattr(hf, function)).parameters.keys() - {"options", "compile"}
    name, odd = data.draw(st.sampled_from(sorted(known))), data.draw(st.sampled_from(ODD))
    try:
        getattr(hf, function)(**RIGHT[function] | {name: odd})
    except hf.HoldfastError as error:
        said = str(error)
        assert "\n" not in said
        assert said.endswith((".", "?"))
        assert len(said) < 600


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: hf.evaluate(net(), (X, Y), "linf(0.1)", seed="x"),
         "seed is 'x' (str), but evaluate takes a whole number."),
        (lambda: hf.evaluate(net(), (X, Y), "linf(0.1)", samples=(1, "x")),
         "samples is (1, 'x') (tuple), but evaluate takes a whole number, two whole numbers or "
         "None."),
        (lambda: hf.attack(net(), X, Y, "linf(0.1)", epsilons=0.3),
         "epsilons is 0.3 (float), but attack takes a list of numbers or None."),
        (lambda: hf.attack(net(), None, Y, "linf(0.1)"), "x of arrays is None; expected an array."),
        (lambda: hf.attack(net(), X, None, "linf(0.1)"), "y of arrays is None; expected an array."),
        (lambda: hf.attack(net(), X.astype(complex), Y, "linf(0.1)"),
         "x of arrays holds complex128; expected numbers, and real ones."),
        (lambda: hf.evaluate(net(), (X[:9], Y[:5]), "linf(0.1)"),
         "x and y of arrays are 9 inputs and 5 labels; expected as many: one of them is probably "
         "cut short or belongs to another set."),
        (lambda: hf.evaluate(net(), (HUGE, Y), "linf(0.1)"),
         f"inputs span [{HUGE.min():.4g}, {HUGE.max():.4g}] but the bounds are "
         "[0, 1]. float32 does not hold such numbers: repair these rows, or give other units."),
        (lambda: hf.wrap(net(), bounds=(-1e301, 1e301)),
         "bounds are [-1e+301, 1e+301], but they are two finite numbers, the lower one first, "
         "within the range of float32."),
        *((call, f"{'x' * 60}... is too long for the name of a file or folder.") for call in (
            lambda: hf.report("x" * 300),
            lambda: hf.compare("x" * 300, "y"),
            lambda: hf.verify("x" * 300, net(), (X, Y)),
            lambda: hf.merge(["a"], "x" * 300),
            lambda: hf.evaluate(net(), (X, Y), "linf(0.1)", attacks=["fgsm"], out="x" * 300),
        )),
        (lambda: hf.train(net(), (X, Y), on_epoch=3),
         "on_epoch is 3 (int), but train takes a function or None."),
        (lambda: hf.certify(net(), (X, Y), "linf(0.1)", radius="x"),
         "radius is 'x' (str), but certify takes True or False."),
        (lambda: hf.attack(net(), X, Y, "linf(0.1)", seed=2**64),
         "seed is 18446744073709551616 (int), but attack takes a whole number."),
        (lambda: hf.attack(net(), X, Y, "linf(0.1)", epsilons={0.3}),
         "epsilons is {0.3} (set), but attack takes a list of numbers or None."),
        (lambda: hf.attack(net(), X, Y, "linf(0.1)", epsilons=[]),
         "epsilons is empty; give at least one size, or leave it out."),
        (lambda: hf.evaluate(net(), (X, Y), "linf(0.1)", epsilons=np.array([])),
         "epsilons is empty; give at least one size, or leave it out."),
        (lambda: hf.attack(net(), X, Y, "linf(0.1)", epsilons=[10**400]),
         f"epsilons is [1{'0' * 35}... (list), but attack takes a list of numbers or None."),
        (lambda: hf.wrap(net(), layout=2), "layout is 2 (int), but wrap takes a text or None."),
        (lambda: hf.attack(net(), X, Y, "linf(0.1)", hf.attacks.PGD),
         "attack is the class PGD, but attack takes a text, an Attack, an AutoAttack, a Trial or "
         "None."),
        (lambda: hf.wrap(net(), layout=list(range(20))),
         "layout is [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11... (list), but wrap takes a text or "
         "None."),
        (lambda: hf.merge(3, "out"),
         "shards is 3 (int), but merge takes a path, a text or a list, each a Run, a path or a "
         "text."),
    ],
)  # fmt: skip
def test_the_sentence_names_what_was_given_and_what_is_taken(call: Any, said: str) -> None:
    with pytest.raises(hf.InputError) as caught:
        call()
    assert str(caught.value) == said


def test_a_threat_without_its_size_is_a_sentence_without_types() -> None:
    with pytest.raises(hf.SpecError) as caught:
        hf.evaluate(net(), (X, Y), "linf")
    assert str(caught.value) == (
        "cannot make 'linf': missing a required argument: 'eps'; it is linf(eps, target=None, "
        "grid='', group='')."
    )


def test_numbers_of_numpy_and_arrays_of_numbers_are_taken() -> None:
    asked = hf.attack(
        net(), X, Y, "linf(1)", "fgsm", epsilons=np.linspace(0.1, 0.2, 2), seed=np.int64(2)
    )
    assert len(asked) == len(hf.attack(net(), X, Y, "linf(1)", epsilons=torch.tensor([0.1, 0.2])))
