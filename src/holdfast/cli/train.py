"""holdfast train: the undefended baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import options, texts, writing
from holdfast.errors import InputError

if TYPE_CHECKING:
    from holdfast.training.state import Epoch


def train(
    model: Annotated[
        str, typer.Argument(help="path/file.py:factory, or a .keras or .h5 file.", metavar="MODEL")
    ],
    data: options.Data,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the weights go, or the Keras model; default model.safetensors or .keras."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, max=100_000)] = 30,
    batch_size: options.BatchSize = 64,
    rate: Annotated[
        float, typer.Option(min=0, help="Adam's learning rate, falling by a cosine.")
    ] = 2e-3,
    bounds: options.BoundsText = None,
    preprocess: options.Steps = [],  # noqa: B006
    layout: options.Layout = None,
    split: options.Split = "train",
    label: options.Label = None,
    classes: options.Classes = None,
    resize: options.Resize = None,
    crop: options.Crop = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    devices: options.Devices = 1,
    precision: options.Precision = "float32",
    class_weights: options.ClassWeights = None,
) -> int:
    """Train a network on labelled data by plain cross-entropy, and save its weights."""
    keras = model.endswith((".keras", ".h5"))
    suffix, what = (".keras", "a Keras model is") if keras else (".safetensors", "weights are")
    out = out or Path(f"model{suffix}")
    writing.check_new(out, suffix, f"{what} saved as {suffix}")
    import torch

    from holdfast.evaluation.contract import check_data
    from holdfast.evaluation.prepare import open_for
    from holdfast.runs.store import write_bytes
    from holdfast.targets import TorchTarget, load, wrap
    from holdfast.targets.frameworks.pytorch.module import tensors_of
    from holdfast.targets.loading import made
    from holdfast.targets.preprocess import parse
    from holdfast.training.state import packed
    from holdfast.training.train import train as fit

    torch.manual_seed(seed)
    texts.check_layout(layout)
    settings: dict[str, Any] = {
        "preprocess": parse(preprocess),
        "bounds": texts.bounds_of(bounds),
        "device": texts.device_of(device),
        "layout": layout,
    }
    if keras:
        target = load(model, **settings)
    else:
        network = made(model)
        if not isinstance(network, torch.nn.Module):
            raise InputError(
                f"{model} gives a {type(network).__name__}, but a torch module is trained."
            )
        target = wrap(network, **settings)
    assert isinstance(target, TorchTarget)
    loading = options.loading_of(label, classes, resize, crop)
    source = options.open_source(data, bounds, split, **loading)
    source = open_for(target, source)
    check_data(source, target.bounds)
    trained = fit(
        target,
        source,
        epochs=epochs,
        batch_size=batch_size,
        rate=rate,
        seed=seed,
        devices=devices,
        precision=precision,
        class_weights=class_weights or "auto",
        watch=lambda line: _show(line, epochs),
    )
    if keras:
        from holdfast.training.keras import packed as whole

        write_bytes(out, whole(trained))
    else:
        write_bytes(out, packed(tensors_of(trained)))
    typer.echo(f"{'model' if keras else 'weights'}: {out}")
    return 0


def _show(line: Epoch, epochs: int) -> None:
    """An epoch, on stderr."""
    typer.echo(
        f"epoch {line.epoch}/{epochs}: loss {line.loss:.4f}, training accuracy {line.trained:.1%}, "
        f"on held-out rows {line.clean:.1%}",
        err=True,
    )
    if line.note:
        typer.echo(f"  {line.note}", err=True)
