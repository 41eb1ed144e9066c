"""run.json of an audit: what was asked of which model and data, and what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from holdfast.errors import InputError
from holdfast.intervals import Interval, Real
from holdfast.runs import store
from holdfast.runs.manifest import Costs, Provenance, Record

AUDIT_VERSION = 1  # of the files of an audit
MembershipName = Literal["loss", "rmia", "lira"]


class AuditedModel(Record):
    spec: str  # what the user typed, or the type of a live object
    arch: str | None = None
    fingerprint: str  # SHA-256 of architecture, weights, preprocessing and bounds
    bounds: tuple[float, float]
    shape: list[Annotated[int, Field(ge=1)]]
    layout: str = "nchw"
    classes: Annotated[int, Field(ge=1, le=1_000_000)]
    access: str  # gradients, scores or labels


class AuditedData(Record):
    role: str  # what the rows are to the audit: rows, members, non-members
    spec: str
    fingerprint: str  # SHA-256 of the source's content
    total: Annotated[int, Field(ge=1)]  # rows of the source
    class_names: list[str] | None = None


class AuditVerdict(Record):
    found: bool | None  # whether there is what was looked for; null: nothing follows
    reason: str  # in a sentence or two


class Trigger(Record):
    """A change of inputs that makes the model answer `target`, and whether it speaks for a
    backdoor."""

    source: int | None  # the class whose rows it turns; null: all other classes
    target: int
    size: Real  # features that it covers: the sum of its mask
    share: Real  # of all features
    region: list[int] | None  # of an image: top, left, bottom, right of what it covers, in pixels
    short: Real  # what the search of all classes or pairs took for it, which the index compares
    expected: Real  # the same, as the other classes or pairs lead one to expect it
    index: Real  # how far the first lies below the second, in scaled median absolute deviations
    success: Interval  # on rows that the search did not see
    flagged: bool
    reason: str  # why, or why not

    @property
    def picture(self) -> str:
        """The file of its picture, where inputs are images."""
        return picture(self.source, self.target)


def picture(source: int | None, target: int) -> str:
    """The name of the file with the picture of a trigger."""
    return f"trigger-{'all' if source is None else source}-to-{target}.png"


class BackdoorResult(Record):
    searched: int  # rows that triggers were searched on
    held: int  # rows that they were tried on
    shape: list[Annotated[int, Field(ge=1)]]  # of a mask
    least_index: float  # what a flag takes: at least this index,
    least_success: float  # this success on held rows,
    most_share: float  # at most this share of the features,
    most_of_expected: float  # and of the expected size
    class_sizes: list[Real]  # of the smallest trigger found for each class, from all others
    class_indices: list[Real]
    pair_sizes: list[list[Real]] | None  # [source][target]; null: pairs were not searched
    triggers: list[Trigger]  # those that were searched in full, the most suspicious first


class RateAt(Record):
    """The share of members that are known at a false positive rate."""

    fpr: float
    needed: int  # non-members that this takes
    true_positives: Interval | None  # null: there are fewer
    false_positives: Interval | None  # at the same threshold


class MembershipAttack(Record):
    name: MembershipName
    auc: Interval  # of members against non-members
    found: bool  # whether it is above chance, with the interval of all attacks together
    rates: list[RateAt]


class MembershipResult(Record):
    members: int
    non_members: int
    repeated: int = 0  # rows that occur again among them, and were left out
    references: int  # models of the same kind, to compare with
    member_accuracy: Interval
    non_member_accuracy: Interval
    member_loss: Real  # mean cross-entropy
    non_member_loss: Real
    attacks: list[MembershipAttack]


class Substitute(Record):
    """A network trained on a model's answers, on rows that it was not trained on."""

    queries: int  # rows that the model was asked about for it
    answers: str = ""  # what it was trained on: scores, labels, rounded(2)
    agreement: Interval  # how often both answer alike
    accuracy: Interval
    # of the rows that the model has right, those that examples made on the copy turn
    transfer: Interval


class ExtractionResult(Record):
    measured: int  # rows
    accuracy: Interval  # of the model on them
    noise: Interval  # of the rows that it has right, those that random noise turns
    substitutes: list[Substitute]


class LabelGroups(Record):
    """Two groups of the rows of one label; where there are too few rows, no numbers."""

    label: int
    rows: int
    gap: Real  # between their means, in standard deviations within them
    share: Real  # of the rows that are in the group that resembles other labels the more
    apart: Real  # of that group: the distance to other labels, in distances within the group
    rest_apart: Real  # of the other group
    flagged: bool
    reason: str  # why, or why not

    @property
    def picture(self) -> str:
        """The file of its picture, where it is flagged and inputs are images."""
        return f"rows-of-{self.label}.png"


class Planted(Record):
    """What was found of rows that are known to be planted."""

    found: Interval  # of these, those that look planted
    false_alarms: Interval  # of the others
    ranked: Interval  # of these, those among the highest spectral signatures of their label
    doubted: Interval  # of these, those whose label is in doubt
    falsely_doubted: Interval  # of the others


class DataResult(Record):
    rows: int
    least_gap: float  # what a flag takes: at least this gap,
    most_resemblance: float  # and at most this share of the other group's distance
    labels: list[LabelGroups]
    suspects: int  # rows that look planted: of the suspect group of a flagged label
    first: list[int]  # the first of them, by their places in the data
    neighbours: int  # of each row, of which
    most_agreeing: int  # at most so many have the label of one whose label is in doubt
    doubted: int  # rows whose label is
    twice: int  # rows that occur more than once
    at_odds: int  # of these, with another label
    planted: Planted | None  # null: nothing is known to be


class Audit(Record):
    """What every audit says."""

    audit: str
    schema_version: Literal[1] = AUDIT_VERSION
    model: AuditedModel
    data: list[AuditedData]
    seed: int
    settings: dict[str, Any]
    provenance: Provenance
    verdict: AuditVerdict
    costs: Costs
    files: dict[str, str]  # SHA-256 of every other file of evidence, by its name in the folder
    digest: str | None = None  # SHA-256 of run.json with zeros in this place


class BackdoorAudit(Audit):
    audit: Literal["backdoor"] = "backdoor"  # pyright: ignore[reportIncompatibleVariableOverride]
    result: BackdoorResult


class MembershipAudit(Audit):
    audit: Literal["membership"] = "membership"  # pyright: ignore[reportIncompatibleVariableOverride]
    result: MembershipResult


class ExtractionAudit(Audit):
    audit: Literal["extraction"] = "extraction"  # pyright: ignore[reportIncompatibleVariableOverride]
    result: ExtractionResult


class DataAudit(Audit):
    audit: Literal["data"] = "data"  # pyright: ignore[reportIncompatibleVariableOverride]
    result: DataResult


AnyAudit = BackdoorAudit | MembershipAudit | ExtractionAudit | DataAudit
Kind = TypeVar("Kind", bound=Audit)
_READS: TypeAdapter[AnyAudit] = TypeAdapter(Annotated[AnyAudit, Field(discriminator="audit")])


def read(folder: Path) -> AnyAudit:
    """run.json of an audit.

    Raises:
        InputError: the folder holds no audit, or one that was changed.
    """
    audit, whole = opened(folder)
    if not whole:
        raise InputError(
            f"{folder / 'run.json'} was changed after the audit (its digest differs); see holdfast "
            "verify."
        )
    return audit


def read_as(folder: Path, kind: type[Kind]) -> Kind:
    """run.json of an audit of this kind."""
    audit = read(folder)
    assert isinstance(audit, kind)
    return audit


def opened(folder: Path) -> tuple[AnyAudit, bool]:
    """run.json of an audit, and whether it is what the audit wrote.

    Raises:
        InputError: the folder holds no audit.
    """
    path = folder / "run.json"
    content = store.read_bytes(path)
    try:
        return _READS.validate_json(content), store.digest_holds(content) is True
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the text"
        raise InputError(
            f"{path} is not a valid run.json of an audit: at {place}: {first['msg']}."
        ) from None


def write(folder: Path, audit: Audit) -> None:
    """Write run.json, the last file of an audit; it names the checksums of all others."""
    files = {name: store.checksum(folder / name) for name in evidence(folder)}
    whole = audit.model_copy(update={"files": files, "digest": store.NO_DIGEST})
    content = whole.model_dump_json(indent=1).encode()
    store.write_bytes(folder / "run.json", store.with_digest(content))


def evidence(folder: Path) -> list[str]:
    """The names of the files of evidence in the folder of an audit."""
    suffixes = (".safetensors", ".png", ".parquet")
    return sorted(path.name for path in folder.iterdir() if path.suffix in suffixes)
