"""The input contract: checked once, before any attack. What is wrong is refused by name; what is
odd is noted."""

from __future__ import annotations

import numpy as np
import torch

from holdfast.attacks.shared.pool import spread
from holdfast.data.source import Source
from holdfast.errors import InputError
from holdfast.evaluation.output_kind import find_reading, saturated
from holdfast.memory import rows_at_once, rows_to_try
from holdfast.runs.manifest import Finding
from holdfast.targets.batch import Batch, read
from holdfast.targets.smoothed import Smoothed
from holdfast.targets.target import FLOAT32, Access, Bounds, Target, sealed
from holdfast.targets.truth import WithTruth

LOOK = 256  # rows that the model is asked about
CHECKED = 64  # rows from all parts of the data whose labels are checked too
FEW = 16  # rows that are looked at of large inputs


def check_data(data: Source, bounds: Bounds, *, boxed: bool = True) -> None:
    """Refuse data that cannot be what the bounds say: all rows are read, none is kept.

    The bounds say nothing of the rows' context; nor of rows that a schema holds to its own, where
    they are not `boxed`.

    Raises:
        InputError: not finite, out of bounds (with the likely cause).
    """
    low, high, total, squares, count, whole = np.inf, -np.inf, 0.0, 0.0, 0, True
    stride = rows_at_once(data.shape)
    for start in range(0, len(data), stride):
        x, _ = data.rows(start, min(start + stride, len(data)))
        for part in (*data.context(start, start + len(x)).values(), x):
            _check_finite(part, start, data.name)
        if bounds.each is not None and boxed:
            _check_each(torch.from_numpy(x), bounds, start, data.name)
        low, high = min(low, float(x.min())), max(high, float(x.max()))
        whole = whole and bool((x == np.rint(x)).all())
        total, count = total + float(x.sum(dtype=np.float64)), count + x.size
        with np.errstate(over="ignore"):  # such inputs are refused below
            squares += float(np.power(x, 2, dtype=np.float64).sum())
    if not boxed:
        return
    slack = 1e-6 * (bounds.high - bounds.low)
    span = (
        f"inputs span [{low:.4g}, {high:.4g}] but the bounds are [{bounds.low:g}, {bounds.high:g}]."
    )
    if low < bounds.low - slack or high > bounds.high + slack:
        mean = total / count
        spread = max(squares / count - mean * mean, 0) ** 0.5
        raise InputError(f"{span} {_likely(low, high, mean, spread, bounds, whole=whole)}")
    if bounds.high >= 128 and high <= 1:
        raise InputError(
            f"{span} They look scaled to [0, 1] already: give bounds of 0 and 1, or pass bytes."
        )


def _check_finite(x: np.ndarray, start: int, name: str) -> None:
    finite = np.isfinite(x)
    if not finite.all():
        row = start + int(np.argmin(finite.reshape(len(x), -1).all(1)))
        kind = "NaN" if np.isnan(x).any() else "infinity"
        raise InputError(
            f"row {row} of {name} holds {kind}; inputs must be finite. Drop or repair such rows."
        )


def _check_each(x: torch.Tensor, bounds: Bounds, start: int, name: str) -> None:
    """Raises InputError: a row is out of the bounds of its features."""
    low, high = (side.flatten() for side in bounds.sides(x))
    x = x.flatten(1)
    slack = 1e-6 * (high - low)
    out = (x < low - slack) | (x > high + slack) if x.shape[1] == len(low) else torch.zeros(0)
    if bool(out.any()):
        row, at = (int(i) for i in out.nonzero()[0])
        raise InputError(
            f"row {start + row} of {name} has {float(x[row, at]):.4g} at feature {at}, whose "
            f"bounds are [{float(low[at]):g}, {float(high[at]):g}]."
        )


def check_model(target: Target, data: Source) -> list[Finding]:
    """Refuse a model that does not fit the data; note what is odd. Looks at the source's first
    rows, of a smoothed model at the one that is smoothed.

    Raises:
        InputError: the layout is wrong, or the model fails on the data.
    """
    target.bind(data.shape)
    if isinstance(target, Smoothed):
        return check_model(target.inner, data)
    look = min(rows_to_try(data.shape, LOOK, FEW), len(data))
    rows = target.batcher.place(read(data, 0, look)[0])
    findings: list[Finding] = []
    if target.identity.was_training:
        findings.append(
            Finding(
                check="train_mode",
                severity="info",
                text="The model was in train mode; it is measured in eval mode.",
            )
        )
    findings += [
        Finding(check=check, severity="info", text=text)
        for check, text in (*target.identity.remarks, *data.remarks)
    ]
    z, random = _randomised(target, rows)
    findings += random
    if target.identity.rewrites:
        text = (
            "The model changes its input in place. It is given a copy each time, so that neither "
            "the data nor an adversarial example is changed."
        )
        findings.append(Finding(check="changes_input", severity="info", text=text))
    if target.access >= Access.SCORES:
        before = target.head.probabilities
        findings += find_reading(target, data, z)
        if bool(target.head.probabilities) != bool(before):
            with sealed(0):
                z = target.batcher.in_parts(target.scores, rows)
        findings += saturated(target, z)
        top = max(z[z.isfinite()].abs().tolist(), default=0.0)
        if top > 50 and (target.head.reads or not target.head.probabilities):
            findings.append(
                Finding(
                    check="logit_scale",
                    severity="info",
                    text=(
                        "The logits are large: a plain cross-entropy would vanish in float32. Ours "
                        "does not."
                    ),
                    value=top,
                    threshold=50.0,
                )
            )
    return findings


def check_range(target: Target, data: Source) -> None:
    """Refuse inputs in [0, 1] to a model that takes bytes, and the other way round: it would look
    broken, not wrong.

    Asked only where the model is right on fewer than half of some rows from all parts of the data,
    and only of models that give gradients: they are at hand, where each question to an endpoint
    costs.

    Raises:
        InputError: it is right far more often on the same rows in the other range.
    """
    box = target.bounds
    strange = (
        box.low < 0 or 1 < box.high < 128 or target.inputs.context or isinstance(target, WithTruth)
    )
    if strange or target.access < Access.GRADIENTS:
        return
    batch, y = spread(data, rows_to_try(data.shape, CHECKED, FEW))
    rows, y = target.batcher.place(batch.x), y.to(target.batcher.device)
    factor = 255 if box.high <= 1 else 1 / 255
    if len(y.unique()) < 2 or (here := _right(target, rows, y)) >= 0.5:
        return
    if (there := _right(target, rows * factor, y)) <= max(0.5, here + 0.3):
        return
    said = (
        f"the model's accuracy on {len(rows)} rows of {data.name} in [{box.low:g}, {box.high:g}] "
        f"is {here:.0%} (mean over the classes), but {there:.0%} on the same rows "
    )
    if factor > 1:
        raise InputError(
            f"{said}times 255: it takes bytes, perhaps since it begins with a Rescaling(1/255). "
            "Give "
            f'--bounds 0,255 and bytes as data; for these data, --preprocess "normalize(0, 1/255)".'
        )
    raise InputError(
        f"{said}divided by 255: it takes inputs in [0, 1]. Leave --bounds out, and divide by 255 "
        f"what is not stored as bytes."
    )


def _right(target: Target, x: torch.Tensor, y: torch.Tensor) -> float:
    """The accuracy on x [n, *shape] as the mean over the classes in y [n]: one constant answer is
    no success."""
    with sealed(0):
        hit = target.batcher.in_parts(target.labels, x) == y
    return float(torch.stack([hit[y == label].double().mean() for label in y.unique()]).mean())


def _randomised(target: Target, x: Batch) -> tuple[torch.Tensor, list[Finding]]:
    """The model's answers, and whether it answers otherwise when its random state is another."""
    ask, answers = target.labels, []
    if target.access >= Access.SCORES:
        ask = target.scores
    for seed in (0, 1):
        with sealed(seed):
            answers.append(target.batcher.in_parts(ask, x))
    # labels as numbers
    first, second = (torch.nan_to_num(1.0 * z).view(len(x), -1) for z in answers)
    apart = (first - second).abs().amax(1) > 1e-3 * first.abs().amax().clamp_min(1e-6)
    if not (share := float(apart.double().mean())):
        return answers[0], []
    if target.cost.draws > 1:
        text = (
            f"The model is randomised: its mean over {target.cost.draws} draws was attacked and "
            "judged."
        )
        info = Finding(check="randomised", severity="info", text=text, value=share, threshold=0)
        return answers[0], [info]
    text = (
        f"The model is randomised: the scores of {share:.0%} of the rows changed when asked again. "
        "An attack that sees "
        "one draw is misled, and one lucky draw is no success: measure its mean with --eot 20 (in "
        f"Python: ExpectationOverTransformation)."
    )
    amber = Finding(check="randomised", severity="amber", text=text, value=share, threshold=0)
    return answers[0], [amber]


def randomised(noted: list[Finding]) -> bool:
    return any(finding.check == "randomised" for finding in noted)


def averaged(noted: list[Finding]) -> list[Finding]:
    """What is noted of a randomised model that is measured by its mean."""
    return [
        f.model_copy(update={"severity": "amber"}) if f.check == "randomised" else f for f in noted
    ]


def _likely(
    low: float, high: float, mean: float, spread: float, bounds: Bounds, *, whole: bool
) -> str:
    if max(-low, high) > FLOAT32:
        return "float32 does not hold such numbers: repair these rows, or give other units."
    if whole and low >= 0 and high > 255:
        return "They are whole numbers: if they are tokens of text, such models are not supported."
    if bounds.high <= 1 and low >= 0 and 1.5 < high <= 255:
        return (
            "They look like bytes: divide by 255, or give --bounds 0,255 if the model takes bytes."
        )
    if low < 0 and (abs(mean) < 1 and 0.3 < spread < 3):
        sounds = " Sounds take --bounds -1,1." * (low >= -1 and high <= 1)
        return (
            'They look normalised: pass raw inputs and give --preprocess "normalize(mean, std)" '
            f"(in Python: wrap(..., preprocess=Normalize(mean, std))).{sounds}"
        )
    if -1 <= low < 0 and high <= 1:
        return "Give the range that inputs can really have: --bounds -1,1 for sounds."
    return f"Give the range that inputs can really have: --bounds {low:.4g},{high:.4g}."
