"""The sentences and number formats that the page and the terminal share."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast import spec
from holdfast.decisions import REFUSED
from holdfast.intervals import Interval
from holdfast.runs.manifest import CorruptionPoint, Manifest, ModelInfo
from holdfast.runs.metrics import samples_for

NONE = "–"

NORMS = {
    "linf": "change every {unit} by up to {eps}",
    "l2": "change an input by up to {eps} in Euclidean length (L2)",
    "l1": "change an input by amounts that add up to at most {eps} (L1)",
    "l0": "change up to {eps} values of an input in any way (L0)",
}

# of norms that count some features as one: these
GROUPS = {"pixel": "change up to {eps} pixels of an image in any way (L0 by pixels)"}

MOVEMENTS = {
    "rotation": "turn an image by up to {degrees:g} degrees and shift it by up to {pixels:g} "
    "pixel(s) in each direction",
    "patch": "replace one square of {side:g} x {side:g} pixels, anywhere in an image",
    "flow": "take each pixel of an image from up to {pixels:g} pixel(s) away in each direction",
}

VERDICTS = {
    "trusted": "No check found a sign that the attacks failed. You may quote the figure, together "
    "with its threat.",
    "upper-bound": "The true robust accuracy may be lower: the amber findings say why. Quote the "
    "figure as “at most”, or do what they advise and measure again.",
    "unreliable": "A check contradicts the figure: do not quote it. Do what the red findings "
    "advise, and measure again.",
}

STATUSES = {
    "robust": "right, and not broken by any attack that ran",
    "certified": "right, and proved to stay right within eps; counts as robust, too",
    "broken": "right at first, but a change within the threat fools the model; it is stored and "
    "was checked again",
    "wrong": "wrong before any attack",
    "unstable": "the answer changes with batch size or when asked again; does not count as robust",
    "failed": "the model gave no finite answer, or refused; does not count as robust",
    "skipped": "not attacked, because time ran out, its class is the target or it has nothing to "
    "lose; in no share of inputs",
}


def printable(text: object) -> str:
    """Text without control characters: an untrusted name must not steer a terminal or break a
    figure."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def percent(share: float | None) -> str:
    """A share with one decimal, but `0 %` and `100 %` where it is exactly that."""
    if share is None:
        return NONE
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return f"{100 * share:.1f} %"


def eps(value: float) -> str:
    """An eps as people type it: 10/255, not 2/51."""
    return as_typed(spec.number(value))


def as_typed(text: str) -> str:
    """A text in which a share of 255 levels is written as one."""
    return re.sub(r"\b(\d+)/(17|51|85)\b", _of_255, text)


def _of_255(found: re.Match[str]) -> str:
    return f"{int(found[1]) * 255 // int(found[2])}/255"


def asked(manifest: Manifest) -> str:
    """The threat as it was typed."""
    return as_typed(manifest.asked)


def number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return str(value)
    if value == int(value) or abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:,.4g}"


def queries(manifest: Manifest) -> str:
    """What success cost in queries, where the model gives no gradients; empty where nothing was
    broken."""
    m = manifest.metrics
    if manifest.model.access == "gradients" or m.median_queries is None:
        return ""
    shares = ", ".join(f"{number(p.queries)}: {percent(p.success.value)}" for p in m.queries)
    return (
        f"Half of the broken inputs took at most {number(m.median_queries)} queries. Attack "
        f"success rate by queries: {shares}."
    )


WIDE = 0.05  # an interval of more than so much is worth a word


def samples_needed(manifest: Manifest) -> str | None:
    """How many inputs a narrower interval takes, where the present one is wide."""
    robust = manifest.metrics.robust_accuracy
    if (
        not bounded(manifest)
        or manifest.until is not None  # whose intervals are of another kind
        or robust.value is None
        or robust.low is None
        or robust.high is None
        or robust.high - robust.low <= WIDE
    ):
        return None
    now = f"{100 * (robust.high - robust.low):.1f}"
    return (
        f"For a 95 % interval of {100 * WIDE:g} points (now {now}), measure about "
        f"{samples_for(WIDE, robust.value):,} inputs instead of {robust.n:,}."
    )


def worst_group(manifest: Manifest) -> str:
    """The group of the lowest robust accuracy; empty where rows have no groups."""
    found = manifest.metrics.worst_group
    if found is None:
        return ""
    robust = found.robust_accuracy
    return (
        f"The least robust of {len(manifest.metrics.per_group)} groups is “{found.name}”: the "
        f"model stays right on {percent(robust.value)} of its {_inputs(robust.n)} (95 % interval "
        f"{span(robust)})."
    )


def corruptions(manifest: Manifest) -> str:
    """What is left of the accuracy under common corruptions; empty where these were not asked
    for."""
    found = manifest.metrics.corruptions
    if found is None:
        return ""
    if found.mean_accuracy.value is None:
        return "No input was measured under corruptions."
    said = (
        f"Under common corruptions the mean accuracy is {percent(found.mean_accuracy.value)} "
        f"(95 % interval {span(found.mean_accuracy)})"
    )
    if found.relative_drop is not None:
        said += f", a relative drop of {percent(found.relative_drop)} from clean inputs"
    said += "."
    if found.mce is not None and manifest.corruptions is not None:
        said += f" The mCE is {100 * found.mce:.1f} against {manifest.corruptions.baseline}."
    return said


def mean(points: Sequence[CorruptionPoint]) -> float | None:
    """Of the severities of one kind."""
    known = [p.accuracy.value for p in points if p.accuracy.value is not None]
    if not known or len(known) < len(points):
        return None
    return sum(known) / len(known)


def span(interval: Interval) -> str:
    """The bounds alone: `5.0 to 8.1 %`."""
    if interval.low is None or interval.high is None:
        return NONE
    return f"{100 * interval.low:.1f} to {percent(interval.high)}"


def is_image(shape: Sequence[int], layout: str) -> bool:
    return len(shape) == 3 and shape[{"nhwc": -1}.get(layout, 0)] in (1, 3)


def class_name(manifest: Manifest, label: int) -> str:
    if label < 0:
        return {REFUSED: "refused"}.get(label, "no prediction")
    return manifest.data.class_name(label)


def capability(manifest: Manifest) -> str:
    """What the adversary may do, to follow `may`."""
    said = _capability(manifest)
    if "limits=" in manifest.threat.text:
        said += "; eps has a scale, or a mask, for each value"
    if manifest.threat.table is not None:
        said += ", in the units of the table's features; rows obey its schema"
    return said


def _capability(manifest: Manifest) -> str:
    threat = manifest.threat
    if manifest.model.transformation is not None and threat.norm == "linf":
        name, _, bounds = spec.call(manifest.model.transformation)
        low, high = manifest.model.bounds
        share = 2 * threat.eps / (high - low)
        said = MOVEMENTS[name].format(**{what: share * most for what, most in bounds.items()})
        plural = share * bounds.get("pixels", 0) != 1
        return said.replace("pixel(s)", "pixels" if plural else "pixel")
    if not bounded(manifest):
        return f"change an input by any amount, measured in {threat.norm}"
    phrase = NORMS.get(threat.norm, "change an input by up to {eps} in " + threat.norm)
    phrase = GROUPS.get(threat.group or "", phrase)
    if threat.grid:
        phrase += ", to values that an 8-bit image file can hold"
    return phrase.format(unit=_unit(manifest.model), eps=eps(threat.eps))


def bounded(manifest: Manifest) -> bool:
    """Whether the threat has a finite eps; else the smallest changes were asked for."""
    return math.isfinite(manifest.threat.eps)


TARGETS = {
    "least-likely": "the answer that the model scores lowest",
    "random": "an answer drawn at random for each input",
}


def target_answer(manifest: Manifest) -> str | None:
    """The answer that a targeted adversary wants; None: any wrong one."""
    threat = manifest.threat
    if threat.targets is not None:
        return TARGETS.get(threat.targets, "the answer given for each input")
    if threat.target is None:
        return None
    return f"the answer “{class_name(manifest, threat.target)}”"


def goal(manifest: Manifest) -> str:
    answer = target_answer(manifest)
    if answer is None:
        return "Untargeted: any wrong answer is a success."
    return f"Targeted: only {answer} is a success. Inputs whose true class it is are left out."


def headline(manifest: Manifest) -> str:
    """What a reader needs first: how many inputs are right, and how many stay right."""
    m = manifest.metrics
    clean, robust = m.clean_accuracy, m.robust_accuracy
    if clean.value is None or robust.value is None:
        return "No input was measured, so there is no figure."
    start = (
        f"Without an attack the model is right on {percent(clean.value)} of {_inputs(clean.n)}. "
    )
    if not bounded(manifest):
        return start + distances(manifest)
    answer = target_answer(manifest)
    who, stays = "an adversary", "it stays right on"
    if answer is not None:
        who += f" who wants {answer}"
        stays = "it is right and was not brought to that answer on"
    proved = m.certified_accuracy
    if proved is not None and proved.value is not None:
        return f"{start}When {who} may {capability(manifest)}, {_bracket(manifest, proved.value)}."
    most = "at most " if manifest.verdict.status == "upper-bound" and robust.value else ""
    said = (
        f"{start}When {who} may {capability(manifest)}, {stays} {most}{percent(robust.value)} of "
        f"the same inputs (95 % interval {span(robust)})"
    )
    if m.counts.get("broken", 0):
        return f"{said}."
    return f"{said}: no attack {'that ran broke any' if manifest.trials else 'ran'}."


def distances(manifest: Manifest) -> str:
    """How large the smallest changes are that were found."""
    sizes, norm = manifest.metrics.sizes, manifest.threat.norm
    if not sizes.n:
        return "No change was found that fools it."
    at = {share: number(size) for share, size in sizes.quantiles.items()}
    return (
        f"On {_inputs(sizes.n)} a change was found that fools it. The smallest found has a median "
        f"size of {number(sizes.median)} in {norm}; half of them are between {at['0.25']} and "
        f"{at['0.75']}."
    )


def _bracket(manifest: Manifest, proved: float) -> str:
    """Between what the robust accuracy lies, where rows were certified."""
    if not manifest.trials:
        return f"robust accuracy is at least {percent(proved)} (proved); no attack was run"
    robust = manifest.metrics.robust_accuracy.value
    if not robust:
        return "robust accuracy is 0 %: no input stayed right"
    if not proved:
        return (
            f"robust accuracy is at most {percent(robust)} (not broken); no input was proved to "
            "stay right"
        )
    if robust == proved:
        return f"robust accuracy is {percent(proved)} (all that was not broken is proved)"
    return (
        f"robust accuracy lies between {percent(proved)} (proved) and {percent(robust)} "
        "(not broken)"
    )


def _proofs(manifest: Manifest) -> list[str]:
    """What a reader of the bracket has to know besides; nothing where no row was certified."""
    m, asked = manifest.metrics, manifest.certification
    if m.certified_accuracy is None or m.certified_accuracy.value is None or asked is None:
        return []
    by = ", ".join(f"{m.certified_by.get(name, 0):,} by {name}" for name in asked.methods)
    said = (
        f"Proved: {_inputs(m.counts.get('certified', 0))} ({by}); 95 % interval "
        f"{span(m.certified_accuracy)}."
    )
    if not manifest.trials:
        return [said]
    return [f"{said} Not broken: 95 % interval {span(m.robust_accuracy)}."]


def _stopped(manifest: Manifest) -> list[str]:
    """After how many rows a run ended that might end before its last, and why."""
    if (until := manifest.until) is None:
        return []
    rows = until.rows[1] - until.rows[0]
    if until.width is None:
        gates = " and ".join(until.gates)
        why = f"the interval decides the gate{'s' * (len(until.gates) > 1)} {gates}"
    else:
        why = f"the interval is at most {100 * until.width:g} points wide"
    if until.stopped is None:
        end = f"took all {rows:,}, for at no point {why}"
    else:
        end = f"stopped after {until.stopped:,} of {rows:,} rows, where {why}"
    return [
        f"The run took rows in random order and {end}. Intervals are those of a confidence "
        "sequence, which hold wherever one stops, and are wider for it."
    ]


def notes(manifest: Manifest) -> list[str]:
    """What a reader of the headline has to know besides."""
    m = manifest.metrics
    about = (_smoothed(manifest), _right(manifest.model), _threshold(manifest))
    said = [part for part in about if part]
    said += _stopped(manifest)
    said += _proofs(manifest)
    if m.refusals is not None:
        said.append(
            f"The model may refuse an input. It refuses {percent(m.refusals.clean.value)} of the "
            "clean inputs, which count as wrong. On "
            f"{percent(m.refusals.attacked.value)} of those that it had right, it refuses what "
            "the attacks found, so they count as robust."
        )
    lost = m.counts.get("unstable", 0) + m.counts.get("failed", 0)
    if relations := without_relations(manifest):
        said.append(relations)
    if lost:
        said.append(
            f"On {_inputs(lost)} the answers are unstable or failed; these do not count as robust."
        )
    if skipped := m.counts.get("skipped", 0):
        said.append(f"Not attacked, and in no share: {_inputs(skipped)} more.")
    return said


def without_relations(manifest: Manifest) -> str:
    """What the relations of a table's schema hold back; empty where nothing was searched
    without."""
    found = manifest.metrics.relations
    if found is None or not found.searched:
        return ""
    said = (
        f"Without the relations of the schema at most {percent(found.robust_accuracy.value)} stay "
        "right: the same attacks, where relations and formulas need not hold but types, groups, "
        f"bounds and eps do, break {found.broken:,} of the {_inputs(found.searched)} that held"
    )
    if not found.broken:
        return f"{said}. The relations hold nothing back that the attacks could find."
    name, times = next(iter(found.by_relation.items()))
    return (
        f"{said}. So many are held by the relations alone, most of all by {name}, which "
        f"{times:,} of these {found.broken:,} examples break."
    )


def leaves_out(manifest: Manifest) -> str:
    """Which inputs some trials do not attack; empty where each attacks all that are left."""
    said = {
        "max_margin=": "With max_margin=r a trial attacks only inputs that were close to being "
        "broken: a trial before it had brought the margin down to at most r times that of the "
        "clean input.",
        "unless=": "With unless='name' it leaves those that the attack of that name has searched.",
    }
    specs = [trial.spec for trial in manifest.trials]
    return " ".join(text for option, text in said.items() if any(option in s for s in specs))


def remaining(manifest: Manifest) -> str:
    """What one more restart of the last random attack would break; empty where nothing tells."""
    left = manifest.metrics.survivors
    if left is None or left.attacked <= left.broken:
        return ""
    most = math.ceil(left.high or 0)
    about = round(left.expected or 0)
    expected = f"about {_inputs(about)} more, and " if about else ""
    return (
        "If the last random attack ran once more, it would break "
        f"{expected}at most {_inputs(most)}{'' if about else ' more'} (95 % confidence)."
    )


def outputs(model: ModelInfo) -> str:
    """What the model's outputs are."""
    return {"classes": "classes", "multilabel": "labels"}.get(model.task, "outputs")


def _right(model: ModelInfo) -> str:
    """What counts as right, where that is no class."""
    if model.task == "classes":
        return ""
    if model.task == "multilabel":
        return f"Right means all {model.classes:,} labels of an input."
    name, _, said = spec.call(model.task)
    if name == "detection":
        return (
            f"Right means that {_unharmed(said)} (boxes of a score above {said['score']:g}, which "
            f"find an object of their class at an overlap of {said['iou']:g})."
        )
    if name != "regression":
        return f"Right is as {model.task} says."
    tolerance = said["tolerance"]
    of = {1: "the output"}.get(model.classes, f"each of {model.classes:,} outputs")
    return f"Right means {of} within {number(tolerance)} of the truth."


def _unharmed(said: Mapping[str, Any]) -> str:
    """What holds of an image where a detector is right, with these options of its task."""
    of = {"any": "each", "all": "one at least"}[said["lose"]]
    few = f"fewer than {said['ghosts']:,} more boxes find no object than without an attack"
    still = f"of the objects found without an attack {of} is still found"
    return {
        "vanish": still,
        "mislabel": f"of the objects found without an attack {of} keeps its class",
        "ghost": few,
        "all": f"{still}, and {few}",
    }[said["goal"]]


def _smoothed(manifest: Manifest) -> str:
    """What the model is that was judged, where it is a smoothed one."""
    if (text := manifest.model.smoothing) is None:
        return ""
    name, _, said = spec.call(text, "smoothing")
    noise = {"gaussian": "Gaussian noise of sigma", "uniform": "uniform noise of half-width"}
    abstained = manifest.metrics.abstentions
    return (
        f"The model judged is the given one, smoothed with {noise.get(name, name)} "
        f"{number(said['sigma'])}: its answer is the class that {said['first']:,} votes under "
        f"noise choose and {said['draws']:,} further ones show to have a majority. It abstains on "
        f"{percent(abstained and abstained.value)} of the inputs, which count as wrong. Each proof "
        f"holds but for a chance of {number(said['alpha'])}."
    )


def _threshold(manifest: Manifest) -> str:
    """From which probability on a model decides for class 1, where that is not a half."""
    at, name = manifest.model.threshold, class_name(manifest, 1)
    return "" if at is None else f"The model decides for “{name}” from a probability of {at:g} on."


def _inputs(n: int) -> str:
    return f"{n:,} input{'s' * (n != 1)}"


def _unit(model: ModelInfo) -> str:
    return "pixel" if is_image(model.shape, model.layout) else "value"


def duration(seconds: float) -> str:
    """A length of time as a person says it."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    whole = max(round(seconds), 1)
    return f"{whole} second{'s' * (whole > 1)}"
