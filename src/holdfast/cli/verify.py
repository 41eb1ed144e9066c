"""holdfast verify: does a run's evidence hold?"""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.cli import options, texts
from holdfast.errors import InputError


def verify(
    run: options.Folder,
    model: options.Model,
    data: options.Data,
    arch: options.Arch = None,
    trust: options.Trust = False,
    classes: options.Classes = None,
    perceptual: options.Perceptual = None,
    groups: options.Groups = None,
    preprocess: Annotated[
        list[str],
        typer.Option(
            "--preprocess", help="path/file.py:function, for each that the run was measured with."
        ),
    ] = [],  # noqa: B006
    batch_size: options.BatchSize = 256,
    device: options.Device = "auto",
) -> int:
    """Judge the stored examples again with the model itself, compute every figure anew, and compare
    the report."""
    from holdfast.data import READERS, kind_of, open_data
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
    factory = kind_of(data) == "factory"
    loading = {n: text for n, text in manifest.data.loading.items() if n in READERS and not factory}
    if classes is not None:
        loading["classes"] = str(classes)
    scale = manifest.model.bounds[1] <= 1
    source = open_data(data, split=manifest.data.split, scale=scale, **loading)
    target = options.open_target(
        model,
        arch=arch,
        trust=trust,
        bounds=(limits["low"], limits["high"]) if manifest.model.box else manifest.model.bounds,
        preprocess=given_again(manifest.model.preprocess, preprocess),
        layout=manifest.model.layout,
        output=manifest.model.output,
        task=manifest.model.task,
        source=source,
        attacked=manifest.model.attacked or 0,
        eot=manifest.model.draws,
        batch_size=batch_size,
        device=device,
    )
    wrong = check(run, target, source, perceptual, texts.lines_of(groups, "--groups"))
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
