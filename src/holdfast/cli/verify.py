"""holdfast verify: does a run's evidence hold?"""

from __future__ import annotations

from typing import Annotated

import typer

from holdfast.cli import options


def verify(
    run: options.Folder,
    model: options.Model,
    data: options.Data,
    arch: options.Arch = None,
    trust: options.Trust = False,
    perceptual: options.Perceptual = None,
    preprocess: Annotated[
        list[str],
        typer.Option("--preprocess", help="path/file.py:function, for each that the run was measured with."),
    ] = [],  # noqa: B006
    batch_size: options.BatchSize = 256,
    device: options.Device = "auto",
) -> int:
    """Judge the stored examples again with the model itself, and compute every figure anew."""
    from holdfast.data import open_data
    from holdfast.evaluate.verify import verify as check
    from holdfast.report.words import plain
    from holdfast.runs.store import read_limits, read_manifest
    from holdfast.targets.preprocess import given_again

    manifest, limits = read_manifest(run), read_limits(run)
    source = open_data(data, split=manifest.data.split, scale=manifest.model.bounds[1] <= 1)
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
    wrong = check(run, target, source, perceptual)
    for sentence in wrong:
        typer.echo(plain(sentence))
    if wrong:
        typer.echo(f"{run} does not hold: {len(wrong)} finding{'s' if len(wrong) > 1 else ''}.", err=True)
        return 1
    robust = manifest.metrics.robust_accuracy
    share = "undefined" if robust.value is None else f"{robust.value:.4f}"
    broken = manifest.metrics.counts["broken"]
    typer.echo(f"{run} holds: robust accuracy {share} on {robust.n:,} rows; {broken:,} stored examples judged again.")
    return 0
