"""holdfast harden: from a fragile network to a robust one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli import options, texts, writing
from holdfast.cli.workers import trained_on
from holdfast.errors import InputError, SpecError
from holdfast.urls import named

if TYPE_CHECKING:
    from holdfast.runs.run import Run
    from holdfast.training.state import Epoch


def harden(
    model: options.Model,
    data: options.Data,
    *,
    threat: options.ThreatText,
    how: options.ModelOptions,
    rows: options.DataOptions,
    recipe: Annotated[
        str,
        typer.Option(
            help="fast, standard, strong, finetune or certified (list recipes), or "
            '"standard(rate=0.05)"; of estimators augment.',
            metavar="RECIPE",
        ),
    ] = "standard",
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, max=100_000, help="Passes over the rows, instead of the recipe's.", metavar="N"
        ),
    ] = None,
    test: options.Test = None,
    objective: Annotated[
        str | None,
        options.about_training(
            help='An objective instead of the recipe\'s: "trades(beta=6)" (list objectives).',
            metavar="OBJECTIVE",
        ),
    ] = None,
    loss: Annotated[
        str | None,
        options.about_training(
            help="The loss of a detector or a segmenter (--task): a function of the module, inputs "
            "and truths, which gives [n], or the mean; path/file.py:function.",
            metavar="FUNCTION",
        ),
    ] = None,
    class_weights: options.ClassWeights = None,
    synthetic: Annotated[
        str | None,
        options.about_training(
            help="Generated DATA to train on too: what `generate sample` saved.", metavar="DATA"
        ),
    ] = None,
    synthetic_share: Annotated[
        float, options.about_training(help="Share of generated rows in each step.", metavar="SHARE")
    ] = 0.7,
    train_samples: Annotated[
        str | None,
        options.about_training(
            help="How many rows to train on, or a range start:stop; default all.", metavar="ROWS"
        ),
    ] = None,
    precision: options.Precision = "float32",
    devices: options.Devices = 1,
    ray: options.TrainingRay = None,
    tensorboard: Annotated[
        bool, options.about_training("--tensorboard", help="Write event files next to log.csv.")
    ] = False,
    protocol: Annotated[
        str,
        options.about_measuring(
            help="How hard to attack before and after (list protocols).", metavar="NAME"
        ),
    ] = "standard",
    test_samples: Annotated[
        str | None,
        options.about_measuring(
            help="How many rows to measure on, or a range start:stop; default all.", metavar="ROWS"
        ),
    ] = None,
    samples: Annotated[str | None, typer.Option(hidden=True)] = None,
    min_clean: Annotated[
        float,
        options.about_measuring(
            min=0,
            max=1,
            help="Exit 1 unless clean accuracy stays at least this; 0.96.",
            metavar="SHARE",
        ),
    ] = 0.0,
    min_recall: Annotated[
        float,
        options.about_measuring(
            min=0,
            max=1,
            help="Exit 1 unless the clean recall of every class stays at least this; 0.5.",
            metavar="SHARE",
        ),
    ] = 0.0,
    where: options.RunOptions,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> int:
    """Train a network, or fit an estimator again, to withstand a threat, and compare."""
    if samples is not None:
        raise SpecError(
            f"--samples {samples} does not say which rows are meant: give --train-samples "
            f"{samples} for the rows to "
            f"train on, or --test-samples {samples} for those to measure on."
        )
    folder = options.folder_of(model, f"{threat}-{recipe.partition('(')[0]}-hardened", **where)
    from holdfast.evaluation.facts import Names
    from holdfast.hardening.harden import harden as make_robust
    from holdfast.reporting import paired

    source, judged = options.open_to_train(data, test, rows)
    target = options.open_target(model, source, **how)
    if ray is not None and not isinstance(folder, Path):
        raise InputError(f"--out is {folder}; with --ray name a folder that all machines see.")
    with writing.resumable(folder) as here:
        with (
            trained_on(ray, devices, target.batcher.device.type),
            writing.progress_bar() as on_progress,
        ):
            made = make_robust(
                target,
                source,
                options.open_threat(threat=threat, limits=how["limits"], schema=how["schema"]),
                recipe=recipe,
                objective=objective,
                epochs=epochs,
                class_weights=class_weights,
                test=judged,
                out=here,
                resume=where["resume"],
                protocol=protocol,
                train_samples=texts.rows_of(train_samples, "--train-samples"),
                test_samples=texts.rows_of(test_samples, "--test-samples"),
                min_clean=min_clean,
                min_recall=min_recall,
                seed=seed,
                on_progress=on_progress,
                on_epoch=echo_epoch,
                names=Names(model, how["arch"], "test", writing.command_line()),
                synthetic=synthetic and options.open_further(synthetic, "train", rows),
                synthetic_share=synthetic_share,
                devices=devices,
                precision=precision,
                tensorboard=tensorboard,
                loss=loss,
            )
        if json:
            typer.echo(made.comparison.model_dump_json(indent=1))
        else:
            writing.show(paired.summary(made.comparison))
        what = "weights" if made.file.suffix == ".safetensors" else "model"
        said = f"{what}: {made.file}\nlog: {here / 'log.csv'}\nreport: {made.report()}"
        typer.echo(named(said), err=True)
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


def echo_epoch(line: Epoch) -> None:
    """An epoch, on stderr."""
    loss = "" if math.isnan(line.loss) else f"loss {line.loss:.3f}, "  # an estimator has none
    writing.echo_line(
        f"epoch {line.epoch}: {loss}held-out rows: clean {line.clean:.1%}, "
        f"robust {line.robust:.1%}",
        line.note,
    )
