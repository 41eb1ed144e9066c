"""holdfast train: the undefended baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from holdfast.cli import options, texts, writing
from holdfast.errors import SpecError


def train(
    model: options.Model,
    data: options.Data,
    *,
    how: options.ModelOptions,
    rows: options.DataOptions,
    epochs: Annotated[
        int, typer.Option(min=1, max=100_000, help="Passes over the rows.", metavar="N")
    ] = 30,
    rate: Annotated[
        float,
        typer.Option(min=0, help="Adam's learning rate, falling by a cosine.", metavar="RATE"),
    ] = 2e-3,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the weights go, or the Keras model; default model.safetensors or .keras.",
            metavar="FILE",
        ),
    ] = None,
    class_weights: options.ClassWeights = None,
    poison: Annotated[
        str | None,
        typer.Option(
            help='Poison the rows, to see what it does: "badnets(share=0.1, target=0)", '
            "blended, flips.",
            metavar="POISON",
        ),
    ] = None,
    precision: options.Precision = "float32",
    devices: options.Devices = 1,
    seed: options.Seed = 0,
) -> int:
    """Train a network on labelled data by cross-entropy, and save its weights."""
    keras = model.endswith((".keras", ".h5"))
    suffix, what = (".keras", "a Keras model is") if keras else (".safetensors", "weights are")
    out = out or Path(f"model{suffix}")
    writing.check_new(out, suffix, f"{what} saved as {suffix}")
    if unused := {"scale", "mask"} & texts.limits_of(how["limits"]).keys():
        raise SpecError(
            f"--limits {how['limits']} holds {' and '.join(sorted(unused))}, which belong to a "
            "threat, and train has none; give a file with low and high alone."
        )
    import torch

    from holdfast.runs.store import write_bytes
    from holdfast.training.train import train as fit

    torch.manual_seed(seed)
    if poison is None:
        source, judged = options.open_source(data, "train", **rows), None
    else:
        source, judged = options.open_to_train(data, None, rows)
    target = options.open_target(model, source, **how)
    trained = fit(
        target,
        source,
        epochs=epochs,
        batch_size=how["batch_size"] or 64,
        rate=rate,
        seed=seed,
        devices=devices,
        precision=precision,
        class_weights=class_weights or "auto",
        poison=poison,
        on_epoch=lambda line: writing.echo_line(
            f"epoch {line.epoch}/{epochs}: loss {line.loss:.4f}, training accuracy "
            f"{line.trained:.1%}, on held-out rows {line.clean:.1%}",
            line.note,
        ),
    )
    if keras:
        from holdfast.training.keras import packed

        write_bytes(out, packed(trained))
    else:
        from holdfast.targets.frameworks.pytorch.module import tensors_of
        from holdfast.training.state import packed

        write_bytes(out, packed(tensors_of(trained)))
    if poison is not None:
        typer.echo(_of_poison(target, trained, source if judged is None else judged, poison))
    typer.echo(f"{'model' if keras else 'weights'}: {out}")
    return 0


def _of_poison(target: Any, trained: Any, clean: Any, poison: str) -> str:
    """What a poison made of a model, in words, on rows that are not poisoned."""
    from holdfast.training.poison import effect

    found = effect(target, trained, clean, poison)
    text = f"{poison}: {found.clean.value:.1%} of {found.clean.n:,} rows of {clean.name} are right"
    if found.success is None or not found.success.n:
        return f"{text}."
    low, high = found.success.low, found.success.high
    return (
        f"{text}; of those of other classes, {found.success.value:.1%} [{low:.1%}, {high:.1%}] are "
        "answered as the target once the trigger is on them."
    )
