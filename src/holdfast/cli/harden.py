"""holdfast harden: from a fragile network to a robust one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import options, texts, writing
from holdfast.errors import InputError, SpecError

if TYPE_CHECKING:
    from holdfast.hardening.harden import Hardened
    from holdfast.runs.run import Run
    from holdfast.training.state import Epoch


def harden(
    model: options.Model,
    data: options.Data,
    threat: options.ThreatText,
    recipe: Annotated[
        str,
        typer.Option(
            help='fast, standard, strong or finetune (list recipes), or "standard(rate=0.05)".'
        ),
    ] = "standard",
    objective: Annotated[
        str | None,
        typer.Option(help='Instead of the recipe\'s: "trades(beta=6)" (list objectives).'),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Instead of the recipe's.")
    ] = None,
    min_clean: Annotated[
        float,
        typer.Option(min=0, max=1, help="Exit 1 unless clean accuracy stays at least this; 0.96."),
    ] = 0.0,
    min_recall: Annotated[
        float, typer.Option(min=0, max=1, help="The same for the clean recall of every class; 0.5.")
    ] = 0.0,
    class_weights: options.ClassWeights = None,
    test: Annotated[
        str | None,
        typer.Option(
            help="DATA to measure on; default: the test split of DATA, else a fifth of it."
        ),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="Of the measurements before and after.")
    ] = "standard",
    synthetic: Annotated[
        str | None,
        typer.Option(help="Generated DATA to train on beside: what `generate sample` saved."),
    ] = None,
    synthetic_share: Annotated[float, typer.Option(help="Of the rows of each step.")] = 0.7,
    arch: options.Arch = None,
    trust: options.Trust = False,
    bounds: options.BoundsText = None,
    preprocess: options.Steps = [],  # noqa: B006
    layout: options.Layout = None,
    output: options.Output = None,
    probabilities: options.Probabilities = None,
    split: options.Split = "train",
    train_samples: Annotated[
        str | None,
        typer.Option(help="How many rows to train on, or a range start:stop; default all."),
    ] = None,
    test_samples: Annotated[
        str | None,
        typer.Option(help="How many rows to measure on, or a range start:stop; default all."),
    ] = None,
    samples: Annotated[str | None, typer.Option("--samples", hidden=True)] = None,
    label: options.Label = None,
    classes: options.Classes = None,
    resize: options.Resize = None,
    crop: options.Crop = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    devices: options.Devices = 1,
    precision: options.Precision = "float32",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write event files beside log.csv.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The folder; default: a new one under runs/.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished hardening in --out.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print the comparison alone on stdout, as JSON.")
    ] = False,
) -> int:
    """Train a torch or Keras network to withstand a threat, and compare it with what it was."""
    if resume and out is None:
        raise InputError("--resume needs the folder to go on with: give --out.")
    if samples is not None:
        raise SpecError(
            f"--samples {samples} does not say which rows are meant: give --train-samples "
            f"{samples} for the rows to "
            f"train on, or --test-samples {samples} for those to measure on."
        )
    from rich.console import Console

    from holdfast.evaluation.facts import Names
    from holdfast.hardening.harden import harden as make_robust
    from holdfast.report import paired

    target = options.open_target(
        model,
        arch=arch,
        trust=trust,
        bounds=texts.bounds_of(bounds),
        preprocess=preprocess,
        layout=layout,
        output=output,
        probabilities=probabilities,
        batch_size=256,
        device=device,
    )
    loading = options.loading_of(label, classes, resize, crop)
    source = options.open_source(data, bounds, split, **loading)
    judged = options.open_further(test or data, bounds, "test", **loading)
    if test is None and judged.fingerprint() == source.fingerprint():  # no splits
        judged = None
    folder = out or writing.fresh_folder(model, f"{threat}-{recipe.partition('(')[0]}-hardened")
    try:
        with writing.progress_bar() as watch:
            made = make_robust(
                target,
                source,
                threat,
                recipe=recipe,
                objective=objective,
                epochs=epochs,
                class_weights=class_weights,
                test=judged,
                out=folder,
                resume=resume,
                protocol=protocol,
                train_samples=texts.rows_of(train_samples, "--train-samples"),
                test_samples=texts.rows_of(test_samples, "--test-samples"),
                min_clean=min_clean,
                min_recall=min_recall,
                seed=seed,
                watch=watch,
                tell=tell,
                names=Names(model, arch, "test", writing.command_line()),
                synthetic=None
                if synthetic is None
                else options.open_further(synthetic, bounds, "train", **loading),
                synthetic_share=synthetic_share,
                devices=devices,
                precision=precision,
                tensorboard=tensorboard,
            )
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted; go on with the same command and --out {folder} --resume.", err=True
        )
        return 130
    if json:
        typer.echo(made.comparison.model_dump_json(indent=1))
    else:
        Console().print(paired.summary(made.comparison))
    what = "model" if made.file.suffix == ".keras" else "weights"
    typer.echo(f"{what}: {made.file}\nlog: {folder / 'log.csv'}\nreport: {pages(made)}", err=True)
    return _gate(made.after, min_clean, min_recall)


def _gate(after: Run, min_clean: float, min_recall: float) -> int:
    """The exit code: 1, with a sentence on stderr, where a floor does not hold."""
    clean = after.clean_accuracy.value
    if clean is None or clean < min_clean:
        typer.echo(f"clean accuracy is {clean}, below the floor of {min_clean:g}.", err=True)
        return 1
    least = min(after.metrics.per_class, key=lambda c: c.recall.clean or 0, default=None)
    if least is not None and (least.recall.clean or 0) < min_recall:
        typer.echo(
            f"clean recall of class {least.name} is {least.recall.clean:.3g}, below the floor of "
            f"{min_recall:g}.",
            err=True,
        )
        return 1
    return 0


def tell(line: Epoch) -> None:
    """An epoch, on stderr."""
    typer.echo(
        f"epoch {line.epoch}: loss {line.loss:.3f}, held-out rows: clean {line.clean:.1%}, "
        f"robust {line.robust:.1%}",
        err=True,
    )
    if line.note:
        typer.echo(f"  {line.note}", err=True)


def pages(made: Hardened) -> Path:
    """Write the page of the comparison, and those of the two runs that it links to."""
    from holdfast.report import html, paired

    for run in (made.before, made.after):
        html.write(run.folder)
    epochs = [(line.clean, line.robust) for line in made.log]
    return paired.write(made.folder / "report.html", made.comparison, epochs)
