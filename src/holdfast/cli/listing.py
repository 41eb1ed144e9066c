"""holdfast list: what there is to choose from."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
from importlib import resources
from typing import Annotated, Any

import typer

from holdfast import spec
from holdfast.errors import SpecError, suggest


def listing(
    what: Annotated[
        str,
        typer.Argument(
            help="attacks, audits, protocols, recipes, objectives, regularizers, defences, poisons "
            "or data.",
            metavar="WHAT",
        ),
    ],
) -> int:
    """List attacks, objectives, regularizers, defences or poisons with their options, protocols,
    recipes, audits, or kinds of data."""
    if what == "attacks":  # from a page that `make docs` writes: they themselves would import torch
        page = resources.files("holdfast.cli").joinpath("attacks.txt").read_text("utf-8")
        typer.echo(page, nl=False)
        return 0
    if what not in SHOWN:
        raise SpecError(f"cannot list {what!r}; {suggest(what, ['attacks', *SHOWN])}")
    catalogue, described = SHOWN[what]
    for name, entry in pkgutil.resolve_name(catalogue).items():
        typer.echo(described(name, entry))
    return 0


def attacks() -> str:
    """What is known of every attack, as `list attacks` shows it."""
    from holdfast.attacks import CATALOGUE

    return "".join(f"{_attack(name, maker)}\n" for name, maker in CATALOGUE.items())


def _attack(name: str, maker: Any) -> str:
    example = maker()
    limits = [
        f"\n    {field.name}: {spec.limits(field)}"
        for field in dataclasses.fields(example)
        if field.metadata.get("choices")
    ]
    return (
        f"{name}  needs {example.needs.name.lower()}; {', '.join(sorted(example.norms))}\n"
        f"    {_summary(type(example))}\n    {spec.write(example, whole=True)}{''.join(limits)}"
    )


def _protocol(name: str, entry: Any) -> str:
    version, doc, lists = entry
    trials = [f"\n    {norm}: {'; '.join(trials)}" for norm, trials in lists.items()]
    return f"{name}  version {version}: {doc}{''.join(trials)}"


def _recipe(name: str, entry: Any) -> str:
    from holdfast.hardening.recipes import KINDS, parse
    from holdfast.training.recipe import Recipe

    version, doc, _ = entry
    recipe = parse(name, KINDS.get(name, Recipe))
    options = spec.write(recipe, whole=True).partition("(")[2]
    return f"{name}  version {version}: {doc}\n    ({options}"


def _part(name: str, maker: Any) -> str:
    """Of an objective: what the loss is made of."""
    example = maker()
    return (
        f"{name}  {example.passes} passes a row and step\n"
        f"    {_summary(type(example))}\n    {spec.write(example, whole=True)}"
    )


def _with_options(name: str, kind: Any) -> str:
    fields = dataclasses.fields(kind)
    default = {
        f.name: f"{f.name}={f.default}" for f in fields if f.default is not dataclasses.MISSING
    }
    called = f"{name}({', '.join(default.get(f.name, f.name) for f in fields)})"
    options = "".join(f"\n    {field.name}: {spec.expected(field)}" for field in fields)
    return f"{name}  {_summary(kind)}\n    {called}{options}"


def _summary(kind: type) -> str:
    """The first sentence or two of a class's docstring, on one line."""
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())


# of each catalogue: where it is, and what is said of one entry
SHOWN: dict[str, tuple[str, Any]] = {
    "protocols": ("holdfast.evaluation.protocols:PROTOCOLS", _protocol),
    "recipes": ("holdfast.hardening.recipes:RECIPES", _recipe),
    "objectives": ("holdfast.hardening.objectives:OBJECTIVES", _part),
    "regularizers": ("holdfast.hardening.regularizers:REGULARIZERS", _part),
    "defences": ("holdfast.targets.preprocess:GUARDS", _with_options),
    "poisons": ("holdfast.training.poison:POISONS", _with_options),
    "audits": ("holdfast.audit:AUDITS", lambda name, text: f"{name}  {text}"),
    "data": ("holdfast.data:KINDS", lambda _, text: text),
}
