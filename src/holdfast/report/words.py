"""The sentences and number formats that the page and the terminal share."""

from __future__ import annotations

import math
from collections.abc import Sequence

from holdfast import spec
from holdfast.decisions import REFUSED
from holdfast.runs.manifest import CorruptionPoint, Interval, Manifest, ModelInfo
from holdfast.runs.metrics import samples_for

NONE = "–"

NORMS = {
    "linf": "change every {unit} by up to {eps}",
    "l2": "move an input by up to {eps} in Euclidean length (L2)",
    "l1": "make changes to an input that add up to {eps} at most (L1)",
    "l0": "change up to {eps} values of an input in any way (L0)",
}

MOVEMENTS = {
    "rotation": "turn an image by up to {degrees:g} degrees and shift it by up to {pixels:g} "
    "pixels each way",
    "patch": "set one square of {side:g} x {side:g} pixels, anywhere in an image, to anything",
    "flow": "take each pixel from up to {pixels:g} pixels away, each way",
}

VERDICTS = {
    "trusted": "No check found a sign that the attacks failed. The figure can be quoted, together "
    "with its threat.",
    "upper-bound": "A check found that the attacks may not have done all they could: the true "
    "robust accuracy may be lower. Quote the figure as “at most”.",
    "unreliable": "A check contradicts the figure. Do not quote it before the red findings are "
    "resolved.",
}


def verdict(manifest: Manifest) -> str:
    """What the verdict means, and why it was given."""
    said = manifest.verdict
    if said.status == "trusted":
        return VERDICTS[said.status]
    return f"{said.reason} {VERDICTS[said.status]}".strip()


STATUSES = {
    "robust": "right, and not broken by what ran",
    "certified": "right, and proven to stay so within eps",
    "broken": "right at first; a legal change that fools the model is stored and was judged anew",
    "wrong": "misclassified before any attack",
    "unstable": "the label flips with batch size or on repeating; does not count as robust",
    "failed": "non-finite or refused outputs; does not count as robust",
    "skipped": "not attacked, since the budget was spent; in no figure",
}


def printable(text: object) -> str:
    """Text without control characters: an untrusted name must not steer a terminal or break a
    figure."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def percent(share: float | None) -> str:
    if share is None:
        return NONE
    return f"{share:.1%}".replace("%", " %")


def number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return str(value)
    if value == int(value) or abs(value) >= 1e4:
        return f"{value:,.0f}"
    return f"{value:,.4g}"


def queries(manifest: Manifest) -> str:
    """What success cost in queries, where nothing else was asked for; empty where nothing fell."""
    m = manifest.metrics
    if manifest.model.access == "gradients" or m.median_queries is None:
        return ""
    shares = ", ".join(f"{number(p.queries)}: {percent(p.success.value)}" for p in m.queries)
    return (
        f"Queries: the median of the inputs that fell is {number(m.median_queries)}; success by "
        f"{shares}"
    )


WIDE = 0.05  # an interval of more than so much is worth a word


def samples_needed(manifest: Manifest) -> str | None:
    """How many inputs a narrower interval takes, where the present one is wide."""
    robust = manifest.metrics.robust_accuracy
    if (
        not bounded(manifest)
        or robust.value is None
        or robust.low is None
        or robust.high is None
        or robust.high - robust.low <= WIDE
    ):
        return None
    return (
        f"An interval of {100 * WIDE:g} points takes about {samples_for(WIDE, robust.value):,} "
        f"inputs; these were {robust.n:,}."
    )


def worst_group(manifest: Manifest) -> str:
    """The group that stands least; empty where rows have no groups."""
    found = manifest.metrics.worst_group
    if found is None:
        return ""
    robust = found.robust_accuracy
    return (
        f"The worst of {len(manifest.metrics.per_group)} groups is “{found.name}”: "
        f"{percent(robust.value)} robust (95 % interval {span(robust)}, of {robust.n:,})."
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
        said += f", a relative drop of {percent(found.relative_drop)}"
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
        said += ", times a scale and within a mask of each value's own"
    return said


def _capability(manifest: Manifest) -> str:
    threat = manifest.threat
    if manifest.model.transformation is not None and threat.norm == "linf":
        name, _, bounds = spec.call(manifest.model.transformation)
        low, high = manifest.model.bounds
        share = 2 * threat.eps / (high - low)
        return MOVEMENTS[name].format(**{what: share * most for what, most in bounds.items()})
    if not bounded(manifest):
        return f"change an input by any amount, measured in {threat.norm}"
    phrase = NORMS.get(threat.norm, "change an input by up to {eps} in " + threat.norm)
    if threat.grid:
        phrase += ", to what a file of 8 bits holds"
    return phrase.format(unit=_unit(manifest.model), eps=spec.number(threat.eps))


def bounded(manifest: Manifest) -> bool:
    """Whether the threat has a finite eps; else the smallest changes were asked for."""
    return math.isfinite(manifest.threat.eps)


TARGETS = {
    "least-likely": "the class that the model gave the lowest score",
    "random": "a class drawn at random for each input",
}


def target_answer(manifest: Manifest) -> str | None:
    """The answer that a targeted adversary wants; None: any wrong one."""
    threat = manifest.threat
    if threat.targets is not None:
        return TARGETS.get(threat.targets, "the class given for each input")
    if threat.target is None:
        return None
    return f"“{class_name(manifest, threat.target)}”"


def goal(manifest: Manifest) -> str:
    answer = target_answer(manifest)
    if answer is None:
        return "Untargeted: any wrong answer is a success."
    return f"Targeted: only the answer {answer} is a success. Inputs of that class are left out."


def distances(manifest: Manifest) -> str:
    """How far the smallest changes found are."""
    sizes, norm = manifest.metrics.sizes, manifest.threat.norm
    if not sizes.n:
        return "no change that fools the model was found."
    at = {share: number(size) for share, size in sizes.quantiles.items()}
    return (
        f"the smallest change found that fools it has a median size of {number(sizes.median)} in "
        f"{norm} (half of them between {at['0.25']} and {at['0.75']}), over {sizes.n:,} inputs."
    )


def headline(manifest: Manifest) -> str:
    """The sentence that a reader needs first, made of the figures."""
    m = manifest.metrics
    clean, robust = m.clean_accuracy, m.robust_accuracy
    if clean.value is None or robust.value is None:
        return "No input was measured, so there is no figure."
    start = f"Of {clean.n:,} inputs the model gets {percent(clean.value)} right; "
    if not bounded(manifest):
        return start + distances(manifest)
    start += f"an adversary who may {capability(manifest)}"
    if (answer := target_answer(manifest)) is not None:
        start += f", and wants the answer {answer},"
    least = {"upper-bound": " or less"}.get(manifest.verdict.status, "")
    figure = f"{percent(robust.value)}{least} (95 % interval {span(robust)})"
    if m.counts.get("broken", 0):
        return f"{start} breaks it down to {figure}."
    return f"{start} broke none of these in what ran; robust accuracy is {figure}."


def notes(manifest: Manifest) -> list[str]:
    """What a reader of the headline has to know besides."""
    m = manifest.metrics
    said = [part for part in (_right(manifest.model),) if part]
    if m.certified_accuracy is not None and m.certified_accuracy.value is not None:
        said.append(
            f"For {percent(m.certified_accuracy.value)} it is proven that no such change exists."
        )
    if m.refusals is not None:
        said.append(
            f"The model may refuse an input: it refuses {percent(m.refusals.clean.value)} of the "
            "clean ones, which "
            f"count as wrong, and {percent(m.refusals.attacked.value)} of those it had right stood "
            f"because what was found against them is refused."
        )
    lost = m.counts.get("unstable", 0) + m.counts.get("failed", 0)
    if lost:
        said.append(f"Unstable or failing answers, which do not count as robust: {_inputs(lost)}.")
    if skipped := m.counts.get("skipped", 0):
        said.append(f"Not attacked, and in no figure: {_inputs(skipped)} more.")
    if m.survivors is not None and m.survivors.attacked > m.survivors.broken:
        about, most = (
            number(float(f"{value or 0:.2g}")) for value in (m.survivors.expected, m.survivors.high)
        )
        said.append(
            f"Another round of the last random trial would break about {about} more, at most "
            f"{most} (95 %)."
        )
    return said


def outputs(model: ModelInfo) -> str:
    """What the model's outputs are."""
    return {"classes": "classes", "multilabel": "labels"}.get(model.task, "outputs")


def _right(model: ModelInfo) -> str:
    """What counts as right, where that is no class."""
    if model.task == "classes":
        return ""
    if model.task == "multilabel":
        return f"Right means all {model.classes:,} labels of an input."
    tolerance = spec.call(model.task)[2]["tolerance"]
    of = {1: "the output"}.get(model.classes, f"each of {model.classes:,} outputs")
    return f"Right means {of} within {number(tolerance)} of the truth."


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
