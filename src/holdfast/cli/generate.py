"""holdfast generate: train a generative model, and draw rows from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import options, texts, writing
from holdfast.errors import InputError

if TYPE_CHECKING:
    from holdfast.generation.model import Model


def train(
    data: options.Data,
    *,
    rows: options.DataOptions,
    out: Annotated[Path, typer.Option(help="The folder of the generator.", metavar="FOLDER")],
    model: Annotated[
        str | None,
        typer.Option(
            help='gan, wgan-gp or diffusion, or "gan(steps=2000)"; of your own networks: own.',
            metavar="NAME",
        ),
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(
            help="Your own: path/file.py:NAME of a function that builds it, of Keras or torch.",
            metavar="FACTORY",
        ),
    ] = None,
    discriminator: Annotated[
        str | None, typer.Option(help="Your own, which goes with --generator.", metavar="FACTORY")
    ] = None,
    test: options.Test = None,
    layout: options.Layout = None,
    device: options.Device = "auto",
    resume: options.Resume = False,
    seed: options.Seed = 0,
) -> int:
    """Train a generative model of labelled images or rows, and measure what it draws."""
    from holdfast.generation import generate
    from holdfast.reporting import generated

    texts.check_layout(layout)
    chosen = _model(model, generator, discriminator)
    box = options.box_of(rows["bounds"], rows["limits"])
    if rows["limits"] is not None or rows["schema"] is not None:
        raise InputError(
            "a generator draws within one range for all features, so --limits says nothing that it "
            "can keep to; give --bounds."
        )
    source, judged = options.open_to_train(data, test, rows)
    made = generate(
        source,
        chosen,
        out=out,
        test=judged,
        bounds=(box.low, box.high),
        layout=layout,
        resume=resume,
        seed=seed,
        device=texts.device_of(device),
        on_round=lambda line: writing.echo_line(
            f"round {line.round}, step {line.step}: FID {line.fid:.3g}, KID {line.kid:.3g}, "
            f"taken for the class asked for: {line.right:.1%}",
            line.note,
        ),
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
    *,
    how: options.ModelOptions,
    out: Annotated[
        Path,
        typer.Option(
            help="Where the rows go: an .npz with x and y, which is DATA to all commands.",
            metavar="FILE",
        ),
    ],
    per_class: Annotated[
        int, typer.Option(min=1, max=10**7, help="Rows of each class.", metavar="N")
    ] = 100,
    classifier: Annotated[
        str | None,
        typer.Option(
            help="A MODEL that must take a row for its class; default: the folder's own.",
            metavar="MODEL",
        ),
    ] = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="The classifier's least probability for a row; else another is drawn; 0.9.",
            metavar="SHARE",
        ),
    ] = None,
    seed: options.Seed = 0,
) -> int:
    """Draw rows of every class from a trained generator, and save them."""
    writing.check_new(out, ".npz", "rows are saved as .npz")
    from holdfast.generation.folder import load
    from holdfast.generation.sample import own_classifier, sample

    generator = load(folder, texts.device_of(how["device"]))
    target = None
    if classifier is not None:
        target = options.open_target(classifier, **how)
    elif min_confidence is not None:
        target = own_classifier(folder, generator)
    x, y, tried = sample(
        generator, per_class, target=target, confidence=min_confidence or 0.0, seed=seed
    )
    writing.write_npz(out, x=x, y=y)
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
