"""`--vnnlib FILE`: a property of a model's outputs over a box, in place of data and a threat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options, texts, writing
from holdfast.errors import InputError, SpecError

if TYPE_CHECKING:
    from holdfast.data import Source
    from holdfast.runs.run import Run
    from holdfast.targets.target import Target
    from holdfast.threats.threat import Threat

Vnnlib = Annotated[
    Path | None,
    options.about_run(
        help="Instead of DATA and --threat: a property of VNN-LIB 1.0. certify says in a sentence "
        "whether it is unsat (proved, exit 0), sat (with a counterexample, in --out; exit 1) or "
        "unknown (exit 1); attack seeks a counterexample alone.",
        metavar="FILE",
    ),
]
Export = Annotated[
    Path | None,
    options.about_run(
        help="A new folder for other verifiers: model.onnx, and row-ID.vnnlib (VNN-LIB 1.0) of "
        "each row that is right and not proved.",
        metavar="FOLDER",
    ),
]
# what says how the model is opened, and what has a value without being given
_TAKEN = {"arch", "trust", "output", "device"}


def check_asked(data: str | None, threat: str | None) -> None:
    """Raises SpecError: there is nothing to measure."""
    if data is None:
        raise SpecError("there is no DATA; give it after MODEL, or a property with --vnnlib.")
    if threat is None:
        raise SpecError('there is no --threat; give one such as "linf(8/255)".')


def check_export(folder: Path | None, shard: str | None) -> None:
    """Raises InputError: there is such a folder already, or the run is one of its parts."""
    if folder is not None and shard is not None:
        raise InputError(f"--export is of a whole run; leave out --shard {shard}.")
    if folder is not None and texts.exists(folder):
        raise InputError(f"--export {folder} exists; choose a new folder.")


def write_open(
    folder: Path, run: Run, target: Target, source: Source, threat: Threat | str
) -> None:
    """Write what other verifiers may prove, and say on stderr how much that is."""
    from holdfast.certification.exchange import MODEL, export

    found = export(folder, run, target, source, threat)
    typer.echo(f"export: {MODEL} and {len(found):,} properties in {folder}", err=True)


def answer(
    model: str,
    file: Path,
    how: Mapping[str, Any],
    others: Mapping[str, Any],
    *,
    out: Path | str | None,
    seconds: float | None,
    prove: bool,
    attack: str | None = None,
    seed: int = 0,
    as_json: bool = False,
) -> int:
    """Decide a property, say what was found and save the counterexample; the exit code of
    `certify`.

    Args:
        how, others: options as they were given; all but `_TAKEN` say nothing here.
        out: where the counterexample goes; None: next to the property.
    """
    given = {**how, **others}
    odd = [name for name, value in given.items() if value not in (None, False, [], ())]
    if odd := [name for name in odd if name not in _TAKEN]:
        flag = odd[0].upper() if odd[0] == "data" else f"--{odd[0].replace('_', '-')}"
        raise SpecError(
            f"{flag} says nothing with --vnnlib, whose file says the inputs and the outputs of the "
            "model itself; leave it out."
        )
    place = out or file.with_name(f"{file.name.partition('.vnnlib')[0]}.counterexample.txt")
    if not isinstance(place, Path):
        raise InputError(f"--out is {place}; a counterexample is saved in a file of this machine.")
    if out is not None:
        writing.check_new(place, ".txt", "a counterexample is saved as .txt")
    from holdfast.certification import properties, vnnlib
    from holdfast.runs.store import write_bytes
    from holdfast.targets import loading

    asked = vnnlib.load(file)
    opened = loading.load(model, arch=how["arch"], trust=how["trust"], output=how["output"])
    limit = properties.SECONDS if seconds is None else seconds
    found = properties.decide(opened, asked, seconds=limit, prove=prove, attack=attack, seed=seed)
    saved = None
    if found.x is not None and found.y is not None:
        saved = str(place)
        text = vnnlib.counterexample(found.x.flatten().astype(float), found.y.astype(float))
        write_bytes(place, text.encode())
    if as_json:
        said = {"property": str(file), "answer": found.answer, "method": found.method}
        typer.echo(json.dumps(said | {"seconds": found.seconds, "counterexample": saved}))
    else:
        typer.echo(sentence(str(file), found.answer, found.method, found.seconds, saved))
    return int(found.answer != properties.UNSAT)


def sentence(file: str, answer: str, method: str, seconds: float, saved: str | None) -> str:
    """What was found of a property."""
    if answer == "unsat":
        return (
            f"unsat: no input that {file} allows has an unsafe output, as {method} proves "
            f"({seconds:.1f} s)."
        )
    if answer == "sat":
        return (
            f"sat: an input that {file} allows has an unsafe output; it was found by {method}, the "
            f"model itself confirms it, and it is in {saved} ({seconds:.1f} s)."
        )
    return (
        f"unknown: of {file} there is neither a proof nor a counterexample; tried: "
        f"{method or 'nothing, for want of time'} ({seconds:.1f} s)."
    )
