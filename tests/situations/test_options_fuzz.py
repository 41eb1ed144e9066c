"""Whatever is typed after an option, a command ends with a sentence and never with a traceback."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from holdfast.cli.main import app

MODELS = """
import torch
from torch import nn

def net():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(3, 16))
        model[1].bias.zero_()
    return model
"""
DATA = ("models.py:net", "set.npz")
THREAT = ("--threat", "linf(0.1)")
QUICK = {
    "evaluate": (*DATA, *THREAT, "--attack", "fgsm", "--samples", "0:3", "--out", "made"),
    "attack": (*DATA, *THREAT, "--attack", "fgsm", "--samples", "0:3", "--out", "made.npz"),
    "verify": ("run", *DATA),
    "report": ("run",),
    "compare": ("run", "run"),
    "merge": ("run", "--out", "made"),
    "list": ("attacks",),
}
LONG = {
    "harden": (
        *DATA,
        *THREAT,
        "--recipe",
        "fast(epochs=1)",
        "--protocol",
        "quick",
        "--out",
        "made",
    ),
    "train": (*DATA, "--epochs", "1", "--out", "made.safetensors"),
    "generate train": ("set.npz", "--model", "gan(steps=2)", "--out", "made"),
}
SPECS = (
    "rotation(1e308, 3)",
    "pgd(restarts=1e20)",
    "pgd(steps=1, steps=2)",
    "apgd(rho=nan)",
    "fgsm(",
    "linf(0.1)(",
    "l2",
)
NUMBERS = (
    "-1",
    "0",
    "99",
    "9" * 23,
    "1e308",
    "nan",
    "inf",
    "-inf",
    "0.5",
    "1:",
    ":",
    "3:1",
    "0,nan",
    "1,0",
    "9" * 5000,
)
TEXTS = (
    "",
    " ",
    "x" * 300,
    "é∞",
    "a/b:c",
    "binary",
    "-",
    "--",
    "[",
    "{}",
    "%s",
    "cuda:99",
    "verdict==",
    "7",
)
HOSTILE = (*SPECS, *NUMBERS, *TEXTS)


@functools.cache
def options_of(name: str) -> tuple[str, ...]:
    """All options of a command that take a value."""
    command = typer.main.get_command(app)
    for part in name.split():
        command = command.commands[part]  # pyright: ignore[reportAttributeAccessIssue]
    return tuple(
        p.opts[0]
        for p in command.params
        if p.param_type_name == "option" and not getattr(p, "is_flag", False)
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data, a finished run and a file that is no text."""
    folder = tmp_path_factory.mktemp("options")
    (folder / "models.py").write_text(MODELS)
    (folder / "binary").write_bytes(bytes(range(256)))
    x = np.random.default_rng(0).random((24, 1, 4, 4), dtype=np.float32)
    np.savez(folder / "set.npz", x=x, y=x.reshape(24, 16)[:, :3].argmax(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        ended(*("evaluate", *QUICK["evaluate"][:-1], "run"))
    return folder


def ended(*words: str) -> None:
    """Run a command; it must end with a code that is documented, and say what was wrong in
    words."""
    result = CliRunner().invoke(app, [*words], prog_name="holdfast")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"{words}") from result.exception
    assert result.exit_code in (0, 1, 2, 3), (words, result.exit_code, result.output)
    assert "Traceback" not in result.output, words
    if result.exit_code == 2:
        assert result.output.strip(), words


def cases(commands: dict[str, tuple[str, ...]]) -> st.SearchStrategy[tuple[str, str, str]]:
    """A command, one of its options, and what is typed after it."""
    pairs = [(name, option) for name in commands for option in options_of(name)]
    # no shell passes a null byte
    made = st.text(st.characters(codec="utf-8", exclude_characters="\x00/"), max_size=20)
    values = st.one_of(
        st.sampled_from(HOSTILE), made, st.from_regex(r"\A[a-z0-9]{1,6}\([-a-z0-9=., ]{0,12}\)\Z")
    )
    return st.tuples(st.sampled_from(pairs), values).map(lambda case: (*case[0], case[1]))


def tried(place: Path, commands: dict[str, tuple[str, ...]], case: tuple[str, str, str]) -> None:
    name, option, value = case
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        ended(*name.split(), *commands[name], f"{option}={value}")
    for left in place.iterdir():
        if left.name not in ("models.py", "binary", "set.npz", "run", "__pycache__"):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def fuzz(many: int) -> Callable[..., None]:
    calm = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=many, suppress_health_check=calm, deadline=None)  # pyright: ignore


KNOWN = (
    ("evaluate", "--threat", "rotation(1e308, 3)"),
    ("evaluate", "--max-queries", "9" * 23),
    ("evaluate", "--out", "x" * 300),
    ("attack", "--out", "x" * 300 + ".npz"),
    ("evaluate", "--attack", "pgd(restarts=1e20)"),
    ("evaluate", "--attack", "pgd(steps=1, steps=2)"),
    ("attack", "--attack", "apgd(rho=nan)"),
    ("evaluate", "--attacked", "99"),
    ("evaluate", "--groups", "binary"),
)


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: f"{case[0]} {case[1]}")
def test_the_known_hostile_options(place: Path, case: tuple[str, str, str]) -> None:
    """Line 29: what was typed by an adversary once ended in a traceback."""
    tried(place, QUICK, case)


@fuzz(8)
@given(case=cases(QUICK))
def test_any_text_after_an_option(place: Path, case: tuple[str, str, str]) -> None:
    """Line 29: a few texts after a few options."""
    tried(place, QUICK, case)


@pytest.mark.slow
@fuzz(1000)
@given(case=cases(QUICK | LONG))
def test_any_text_after_every_option(place: Path, case: tuple[str, str, str]) -> None:
    """Line 29: a thousand."""
    tried(place, QUICK | LONG, case)
