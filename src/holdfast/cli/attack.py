"""holdfast attack: craft adversarial examples with one attack, and save them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli import options
from holdfast.errors import InputError


def attack(
    model: options.Model,
    data: options.Data,
    threat: options.ThreatText,
    attack: Annotated[str, typer.Option("--attack", help='The attack: "apgd(steps=50)" (list attacks).')] = "pgd",
    out: Annotated[Path, typer.Option(help="Where the examples go: an .npz with x, y, id and broken.")] = Path(
        "adversarial.npz"
    ),
    arch: options.Arch = None,
    trust: options.Trust = False,
    bounds: options.BoundsText = None,
    limits: options.Limits = None,
    preprocess: options.Steps = [],  # noqa: B006
    layout: options.Layout = None,
    output: options.Output = None,
    task: options.Task = None,
    attacked: options.Attacked = 0,
    eot: options.Eot = None,
    surrogate: options.Lender = None,
    split: options.Split = "test",
    label: options.Label = None,
    classes: options.Classes = None,
    resize: options.Resize = None,
    crop: options.Crop = None,
    samples: options.Samples = None,
    batch_size: options.BatchSize = 256,
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> int:
    """Craft examples for every row: the broken point where one was found, else the last one tried."""
    if out.exists():
        raise InputError(f"{out} exists; choose another --out.")
    if out.suffix != ".npz":
        raise InputError(f"--out is {out}; examples are saved as .npz.")
    import io

    import numpy as np

    from holdfast.evaluate.craft import craft
    from holdfast.runs.store import write_bytes

    limited = options.limits_of(limits)
    loading = options.loading_of(label, classes, resize, crop)
    source = options.open_source(data, bounds, split, limited, **loading)
    target = options.open_target(
        model,
        arch=arch,
        trust=trust,
        bounds=options.box_of(bounds, limited),
        preprocess=preprocess,
        layout=layout,
        output=output,
        task=task,
        source=source,
        attacked=attacked,
        eot=eot,
        surrogate=surrogate,
        batch_size=batch_size,
        device=device,
    )
    made = craft(
        target, source, options.threat_of(threat, limited), attack, samples=options.rows_of(samples), seed=seed
    )
    buffer = io.BytesIO()
    np.savez(buffer, **made)  # pyright: ignore[reportArgumentType]
    write_bytes(out, buffer.getvalue())
    n, wrong, broken = len(made["y"]), int(made["wrong"].sum()), int(made["broken"].sum())
    typer.echo(f"{attack} under {threat}: broke {broken:,} of {n - wrong:,} rows ({wrong:,} more were wrong clean).")
    typer.echo(f"examples: {out}")
    return 0
