"""holdfast generate: train a generative model, and draw rows from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import options, texts, writing
from holdfast.errors import InputError

if TYPE_CHECKING:
    from holdfast.generation.model import Model
    from holdfast.generation.train import Round


def train(
    data: options.Data,
    out: Annotated[Path, typer.Option(help="The folder of the generator.")],
    model: Annotated[
        str | None,
        typer.Option(
            help='gan, wgan-gp or diffusion, or "gan(steps=2000)"; of your own networks: own.'
        ),
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(
            help="Your own: path/file.py:NAME of a function that builds it, of Keras or torch."
        ),
    ] = None,
    discriminator: Annotated[
        str | None, typer.Option(help="Your own, which goes with --generator.")
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(
            help="DATA to measure on; default: the test split of DATA, else a fifth of it."
        ),
    ] = None,
    bounds: options.BoundsText = None,
    layout: options.Layout = None,
    split: options.Split = "train",
    label: options.Label = None,
    classes: options.Classes = None,
    resize: options.Resize = None,
    crop: options.Crop = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished training in --out.")
    ] = False,
) -> int:
    """Train a generative model of labelled images or rows, and measure what it draws."""
    from holdfast.generation import generate
    from holdfast.report import generated

    texts.check_layout(layout)
    chosen = _model(model, generator, discriminator)
    loading = options.loading_of(label, classes, resize, crop)
    source = options.open_source(data, bounds, split, **loading)
    judged = options.open_further(test or data, bounds, "test", **loading)
    if test is None and judged.fingerprint() == source.fingerprint():  # no splits
        judged = None
    made = generate(
        source,
        chosen,
        out=out,
        test=judged,
        bounds=texts.bounds_of(bounds),
        layout=layout,
        resume=resume,
        seed=seed,
        device=texts.device_of(device),
        tell=tell,
    )
    q = made.quality
    typer.echo(
        f"FID {q.fid:.3g} (real rows {q.fid_real:.3g}), KID {q.kid:.3g} (real rows "
        f"{q.kid_real:.3g}), precision {q.precision:.1%}, recall {q.recall:.1%}."
    )
    typer.echo(
        f"Trained on samples: {q.trained:.1%} right on real rows (trained on real rows: "
        f"{q.trained_real:.1%})."
    )
    if made.generator.reader is not None:
        rare = [c for c, share in enumerate(q.right) if share < 1]
        typer.echo(
            (
                "The generator knows no classes: a sample's class is what the classifier in the "
                "folder takes it for"
            )
            + (f"; hardly any sample is taken for {', '.join(map(str, rare))}." if rare else ".")
        )
    typer.echo(f"generator: {out}\nreport: {generated.write(out)}", err=True)
    return 0


def sample(
    folder: Annotated[Path, typer.Argument(help="What `generate train` left.", metavar="DIR")],
    out: Annotated[
        Path,
        typer.Option(
            help="Where the rows go: an .npz with x and y, which is DATA to all commands."
        ),
    ],
    per_class: Annotated[int, typer.Option(min=1, max=10**7, help="Rows of each class.")] = 100,
    classifier: Annotated[
        str | None,
        typer.Option(help="A MODEL that must take a row for its class; default: the folder's own."),
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="With at least this probability, else another is drawn; 0.9."
        ),
    ] = None,
    arch: options.Arch = None,
    trust: options.Trust = False,
    bounds: options.BoundsText = None,
    preprocess: options.Steps = [],  # noqa: B006
    seed: options.Seed = 0,
    device: options.Device = "auto",
) -> int:
    """Draw rows of every class from a trained generator, and save them."""
    writing.check_new(out, ".npz", "rows are saved as .npz")
    import io

    import numpy as np

    from holdfast.generation.folder import load
    from holdfast.generation.sample import own_classifier, sample
    from holdfast.runs.store import write_bytes

    device = texts.device_of(device)
    generator = load(folder, device)
    target = None
    if classifier is not None:
        target = options.open_target(
            classifier,
            arch=arch,
            trust=trust,
            bounds=texts.bounds_of(bounds),
            preprocess=preprocess,
            layout=None,
            output=None,
            batch_size=256,
            device=device,
        )
    elif min_confidence is not None:
        target = own_classifier(folder, generator)
    x, y, tried = sample(
        generator, per_class, target=target, confidence=min_confidence or 0.0, seed=seed
    )
    buffer = io.BytesIO()
    np.savez(buffer, x=x, y=y)
    write_bytes(out, buffer.getvalue())
    typer.echo(f"{len(y):,} rows of {generator.k} classes, of {tried:,} drawn: {out}")
    return 0


def _model(model: str | None, generator: str | None, discriminator: str | None) -> Model:
    """The model that the options name, with the user's own networks in it."""
    from holdfast.generation.folder import parse
    from holdfast.generation.own import absolute

    if generator is None and discriminator is None:
        return parse(model or "gan")
    name, _, fields = (model or "own").strip().removesuffix(")").partition("(")
    if name != "own":
        raise InputError(
            f'--generator and --discriminator go with --model "own(...)", not with --model {model}.'
        )
    nets = {"generator": generator, "discriminator": discriminator}
    given = [f"{field}={absolute(spec)!r}" for field, spec in nets.items() if spec is not None]
    return parse(f"own({', '.join([*filter(None, [fields]), *given])})")


def tell(line: Round) -> None:
    """A round, on stderr."""
    typer.echo(
        f"round {line.round}, step {line.step}: FID {line.fid:.3g}, KID {line.kid:.3g}, "
        f"taken for the class asked for: {line.right:.1%}",
        err=True,
    )
    if line.note:
        typer.echo(f"  {line.note}", err=True)
