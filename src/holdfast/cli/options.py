"""The options that commands share, each declared once.

The functions that open a model, data, a threat and a run folder say their options themselves, and a
command takes all of them: `how: ModelOptions` among its parameters means the options of
`open_target`, and is given as a dict that `open_target` takes.
"""

# no `from __future__ import annotations`: these annotations are read at run time

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from holdfast.cli import texts
from holdfast.cli.writing import fresh_folder
from holdfast.errors import InputError, SpecError
from holdfast.urls import place

if TYPE_CHECKING:
    from holdfast.certification import Ladder
    from holdfast.data import Source
    from holdfast.targets import Target
    from holdfast.targets.target import Bounds
    from holdfast.threats.threat import Threat

# the panels of the help; what matters most is in none
about_model = partial(typer.Option, rich_help_panel="Model")
about_data = partial(typer.Option, rich_help_panel="Data")
about_threat = partial(typer.Option, rich_help_panel="Threat")
about_measuring = partial(typer.Option, rich_help_panel="Measurement")
about_training = partial(typer.Option, rich_help_panel="Training")
about_run = partial(typer.Option, rich_help_panel="Run")

_model = typer.Argument(
    help="Weights with --arch, a .keras, .h5, .onnx, .pt2, .skops or SavedModel, "
    "path/file.py:factory, or demo.",
    metavar="MODEL",
)
Model = Annotated[str, _model]
ModelOrNone = Annotated[str | None, _model]
_data = typer.Argument(
    help="digits, mnist:DIR, FILE.npz, a folder of images, ... (list data).", metavar="DATA"
)
Data = Annotated[str, _data]
DataOrNone = Annotated[str | None, _data]
Folder = Annotated[
    Any, typer.Argument(help="A run folder, or its URL.", metavar="RUN", parser=place)
]
_threat = typer.Option(
    "--threat",
    help='Norm and eps in raw units: "linf(8/255)", "l2(0.5)"; to attack images also '
    '"rotation(30, 3)", "flow(1)", "patch(5)".',
    metavar="THREAT",
)
ThreatText = Annotated[str, _threat]
ThreatOrNone = Annotated[str | None, _threat]
RawRange = Annotated[
    str | None,
    about_data(
        help="Range of raw inputs; default 0,1. Bytes become 0..1 unless it is wider.",
        metavar="LOW,HIGH",
    ),
]
Limits = Annotated[
    Path | None,
    about_data(
        help="An .npz with any of low, high (bounds), scale (of eps) and mask, for each feature.",
        metavar="FILE",
    ),
]
SchemaFile = Annotated[
    Path | None,
    about_data(
        "--schema",
        help="The schema of a table (TOML): types, bounds, relations, and what may change.",
        metavar="FILE",
    ),
]
Layout = Annotated[
    str | None,
    about_data(
        help="Axes of the data's images: nchw or nhwc; default: what the model's shape says.",
        metavar="ORDER",
    ),
]
Samples = Annotated[
    str | None,
    typer.Option(help="How many rows, or a range start:stop; default all.", metavar="ROWS"),
]
ShardText = Annotated[
    str | None,
    about_run(
        help="Only part i of n of the rows, i from 0, such as 0/4: in --out/shard-0-of-4.",
        metavar="I/N",
    ),
]
Test = Annotated[
    str | None,
    typer.Option(
        help="DATA to measure on; default: the test split of DATA, else a fifth of it.",
        metavar="DATA",
    ),
]
Groups = Annotated[
    Path | None,
    about_data(
        help="A file of text with the group of each row of the data, one a line.", metavar="FILE"
    ),
]
Perceptual = Annotated[
    str | None,
    about_measuring(
        help="How different images look, such as LPIPS: path/file.py:factory of a network.",
        metavar="NETWORK",
    ),
]
Device = Annotated[str, about_model(help="auto, cpu, cuda, cuda:1, ...", metavar="DEVICE")]
Devices = Annotated[
    int,
    about_training(
        min=1,
        max=1024,
        help="Processes that share each step of training: cores, or CUDA devices.",
        metavar="N",
    ),
]
TrainingRay = Annotated[
    str | None,
    about_training(
        help="Share the rows over a cluster of Ray: auto, local, or host:port of its head.",
        metavar="ADDRESS",
    ),
]
ClassWeights = Annotated[
    str | None,
    about_training(
        help="In the loss: balanced, none, or auto (the default): balanced where a class has "
        "3 times the rows of another.",
        metavar="WEIGHTS",
    ),
]
Precision = Annotated[
    str,
    about_training(
        help="Number type of the training passes, inner attack included: float32 or bfloat16.",
        metavar="TYPE",
    ),
]
MaxSeconds = Annotated[
    float | None,
    about_measuring(min=0, help="Start nothing new after this time.", metavar="SECONDS"),
]
Seed = Annotated[
    int, about_run(min=0, max=2**63 - 1, help="The seed of all random numbers.", metavar="N")
]
OutFolder = Annotated[
    Any,
    typer.Option(
        "--out",
        help="The folder, or its URL (s3://bucket/run); default: a new one under runs/.",
        metavar="FOLDER",
        parser=place,
    ),
]
Resume = Annotated[bool, about_run("--resume", help="Go on with what is unfinished in --out.")]
Json = Annotated[bool, about_run("--json", help="Print the result alone on stdout, as JSON.")]
Gate = Annotated[
    list[str] | None,
    about_run(
        help='Exit 1 unless it holds: "robust_accuracy.low>=0.45", "verdict==trusted"; repeatable.',
        metavar="CONDITION",
    ),
]


def box_of(
    bounds: str | None,
    limits: Path | None,
    otherwise: tuple[Any, Any] = (0.0, 1.0),
    schema: Path | None = None,
) -> "Bounds":
    """The range of raw inputs, of each feature or of all; `otherwise` where no option says it."""
    from holdfast.targets.target import Bounds

    features = texts.limits_of(limits)
    if (table := texts.schema_of(schema)) is not None:
        if bounds is not None or "low" in features:
            raise SpecError(
                f"--schema {schema} says the bounds of each feature; leave out --bounds, and low "
                "and high of --limits."
            )
        return Bounds.of(table.extent)
    if "low" in features:
        if bounds is not None:
            raise SpecError(
                f"--bounds {bounds} and --limits {limits} both say the range of the inputs; give "
                "one of them."
            )
        return Bounds.of((features["low"], features["high"]))
    return Bounds.of(otherwise if bounds is None else texts.bounds_of(bounds))


def open_source(
    data: str,
    default: str = "test",
    box: "Bounds | None" = None,
    random: str | None = None,
    *,
    bounds: RawRange = None,
    limits: Limits = None,
    schema: SchemaFile = None,
    split: Annotated[
        str | None,
        about_data(
            help="Which split of the data: test or train; default: train to train, else test.",
            metavar="SPLIT",
        ),
    ] = None,
    label: Annotated[
        str | None,
        about_data(
            help="The column of labels of a CSV or Parquet file; default: y, label, target.",
            metavar="COLUMN",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        about_data(
            help="The class number of each folder of images: lines such as n01440764 0, or JSON.",
            metavar="FILE",
        ),
    ] = None,
    resize: Annotated[
        str | None,
        about_data(
            help="Resize a folder of images: 256 (the shorter side), 224,224 or 256,bicubic.",
            metavar="SIZE",
        ),
    ] = None,
    crop: Annotated[
        str | None,
        about_data(
            help="Crop a folder of images to the middle, after --resize: 224.", metavar="SIZE"
        ),
    ] = None,
) -> "Source":
    """The data; bytes become [0, 1] unless the bounds say otherwise.

    Args:
        default: the split where no option says it.
        box: the bounds where no option should.
        random: how many rows to draw, and the seed: see `drawn`.
    """
    from holdfast.data import open_data

    high = (box or box_of(bounds, limits, schema=schema)).high
    loading = {"label": label, "classes": classes, "resize": resize, "crop": crop}
    return open_data(data, split=split or default, scale=high <= 1, random=random, **loading)


def open_further(data: str, split: str, rows: Mapping[str, Any]) -> "Source":
    """Further data, read as `rows` says as far as their kind can be."""
    from holdfast.data import suiting

    return open_source(data, **{**suiting(data, rows), "split": split})


def open_to_train(
    data: str, test: str | None, rows: Mapping[str, Any]
) -> "tuple[Source, Source | None]":
    """Rows to train on, and those to measure on where they are others."""
    from holdfast.data import to_train_and_measure

    def opened(given: str, split: str) -> "Source":
        if split == "train":  # where --split says no other
            return open_source(given, split, **rows)
        return open_further(given, split, rows)

    return to_train_and_measure(data, test, opened)


def open_target(
    model: str,
    source: "Source | None" = None,
    box: "Bounds | None" = None,
    *,
    arch: Annotated[
        str | None,
        about_model(
            help="Where a file of weights finds its network: path/file.py:factory.",
            metavar="FACTORY",
        ),
    ] = None,
    trust: Annotated[
        bool, about_model("--trust", help="Let a pickled checkpoint run its code.")
    ] = False,
    preprocess: Annotated[
        list[str] | None,
        about_model(
            help='What comes first: "normalize(0.1307, 0.3081)", a function of your own: '
            'path/file.py:function, or a defence: "jpeg(75)" (list defences); repeatable.',
            metavar="STEP",
        ),
    ] = None,
    output: Annotated[
        str | None,
        about_model(help="Which of the model's several outputs are the scores.", metavar="OUTPUT"),
    ] = None,
    task: Annotated[
        str | None,
        about_model(
            help='What the head means: classes, multilabel, "regression(tolerance=0.1)" or '
            '"detection(iou=0.5, score=0.5)".',
            metavar="TASK",
        ),
    ] = None,
    probabilities: Annotated[
        bool | None,
        about_model(
            help="Whether the model gives probabilities, and not logits; default: what it says "
            "itself.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        about_model(
            help="Of two classes: the probability of class 1 from which on the answer is class 1; "
            "default 0.5.",
            metavar="P",
        ),
    ] = None,
    attacked: Annotated[
        int | None,
        about_model(
            min=0,
            max=1000,
            help="Which of a model's inputs is x, from 0 (the default), where data have x2, x3, "
            "... too.",
            metavar="N",
        ),
    ] = None,
    eot: Annotated[
        int | None,
        about_model(
            min=1,
            max=10_000,
            help="Draws of a randomised model, whose mean is judged; default 20 for a random "
            "defence, or 1.",
            metavar="N",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        about_model(
            min=1,
            max=2**31 - 1,
            help="Rows of one pass, default 256; of train rows of one step, default 64.",
            metavar="N",
        ),
    ] = None,
    device: Device = "auto",
    bounds: RawRange = None,
    limits: Limits = None,
    schema: SchemaFile = None,
    layout: Layout = None,
) -> "Target":
    """The model, wrapped.

    Args:
        source: the data, which may have further inputs.
        box: the bounds where no option should say them.
    """
    from holdfast.targets import load
    from holdfast.targets.preprocess import parse

    texts.check_layout(layout)
    further: dict[str, Any] = {}
    if source is not None and source.inputs is not None:
        at, (first, *others) = attacked or 0, source.inputs
        further = {"inputs": [*others[:at], first, *others[at:]], "attacked": at}
    return load(
        model,
        arch=arch,
        trust=trust,
        bounds=box or box_of(bounds, limits, schema=schema),
        preprocess=parse(preprocess or ()),
        layout=layout,
        output=output,
        task=task,
        probabilities=probabilities,
        threshold=threshold,
        draws=eot,
        batch_size=batch_size or 256,
        device=texts.device_of(device),
        **further,
    )


def open_threat(
    *,
    threat: ThreatText,
    limits: Limits = None,
    schema: SchemaFile = None,
    target: Annotated[
        str | None,
        about_threat(
            help="The class to reach: 7, least-likely, random, or a file with one a line for each "
            "row of the data.",
            metavar="CLASS",
        ),
    ] = None,
    grid: Annotated[
        str | None,
        about_threat(
            help="8bit: attack on the levels of an image file, so that PNGs hold it.",
            metavar="GRID",
        ),
    ] = None,
) -> "Threat | str":
    """The threat, with what the options say of it; else its text, which may name a movement."""
    return texts.threat_of(threat, texts.limits_of(limits), target, grid, schema)


def rows_to_measure(
    source: "Source",
    *,
    samples: Samples = None,
    random: Annotated[
        bool,
        typer.Option("--random", help="Draw the --samples at random, by the seed."),
    ] = False,
    shard: ShardText = None,
) -> int | tuple[int, int] | None:
    """A count of rows or a range of them; None: all, or all that were `drawn`."""
    asked = None if random else texts.rows_of(samples)
    if shard is None:
        return asked
    from holdfast.evaluation.prepare import rows_asked
    from holdfast.evaluation.shards import parse

    return parse(shard).rows(*rows_asked(asked, len(source), source.name))


def drawn(part: Mapping[str, Any], seed: int) -> dict[str, str]:
    """The rows that are drawn at random, as `open_source` takes them; nothing where none are."""
    if not part["random"]:
        return {}
    count = texts.rows_of(part["samples"])
    if not isinstance(count, int):
        raise SpecError(
            f"--random draws as many rows as --samples says, which is {part['samples']}; give a "
            "count such as 5000."
        )
    return {"random": f"{count},{seed}"}


def folder_of(
    model: str,
    what: str,
    shard: str | None = None,
    *,
    out: OutFolder = None,
    resume: Resume = False,
) -> Path | str:
    """The folder of a run or its URL, which may have to be there; that of a shard is within.

    Raises:
        InputError: that, or there is a shard, and none is named.
    """
    if resume and out is None:
        raise InputError("--resume needs the folder to go on with: give --out.")
    if shard is not None:
        from holdfast.evaluation.shards import parse

        if out is None:
            raise InputError("--shard needs the folder that holds all shards: give --out.")
        return place(f"{out}/{parse(shard)}")
    return out or fresh_folder(model, what)


def audit_folder_of(
    model: str,
    what: str,
    *,
    out: OutFolder = None,
) -> Path | str:
    """The folder of an audit or its URL."""
    return folder_of(model, what, out=out)


# of a worker, which measures shard after shard: what it opened for all of them
opened: "tuple[Target, Source] | None" = None


def open_attacked(
    model: str,
    data: str,
    how: Mapping[str, Any],
    rows: Mapping[str, Any],
    *,
    surrogate: Annotated[
        str | None,
        about_threat(
            help="Attack with the gradients of this model instead: what transfers.",
            metavar="MODEL",
        ),
    ] = None,
) -> "tuple[Target, Source]":
    """The model, with the gradients that the adversary has of it, and the data."""
    if opened is not None:
        return opened
    source = open_source(data, **rows)
    target = open_target(model, source, **how)
    if surrogate is None:
        return target, source
    from holdfast.targets.wrappers import Surrogate

    own = dict.fromkeys(("arch", "preprocess", "output", "probabilities", "eot"))
    return Surrogate(target, open_target(surrogate, source, **{**how, **own})), source


Smooth = Annotated[
    str | None,
    typer.Option(
        "--smooth",
        help='Certify the model smoothed with noise, by votes: sigma, or "gaussian(0.25, '
        'draws=10000)" under l2, "uniform(0.25)" under l1.',
        metavar="NOISE",
    ),
]


def check_smooth(
    smooth: str,
    threat: "Threat | str",
    export: Path | None,
    max_seconds: float | None,
    seconds_per_row: float | None,
    radius: bool,
) -> None:
    """Refuse what a smoothed model cannot be asked, before any model is opened.

    Raises:
        InputError: a limit of time, or an export of its graph.
        SpecError: the noise cannot be understood, or proves nothing under the threat.
    """
    from holdfast.targets.smoothing_noise import parse

    parse(smooth, threat)
    given = {
        "--max-seconds": max_seconds is not None,
        "--seconds-per-row": seconds_per_row is not None,
        "--radius": radius,
        "--export": export is not None,
    }
    for option in (option for option, is_given in given.items() if is_given):
        raise InputError(
            f"{option} is for proofs by a network's graph, and --smooth proves by votes, which are "
            "all counted and always say the radius: leave one of the two out."
        )


def ladder_of(
    *,
    seconds_per_row: Annotated[
        float | None,
        about_measuring(help="Most time for proofs, times the rows; default 1.", metavar="SECONDS"),
    ] = None,
    radius: Annotated[
        bool,
        about_measuring("--radius", help="Also seek the largest size that is proved, of each row."),
    ] = False,
) -> "Ladder":
    """What proves rows."""
    from holdfast.certification import Ladder

    if seconds_per_row is None:
        return Ladder(radius=radius)
    return Ladder(seconds_per_row, radius)


# the shared options, as parameters of a command
ModelOptions = Annotated[dict[str, Any], open_target]
DataOptions = Annotated[dict[str, Any], open_source]
ThreatOptions = Annotated[dict[str, Any], open_threat]
AccessOptions = Annotated[dict[str, Any], open_attacked]
ProofOptions = Annotated[dict[str, Any], ladder_of]
RunOptions = Annotated[dict[str, Any], folder_of]
AuditOptions = Annotated[dict[str, Any], audit_folder_of]
PartOptions = Annotated[dict[str, Any], rows_to_measure]
