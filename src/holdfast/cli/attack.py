"""holdfast attack: craft adversarial examples with one attack, and save them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import options, properties, texts, writing
from holdfast.errors import InputError

if TYPE_CHECKING:
    from holdfast.attacks.result import AttackResult


def attack(
    model: options.Model,
    data: options.DataOrNone = None,
    *,
    adversary: options.ThreatOptions,
    threat: options.ThreatOrNone = None,
    vnnlib: properties.Vnnlib = None,
    access: options.AccessOptions,
    how: options.ModelOptions,
    rows: options.DataOptions,
    attack: Annotated[
        str | None,
        typer.Option(
            help='The attack: "apgd(steps=50)" (list attacks); default: pgd, or what the model '
            "allows.",
            metavar="ATTACK",
        ),
    ] = None,
    samples: options.Samples = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the examples go: an .npz with x, y, id, broken, wrong and size; default "
            "adversarial.npz. With --vnnlib a .txt; default next to the property.",
            metavar="FILE",
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            help="A new folder for the examples as PNG images, each read back and checked again.",
            metavar="FOLDER",
        ),
    ] = None,
    seed: options.Seed = 0,
) -> int:
    """Craft examples for every row: the broken point where one was found, else the last one
    tried. Or seek a counterexample of a property of VNN-LIB."""
    if vnnlib is not None:
        others = {"data": data, "samples": samples, "png": png}
        properties.answer(
            model,
            vnnlib,
            how,
            {**adversary, **access, **rows, **others},
            out=out,
            seconds=None,
            prove=False,
            attack=attack,
            seed=seed,
        )
        return 0
    properties.check_asked(data, threat)
    assert data is not None
    out = out or Path("adversarial.npz")
    writing.check_new(out, ".npz", "examples are saved as .npz")
    if png is not None and texts.exists(png):
        raise InputError(f"--png {png} exists; choose a new folder.")
    from holdfast.evaluation.attack import craft

    target, source = options.open_attacked(model, data, how, rows, **access)
    asked = options.open_threat(**adversary)
    made = craft(target, source, asked, attack, samples=texts.rows_of(samples), seed=seed)
    if png is not None and made.as_8bit is None:
        raise InputError(
            "--png saves images of one or three channels whose values the attack changes, not "
            f"inputs of shape {source.shape} under {adversary['threat']}."
        )
    columns = {"x": made.x_adv, "y": made.y, "id": made.id, "wrong": made.wrong}
    writing.write_npz(out, **columns, broken=made.success, size=made.size)
    typer.echo(f"{made.summary()}.")
    if made.survives_8bit is not None:
        kept, of = int(made.survives_8bit.sum()), int(made.success.sum())
        typer.echo(
            f"rounded to 8 bits, as in an image file, {kept:,} of these {of:,} are still successes."
        )
    typer.echo(f"examples: {out}")
    if png is not None:
        saved = _save_images(png, made)
        where = f"{saved:,} in {png}, a folder for each true class; read back, each is a success"
        typer.echo(f"images: {where if saved else 'none, since no success is left in 8 bits'}.")
    return 0


def _save_images(folder: Path, made: AttackResult) -> int:
    """Write what is a success in 8 bits as PNG, in a folder for each class, and read it back; how
    many are kept."""
    import io

    import numpy as np
    from PIL import Image

    from holdfast.runs.store import write_bytes

    low, width = made.bounds[0], made.bounds[1] - made.bounds[0]
    kept = 0
    for i in np.flatnonzero(made.survives_8bit):
        image = made.as_8bit[i]
        if image.ndim == 3 and made.layout == "nchw":
            image = np.moveaxis(image, 0, -1)
        pixels = np.rint((image - low) / width * 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(
            pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
        ).save(file, "PNG")
        read = np.asarray(Image.open(file)).reshape(pixels.shape)
        if np.array_equal(
            read.astype(np.float32) / 255 * np.float32(width) + np.float32(low), image
        ):  # what was judged
            write_bytes(folder / str(made.y[i]) / f"{made.id[i]:06d}.png", file.getvalue())
            kept += 1
    return kept
