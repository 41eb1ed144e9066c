"""holdfast list: what there is to choose from."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.errors import SpecError, suggest

if TYPE_CHECKING:
    from holdfast.hardening.regularizers import Regularizer
    from holdfast.training.objective import Objective


def listing(
    what: Annotated[
        str,
        typer.Argument(
            help="attacks, protocols, recipes, objectives, regularizers, defences or data.",
            metavar="WHAT",
        ),
    ],
) -> int:
    """List attacks, objectives, regularizers or defences with their options, protocols, recipes, or
    kinds of data."""
    shown = {
        "attacks": _attacks,
        "protocols": _protocols,
        "recipes": _recipes,
        "objectives": _objectives,
        "regularizers": _regularizers,
        "defences": _defences,
        "data": _data,
    }
    if what not in shown:
        raise SpecError(f"cannot list {what!r}; {suggest(what, shown)}")
    shown[what]()
    return 0


def _attacks() -> None:
    """From a page that `make docs` writes and a test keeps true: the attacks themselves would first
    import torch."""
    typer.echo(resources.files("holdfast.cli").joinpath("attacks.txt").read_text("utf-8"), nl=False)


def attacks() -> str:
    """What is known of every attack, as `list attacks` shows it."""
    from holdfast import spec
    from holdfast.attacks import CATALOGUE

    lines: list[str] = []
    for name, maker in CATALOGUE.items():
        example = maker()
        lines += [
            f"{name}  needs {example.needs.name.lower()}; {', '.join(sorted(example.norms))}",
            f"    {_summary(type(example))}",
            f"    {spec.write(example, whole=True)}",
        ]
        lines += [
            f"    {field.name}: {spec.limits(field)}"
            for field in dataclasses.fields(example)
            if field.metadata.get("choices")
        ]
    return "\n".join(lines) + "\n"


def _protocols() -> None:
    from holdfast.evaluation.protocols import PROTOCOLS

    for name, (version, doc, lists) in PROTOCOLS.items():
        typer.echo(f"{name}  version {version}: {doc}")
        for norm, trials in lists.items():
            typer.echo(f"    {norm}: {'; '.join(trials)}")


def _recipes() -> None:
    from holdfast import spec
    from holdfast.hardening.recipes import RECIPES, parse

    for name, (version, doc, _) in RECIPES.items():
        typer.echo(f"{name}  version {version}: {doc}")
        typer.echo(f"    {spec.write(parse(name), whole=True).removeprefix('recipe')}")


def _objectives() -> None:
    from holdfast.hardening.objectives import OBJECTIVES

    _parts(OBJECTIVES)


def _regularizers() -> None:
    from holdfast.hardening.regularizers import REGULARIZERS

    _parts(REGULARIZERS)


def _parts(catalogue: Mapping[str, Callable[[], Objective | Regularizer]]) -> None:
    from holdfast import spec

    for name, maker in catalogue.items():
        example = maker()
        typer.echo(f"{name}  {example.passes} passes a row and step")
        typer.echo(f"    {_summary(type(example))}")
        typer.echo(f"    {spec.write(example, whole=True)}")


def _defences() -> None:
    from holdfast import spec
    from holdfast.targets.preprocess import GUARDS

    for name, kind in GUARDS.items():
        fields = dataclasses.fields(kind)
        usual = {
            f.name: f"{f.name}={f.default}" for f in fields if f.default is not dataclasses.MISSING
        }
        typer.echo(f"{name}  {_summary(kind)}")
        typer.echo(f"    {name}({', '.join(usual.get(f.name, f.name) for f in fields)})")
        for field in fields:
            typer.echo(f"    {field.name}: {spec.wanted(field)}")


def _summary(kind: type) -> str:
    """The first sentence or two of a class's docstring, on one line."""
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


def _data() -> None:
    from holdfast.data import KINDS

    for text in KINDS.values():
        typer.echo(text)
