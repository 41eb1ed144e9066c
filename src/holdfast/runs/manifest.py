"""run.json: what was run on what, what it cost and what came out. The JSON schema in docs/ is made
from this."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from holdfast import spec
from holdfast.intervals import Interval, Real, Share, finite
from holdfast.runs.migration import with_todays_options

SCHEMA_VERSION = 2
CONTRADICTION = "contradiction"  # the check that finds a row that was proved and broken


# An eps without a limit is null, too, and read back as infinity.
Eps = Annotated[
    float,
    BeforeValidator(lambda v: math.inf if v is None else v),
    PlainSerializer(finite, return_type=float | None),
]
# As `Trial.write` gives it; runs of before name some options otherwise.
TrialText = Annotated[str, AfterValidator(with_todays_options)]


def _unsaid(value: object) -> bool:
    """What most runs lack is not in their run.json."""
    return not value


Severity = Literal["info", "amber", "red"]
Status = Literal["wrong", "broken", "robust", "certified", "unstable", "failed", "skipped"]
VerdictStatus = Literal["trusted", "upper-bound", "unreliable"]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelInfo(Record):
    spec: str  # what the user typed, or the type of a live object
    arch: str | None = None
    fingerprint: str  # SHA-256 of architecture, weights, preprocessing and bounds
    bounds: tuple[float, float]  # or the extremes of those that each feature has of its own
    box: str | None = None  # SHA-256 of these, which are in limits.safetensors
    shape: list[Annotated[int, Field(ge=1)]]
    classes: Annotated[int, Field(ge=1, le=1_000_000)]  # or labels, or outputs
    task: str = "classes"  # or multilabel, or regression(tolerance=0.1), or detection(...)
    # shape of the last features of a flat input, where they alone may change
    free: list[int] | None = None
    attacked: int | None = None  # of several inputs, the place of the one that may change
    preprocess: list[str] = []
    probabilities: bool = False
    # of class 1, from which on the model decides for it; null: a half, or it has other classes
    threshold: Annotated[Share, Field(exclude_if=_unsaid)] = None
    layout: str = "nchw"
    output: str | None = None
    access: str = "gradients"  # gradients, scores or labels: what the target gave to the attacks
    draws: int = 1  # of a randomised model, whose mean is attacked and judged
    # noise and votes: the class given most often under noise is the answer
    smoothing: Annotated[str | None, Field(exclude_if=_unsaid)] = None
    surrogate: str | None = None  # whose gradients the attacks took
    transformation: str | None = None  # the movement of images whose parameters are attacked

    @field_validator("bounds")
    @classmethod
    def _ordered(cls, bounds: tuple[float, float]) -> tuple[float, float]:
        if not -math.inf < bounds[0] < bounds[1] < math.inf:
            raise ValueError(
                f"bounds are {bounds}, but they are two finite numbers, the lower one first"
            )
        return bounds


class ColumnInfo(Record):
    """A feature of a table."""

    name: str
    dtype: str  # of its values: one of NumPy's numbers, text, or category
    # of texts and categories: what the numbers 0, 1, ... of an example mean
    values: Annotated[list[Any], Field(exclude_if=_unsaid)] = []


class DataInfo(Record):
    spec: str
    split: str
    fingerprint: str  # SHA-256 of the source's content
    total: int  # rows of the source
    parts: list[tuple[int, int]]  # the rows evaluated, as [start, stop) ranges of ids
    class_names: list[str] | None = None
    # of the objects or regions that the truths name, in the order of their numbers
    objects: Annotated[list[str] | None, Field(exclude_if=_unsaid)] = None
    # options with which the data were read: label, classes, resize, crop, random
    loading: dict[str, str] = {}
    groups: str | None = None  # SHA-256 of the groups of all rows, where they have some
    columns: Annotated[list[ColumnInfo], Field(exclude_if=_unsaid)] = []  # of a table

    def class_name(self, label: int) -> str:
        """The name of a class, or its number."""
        if self.class_names is None or not 0 <= label < len(self.class_names):
            return str(label)
        return self.class_names[label]


class ThreatInfo(Record):
    text: str  # as typed back: linf(8/255)
    norm: str
    eps: Eps  # in raw input units; null: no limit, the smallest change is asked for
    target: int | None = None  # the class to reach; None: any wrong one, or what `targets` says
    # least-likely or random, or the SHA-256 of the classes given: see target_class
    targets: str | None = None
    table: str | None = None  # the schema of a table, as TOML
    grid: str | None = None  # 8bit: only images that a file of 8 bits holds are legal
    # (eps, largest size that counts as within it), the threat's own first
    measured: list[tuple[Eps, float]]
    # of l0: what counts as one, pixel; null: every feature
    group: Annotated[str | None, Field(exclude_if=_unsaid)] = None
    # further eps, each a run of its own in curve/: of a task whose rows can be wrong in part
    apart: Annotated[list[float], Field(exclude_if=_unsaid)] = []


class CorruptionInfo(Record):
    """How the model was asked about corrupted inputs."""

    version: int
    table: Literal["cifar", "imagenet"]  # whose parameters of severity
    baseline: str | None = None  # whose errors the mCE divides by
    baseline_errors: dict[str, float] | None = None  # of each kind, the mean of the severities


class CertificationInfo(Record):
    """How rows were certified."""

    version: int  # of what counts as proved
    methods: list[str]  # in the order in which a row climbs them
    seconds_per_row: Real = None  # on average over the rows of a chunk; null: no limit
    radius: bool = False  # whether the largest size that can be proved was sought


class UntilInfo(Record):
    """When a run ends before its last row. Its rows are in random order, by the seed, and every
    share of rows has the interval of a confidence sequence, at which one may stop."""

    # of the interval of the robust accuracy; null: until gates are decided
    width: Annotated[Share, Field(exclude_if=_unsaid)] = None
    gates: Annotated[list[str], Field(exclude_if=_unsaid)] = []
    rows: tuple[int, int]  # [start, stop) of those that were asked for
    stopped: int | None = None  # after so many rows; null: never


class Finding(Record):
    """Something that bears on whether the figure can be trusted."""

    check: str
    severity: Severity
    text: str
    value: Real = None
    threshold: Real = None
    ids: list[int] = []  # rows that show it, the first of them
    source: str = ""  # where the threshold comes from
    passes: int = 0  # forwards and backwards that it cost
    advice: str = ""
    explains: list[str] = []  # checks that fired as well, and that this one explains


class Verdict(Record):
    status: VerdictStatus
    findings: list[Finding]
    reason: str = ""  # of the status, in one sentence


class Costs(Record):
    forwards: int = 0
    backwards: int = 0
    queries: int = 0
    judge_forwards: int = 0  # the judge's own passes, apart from the search
    corruption_forwards: int = 0  # on corrupted inputs
    vote_forwards: Annotated[int, Field(exclude_if=_unsaid)] = 0  # on inputs under smoothing noise
    seconds: float = 0.0


class Restart(Record):
    """One restart of a trial, with all aims."""

    attacked: int = 0
    broken: int = 0


class TrialInfo(Record):
    """One attack of the protocol, with all restarts and aims, at one eps."""

    spec: TrialText  # every hyperparameter written out
    eps: Eps
    attacked: int = 0  # rows that it was run on
    broken: int = 0  # rows that it broke and nothing before it had: its marginal contribution
    costs: Costs = Costs()
    # in their order; `attacked` is that of the first, `broken` their sum
    restarts: list[Restart] = []


class ProtocolInfo(Record):
    name: str
    version: int
    trials: list[TrialText]


class Pair(Record):
    """One figure on clean inputs and under attack."""

    clean: Real
    attacked: Real


class ClassMetrics(Record):
    label: int
    name: str
    clean_accuracy: Interval
    robust_accuracy: Interval
    precision: Pair
    recall: Pair
    f1: Pair


class BinaryMetrics(Record):
    """Of a model of two classes: how well it finds the rarer one of the rows measured.

    Under attack a broken row counts with the answer on its stored example, another one with that on
    its clean input.
    """

    label: Annotated[int, Field(ge=0, le=1)]  # of the rarer class; 1 where both are as frequent
    share: Share  # of the rows
    precision: Pair
    recall: Pair
    f1: Pair
    balanced_accuracy: Pair  # the mean recall of both classes
    auroc: Pair  # area under the ROC curve; null: no scores, or one class alone
    auprc: Pair  # average precision


class GroupMetrics(Record):
    """Of the rows of one group."""

    name: str
    clean_accuracy: Interval
    robust_accuracy: Interval


class Confusion(Record):
    """Counts [true][predicted]. Rows without a prediction (failed, skipped) are left out."""

    clean: list[list[int]]
    attacked: list[list[int]]


class Sizes(Record):
    """Sizes of the perturbations that broke a row, in raw units."""

    n: int
    minimum: Real
    median: Real
    mean: Real
    maximum: Real
    quantiles: dict[str, Real] = {}  # by their share: 0.05, 0.25, 0.5, 0.75, 0.95


class Errors(Record):
    """Errors of a regression, max |f - y| of each row; under attack: on the stored example where
    broken."""

    clean: Sizes
    attacked: Sizes


class TaskFigure(Record):
    """A figure of a task of its own, clean and under attack: on the stored example where broken."""

    clean: Real
    attacked: Real
    interval: Interval | None = None  # of the attacked one, where it is a share


class ObjectMetrics(Record):
    """The figures of a task for one class of the objects or regions that its truths name."""

    label: int
    name: str
    n: Annotated[int, Field(ge=0)]  # objects of this class, or images that hold it
    figures: dict[str, TaskFigure]


class Perceptual(Record):
    """How much the changes that broke a row show, in images: medians."""

    n: int
    psnr: Real  # decibels
    ssim: Real  # structural similarity; 1: equal
    lpips: Real = None  # by the network that the user gave; 0: equal


class CurvePoint(Record):
    """Robust accuracy at one eps. `measured`: the protocol was run there; otherwise it follows from
    recorded sizes alone, and is an upper bound."""

    eps: float
    robust_accuracy: Interval
    measured: bool
    # where rows were certified: the share that is proved to be right at this eps
    certified_accuracy: Annotated[Interval | None, Field(exclude_if=_unsaid)] = None
    # of a task with figures of its own: these under attack at this eps, by their names
    of_task: Annotated[dict[str, Real], Field(exclude_if=_unsaid)] = {}


class QueryPoint(Record):
    """The share of attacked inputs that were broken with at most so many queries each."""

    queries: int
    success: Interval


class Calibration(Record):
    """What the model's confidence is worth."""

    ece: Pair  # expected calibration error
    aurc: Pair  # area under risk over coverage: the mean error of the most confident rows


class Refusals(Record):
    """How many inputs a model that may refuse does refuse."""

    clean: Interval
    # of those right clean: not broken, and the worst input found is wrong but for the refusal
    attacked: Interval


class CorruptionPoint(Record):
    kind: str
    severity: int
    accuracy: Interval


class CorruptionMetrics(Record):
    """Accuracy under common corruptions. Mean, drop and mCE are of the 15 kinds of the benchmark,
    not of all points."""

    mean_accuracy: Interval  # over kinds and severities; the interval is of the rows' means
    relative_drop: Real  # the share of the clean accuracy that is lost
    mce: Real = None  # mean of each kind's error in shares of the baseline's
    points: list[CorruptionPoint]


class RelationMetrics(Record):
    """What the relations of a table's schema hold back: rows that held were searched again by the
    same trials, where relations and formulas of derived features need not hold."""

    robust_accuracy: Interval  # without them, of all rows
    searched: int  # rows that held
    broken: int  # of these, rows that were broken without relations
    passes: int  # forwards and backwards of this search, which no other figure counts
    # in how many of the examples found so each relation does not hold, the most first
    by_relation: dict[str, int] = {}


class Survivors(Record):
    """What one more round of the last trial that draws noise would still break, from its last
    round."""

    # rows that round was run on: robust so far, and with a margin small enough for the trial
    attacked: int
    broken: int
    # the rows that it left, times the share that it broke: rather too high, since it broke the easy
    # rows
    expected: Real
    high: Real  # the same, with the 95 % upper limit of the share (one-sided, Clopper-Pearson)


class Metrics(Record):
    clean_accuracy: Interval
    robust_accuracy: Interval
    attack_success_rate: Interval  # broken, of those that the model had right
    certified_accuracy: Interval | None = None  # proved; the true robust accuracy lies above it
    # where rows were certified: how many each method proved that those before it had not
    certified_by: Annotated[dict[str, int], Field(exclude_if=_unsaid)] = {}
    # of a smoothed model: where the votes show no majority, which counts as wrong
    abstentions: Annotated[Interval | None, Field(exclude_if=_unsaid)] = None
    precision: Pair = Pair(clean=None, attacked=None)  # macro averages, over classes or labels
    recall: Pair = Pair(clean=None, attacked=None)
    f1: Pair = Pair(clean=None, attacked=None)
    counts: dict[Status, int]
    per_class: list[ClassMetrics] = []  # or per label, of the rows that bear it
    # of a model of two classes
    binary: Annotated[BinaryMetrics | None, Field(exclude_if=_unsaid)] = None
    per_group: list[GroupMetrics] = []  # where rows have groups
    worst_group: GroupMetrics | None = None  # of the lowest robust accuracy
    confusion: Confusion | None = None  # of classes alone
    sizes: Sizes
    errors: Errors | None = None  # of a regression, in place of precision, recall, F1 and confusion
    # of a task with figures of its own, such as detection: these by their names
    of_task: Annotated[dict[str, TaskFigure], Field(exclude_if=_unsaid)] = {}
    of_objects: Annotated[list[ObjectMetrics], Field(exclude_if=_unsaid)] = []  # and by class
    queries: list[QueryPoint] = []
    median_queries: Real = None  # of the inputs that were broken
    curve: list[CurvePoint]
    corruptions: CorruptionMetrics | None = None
    calibration: Calibration | None = None
    perceptual: Perceptual | None = None
    # where no trial drew noise after a first round there is no estimate
    survivors: Survivors | None = None
    refusals: Refusals | None = None
    # of a table whose schema has relations
    relations: Annotated[RelationMetrics | None, Field(exclude_if=_unsaid)] = None
    # of images: under attack, each example rounded as a file of 8 bits holds it
    accuracy_8bit: Interval | None = None


class Provenance(Record):
    command: str  # reproduces the run
    created: str  # UTC, ISO 8601
    versions: dict[str, str]
    hardware: str


class Facts(Record):
    """What was asked of what: all of run.json but the answers."""

    schema_version: int = SCHEMA_VERSION  # of the file
    model: ModelInfo
    data: DataInfo
    threat: ThreatInfo
    protocol: ProtocolInfo
    seed: int
    max_queries: int | None = None  # the most forwards that a row might cost
    corruptions: CorruptionInfo | None = None
    certification: Annotated[CertificationInfo | None, Field(exclude_if=_unsaid)] = None
    perceptual: str | None = None  # SHA-256 of the network whose distances are the column lpips
    until: Annotated[UntilInfo | None, Field(exclude_if=_unsaid)] = None
    # batch size, device, time limit: what may differ without changing the question
    settings: dict[str, Any]
    provenance: Provenance
    initial_findings: list[Finding]  # of the input contract and the probe, before the protocol
    probe_costs: Costs = Costs()
    judge_forwards: int = 0  # 0: of an earlier version, whose samples say how many

    @property
    def asked(self) -> str:
        """The threat as it is typed: of a movement, `rotation(degrees=30, pixels=1)`."""
        text, movement = self.threat.text, self.model.transformation
        if movement is None:
            return text
        low, high = self.model.bounds
        whole = f"linf({spec.number((high - low) / 2)})"  # its parameters may be anything in range
        return movement if text == whole else f"{text} of {movement}"


class Manifest(Facts):
    """All of run.json."""

    verdict: Verdict
    metrics: Metrics
    costs: Costs
    trials: list[TrialInfo]
    files: dict[str, str]  # SHA-256 of every other file of evidence, by its path in the folder
    # SHA-256 of run.json with zeros in this place; the last key, absent in older runs
    digest: str | None = None

    @model_validator(mode="after")
    def _as_many_classes(self) -> Manifest:
        """The number of classes is that of the confusion matrix in the file, before a matrix of so
        many is made."""
        confusion = self.metrics.confusion
        if (
            confusion is not None
            and not len(confusion.clean) == len(confusion.attacked) == self.model.classes
        ):
            raise ValueError(
                f"the model has {self.model.classes} classes, but the confusion matrices have "
                "others"
            )
        return self
