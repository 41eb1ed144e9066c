"""holdfast verify: does a run's evidence hold?"""

from __future__ import annotations

from typing import Any

import typer

from holdfast.cli import options, texts
from holdfast.errors import InputError


def verify(
    run: options.Folder,
    model: options.Model,
    data: options.Data,
    *,
    how: options.ModelOptions,
    rows: options.DataOptions,
    perceptual: options.Perceptual = None,
    groups: options.Groups = None,
) -> int:
    """Judge the stored examples again with the model itself, compute every figure anew, and compare
    the report. What no option says of model and data is as the run says it."""
    from holdfast.evaluation.verify import verify as check
    from holdfast.report import html
    from holdfast.report.words import plain
    from holdfast.runs.store import open_manifest, read_limits
    from holdfast.targets.preprocess import given_again

    (manifest, _), limits = open_manifest(run), read_limits(run)
    if manifest.model.box and not limits.keys() >= {"low", "high"}:
        raise InputError(
            f"{run} says that each feature has bounds of its own, but limits.safetensors has none."
        )
    said = manifest.model
    usual = (limits["low"], limits["high"]) if said.box else said.bounds
    box = options.box_of(how["bounds"], how["limits"], usual)
    rows = options.suiting(data, manifest.data.loading) | _given(rows)
    source = options.open_source(data, manifest.data.split, box, **rows)
    how["preprocess"] = given_again(said.preprocess, how["preprocess"] or ())
    as_then = {"layout": said.layout, "output": said.output, "task": said.task}
    as_then |= {"attacked": said.attacked, "eot": said.draws}
    target = options.open_target(model, source, box, **as_then | _given(how))
    wrong = check(run, target, source, perceptual, texts.lines_of(groups, "--groups"))
    if how["probabilities"] not in (None, said.probabilities):
        gave = "probabilities" if said.probabilities else "logits"
        wrong.append(f"model: the run took it to give {gave}, which is not what an option says.")
    try:
        wrong += html.differs(run)
    except InputError as error:
        wrong.append(f"report.html: {error}")
    for sentence in wrong:
        typer.echo(plain(sentence))
    if wrong:
        typer.echo(
            f"{run} does not hold: {len(wrong)} finding{'s' if len(wrong) > 1 else ''}.", err=True
        )
        return 1
    robust = manifest.metrics.robust_accuracy
    share = "undefined" if robust.value is None else f"{robust.value:.4f}"
    broken = manifest.metrics.counts["broken"]
    typer.echo(
        f"{run} holds: robust accuracy {share} on {robust.n:,} rows; {broken:,} stored examples "
        "judged again."
    )
    return 0


def _given(said: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in said.items() if value is not None}
