"""holdfast train: the undefended baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    source = options.open_source(data, "train", **rows)
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
    typer.echo(f"{'model' if keras else 'weights'}: {out}")
    return 0
