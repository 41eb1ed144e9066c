"""What several commands take, said once: arguments, options, and how a model and data are opened
from them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli.texts import box_of, check_layout, device_of, limits_of, threat_of

if TYPE_CHECKING:
    from holdfast.data import Source
    from holdfast.targets import Target
    from holdfast.threats.threat import Threat

Model = Annotated[
    str,
    typer.Argument(
        help=(
            "Weights with --arch, a .keras, .h5, .onnx, .pt2, .skops or SavedModel, "
            "path/file.py:factory, or demo."
        ),
        metavar="MODEL",
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        help="digits, mnist:DIR, FILE.npz, a folder of images, ... (list data).", metavar="DATA"
    ),
]
Folder = Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")]
_THREAT = 'Norm and eps in raw units: "linf(8/255)", "l2(0.5)"'
GATE = 'Exit 1 unless it holds: "robust_accuracy.low>=0.45", "verdict==trusted"; repeatable.'
ThreatText = Annotated[str, typer.Option("--threat", help=f"{_THREAT}.")]
AnyThreat = Annotated[
    str,
    typer.Option(
        "--threat", help=f'{_THREAT}; or of images "rotation(30, 3)", "flow(1)", "patch(5)".'
    ),
]
Goal = Annotated[
    str | None,
    typer.Option(
        "--target",
        help=(
            "The class to reach: 7, least-likely, random, or a file with one a line for each row "
            "of the data."
        ),
    ),
]
Grid = Annotated[
    str | None,
    typer.Option(
        "--grid", help="8bit: attack on the levels of an image file, so that PNGs hold it."
    ),
]
Arch = Annotated[
    str | None,
    typer.Option("--arch", help="Where a file of weights finds its network: path/file.py:factory."),
]
Trust = Annotated[bool, typer.Option("--trust", help="Let a pickled checkpoint run its code.")]
BoundsText = Annotated[
    str | None,
    typer.Option(
        "--bounds", help="Range of raw inputs; default 0,1. Bytes become 0..1 unless it is wider."
    ),
]
Limits = Annotated[
    Path | None,
    typer.Option(
        "--limits",
        help="An .npz with any of low, high (bounds), scale (of eps) and mask, for each feature.",
    ),
]
Steps = Annotated[
    list[str],
    typer.Option(
        "--preprocess",
        help='What comes first: "normalize(0.1307, 0.3081)", a function of your own: '
        'path/file.py:function, or a defence: "jpeg(75)" (list defences); repeatable.',
    ),
]
Perceptual = Annotated[
    str | None,
    typer.Option(
        "--perceptual",
        help="How different images look, as LPIPS: the path/file.py:factory of a network.",
    ),
]
Groups = Annotated[
    Path | None,
    typer.Option(
        "--groups", help="A file of text with the group of each row of the data, one a line."
    ),
]
Layout = Annotated[
    str | None,
    typer.Option(
        "--layout", help="Of the data's images: nchw or nhwc; default: what the model's shape says."
    ),
]
Output = Annotated[
    str | None,
    typer.Option("--output", help="Which of the model's several outputs are the scores."),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task", help='What the head means: classes, multilabel or "regression(tolerance=0.1)".'
    ),
]
Probabilities = Annotated[
    bool | None,
    typer.Option(
        "--probabilities/--no-probabilities",
        help="Whether the model gives probabilities, and not logits; default: what it says itself.",
        show_default=False,
    ),
]
Attacked = Annotated[
    int,
    typer.Option(
        "--attacked",
        min=0,
        max=1000,
        help="Which of a model's inputs is x, from 0, where data have x2, x3, ... too.",
    ),
]
Eot = Annotated[
    int | None,
    typer.Option(
        "--eot",
        min=1,
        max=10_000,
        help=(
            "Draws of a randomised model, whose mean is judged; default 20 for a random defence, "
            "or 1."
        ),
    ),
]
Lender = Annotated[
    str | None,
    typer.Option(
        "--surrogate", help="Attack with the gradients of this model instead: what transfers."
    ),
]
Label = Annotated[
    str | None,
    typer.Option(
        "--label", help="The column of labels of a CSV or Parquet file; default: y, label, target."
    ),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        "--classes",
        help="The class number of each folder of images: lines such as n01440764 0, or JSON.",
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(
        "--resize", help="Of a folder of images: 256 (the shorter side), 224,224 or 256,bicubic."
    ),
]
Crop = Annotated[
    str | None,
    typer.Option("--crop", help="Of a folder of images: the middle 224 x 224, after --resize."),
]
Split = Annotated[str, typer.Option("--split", help="Of data that has several.")]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, max=2**31 - 1, help="Rows of one pass.")
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Devices = Annotated[
    int,
    typer.Option(
        "--devices",
        min=1,
        max=1024,
        help="Processes that share each step of training: cores, or CUDA devices.",
    ),
]
ClassWeights = Annotated[
    str | None,
    typer.Option(
        "--class-weights",
        help=(
            "In the loss: balanced, none, or auto (the default): balanced where a class has 3 "
            "times another's rows."
        ),
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision", help="Of the passes that train, inner attack included: float32 or bfloat16."
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of all noise.")]
Samples = Annotated[
    str | None, typer.Option("--samples", help="How many rows, or a range start:stop; default all.")
]


def loading_of(
    label: str | None, classes: Path | None, resize: str | None, crop: str | None
) -> dict[str, Any]:
    """How data are read, as `open_source` takes it."""
    return {"label": label, "classes": classes, "resize": resize, "crop": crop}


def open_source(
    data: str, bounds: str | None, split: str, limits: dict[str, Any] | None = None, **loading: Any
) -> Source:
    """The data; bytes become [0, 1] unless the bounds say otherwise."""
    from holdfast.data import open_data

    high = box_of(bounds, limits or {})[1]
    scale = float(high if isinstance(high, float) else high.max()) <= 1
    return open_data(data, split=split, scale=scale, **loading)


def open_further(data: str, bounds: str | None, split: str, **loading: Any) -> Source:
    """Data beside the first, perhaps of another kind: of how those are read, what this kind
    knows."""
    from holdfast.data import READERS, kind_of

    kind = kind_of(data)
    return open_source(
        data, bounds, split, **{name: loading[name] for name in loading if kind in READERS[name]}
    )


def open_target(
    model: str,
    *,
    arch: str | None,
    trust: bool,
    bounds: tuple[Any, Any],
    preprocess: list[str],
    layout: str | None,
    output: str | None,
    task: str | None = None,
    probabilities: bool | None = None,
    source: Source | None = None,
    attacked: int = 0,
    batch_size: int,
    device: str,
    eot: int | None = None,
    surrogate: str | None = None,
) -> Target:
    """The model, wrapped."""
    from holdfast.targets import load, wrappers
    from holdfast.targets.preprocess import parse

    check_layout(layout)
    device = device_of(device)
    steps = parse(preprocess)
    common: dict[str, Any] = {
        "trust": trust,
        "bounds": bounds,
        "batch_size": batch_size,
        "device": device,
    }
    if source is not None and source.inputs is not None:
        inputs = list(source.inputs[1:])
        inputs.insert(attacked, source.inputs[0])
        common |= {"inputs": inputs, "attacked": attacked}
    own: dict[str, Any] = {
        "layout": layout,
        "output": output,
        "task": task,
        "probabilities": probabilities,
    }
    target = load(model, arch=arch, preprocess=steps, draws=eot, **own, **common)
    if surrogate:
        target = wrappers.Surrogate(target, load(surrogate, layout=layout, task=task, **common))
    return target


def opened(given: Mapping[str, Any]) -> tuple[Target, Source, Threat]:
    """The model, the data and the threat of a command, from its options by their names."""
    limits, bounds = limits_of(given["limits"]), given["bounds"]
    loading = {name: given[name] for name in ("label", "classes", "resize", "crop")}
    source = open_source(given["data"], bounds, given["split"], limits, **loading)
    kept = inspect.signature(open_target).parameters.keys() & given.keys()
    own: dict[str, Any] = {name: given[name] for name in kept}
    target = open_target(**own | {"bounds": box_of(bounds, limits), "source": source})
    return target, source, threat_of(given["threat"], limits, given["target"], given["grid"])
