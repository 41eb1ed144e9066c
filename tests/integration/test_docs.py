"""The generated pages and the examples say what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import holdfast

ROOT = Path(__file__).parents[2]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = load(ROOT / "docs" / "generate.py").PAGES


@pytest.mark.parametrize("name", list(PAGES))
def test_generated_pages_are_up_to_date(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), "run make docs"


def test_every_field_of_an_attack_is_explained() -> None:
    fields_of = load(ROOT / "docs" / "generate.py").fields_of
    kinds = {type(maker()) for maker in holdfast.attacks.CATALOGUE.values()}
    assert not [
        (kind.__name__, name) for kind in kinds for name, *_, text in fields_of(kind) if not text
    ]


def test_the_example_runs() -> None:
    own = load(ROOT / "examples" / "own_model.py")
    x, y = own.data()
    run = holdfast.evaluate(
        holdfast.wrap(own.model()), (x[:40], y[:40]), "linf(0.1)", protocol="quick"
    )
    assert run.robust_accuracy.value < run.clean_accuracy.value
