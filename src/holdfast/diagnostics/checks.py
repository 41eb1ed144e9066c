"""Signs, seen before the protocol, that its attacks will fail; and the stronger trials that answer
each.

Pure functions of the probe's answers. A sign that is answered by trials of its own is amber:
the figure is the worst case after them. One that nothing answers is red.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from holdfast.attacks import parse_trial
from holdfast.attacks.attack import check_fit
from holdfast.attacks.trial import Trial
from holdfast.diagnostics.gradient_sources import GradientSources
from holdfast.diagnostics.probe import PLANTED, Answers, least
from holdfast.errors import HoldfastError
from holdfast.runs.manifest import Finding, Severity
from holdfast.targets.target import Target
from holdfast.targets.truth import WithTruth
from holdfast.threats.threat import Threat

# protocols that stronger trials are added to; a list to compare with stays itself
FOLLOWED = ("standard", "thorough")
PROBED = (*FOLLOWED, "autoattack", "autoattack-plus", "autoattack-rand")


def probed(protocol: str, budget: int | None, target: Target, threat: Threat) -> bool:
    """Whether a few rows are probed before a protocol of this name; `evaluate` and `verify` ask
    here."""
    alone = not target.inputs.context or (isinstance(target, WithTruth) and target.rule.structured)
    return threat.bounded and protocol in PROBED and budget is None and alone and threat.additive


NO_EPS = Finding(
    check="no_eps",
    severity="amber",
    text="The sizes are the smallest that were found, and the probe of the attacks needs a "
    "finite eps: the true ones may be smaller. Evaluate again at an eps of interest.",
)


MISSED = 0.2  # of the planted examples: so many may be hard to find

_SEARCH = (
    "square(steps=1000)",
    "sparsers(steps=1000)",
    "rays(steps=600)",
    "cgba(steps=10)",
    'apgd(steps=50, loss="margin", gradient="surrogate")',
)
_MASKED = (
    'apgd(steps=50, loss="margin", restarts=2, gradient="bpda")',
    'apgd(steps=30, loss="margin", gradient="smoothed")',
    'sigmazero(steps=200, gradient="bpda")',
    *_SEARCH,
)
# What answers a sign, for all norms: those trials are taken that fit the threat and the target.
FOLLOW_UPS: dict[str, tuple[str, ...]] = {
    "zero_gradient": _MASKED,
    "non_finite_gradient": _MASKED,
    "wrong_gradient": _MASKED,
    "turning_gradient": _MASKED,
    "non_smooth": _MASKED,
    "one_hot": (
        'apgd(steps=50, loss="margin", gradient="bpda")',
        'apgd(steps=100, loss="mifpe")',
    ),
    "unbounded": _MASKED,
    "larger_eps": _MASKED,
    "one_step": ('pgd(steps=100, step_size=0.05, loss="margin", restarts=3)', *_MASKED),
    "more_steps": ('apgd(steps=300, loss="mifpe")', 'apgd(steps=100, loss="margin", restarts=3)'),
    "black_box": _SEARCH,
    "labels": _SEARCH,
    "binarisation": _MASKED,
}


# Where a protocol goes straight through the steps that are their cause, these are answered.
_GRADIENTS = ("zero_gradient", "wrong_gradient", "turning_gradient")
# What a sign shows as: how attacks succeed is explained by what the gradient is, and the later of
# the list by the earlier.
_ATTACKS = (
    "more_steps",
    "one_step",
    "black_box",
    "labels",
    "unbounded",
    "larger_eps",
    "binarisation",
)
EXPLAINS: dict[str, tuple[str, ...]] = {
    "non_smooth": (*_GRADIENTS, *_ATTACKS),
    "stepped": (*_GRADIENTS, *_ATTACKS),
    "non_finite_gradient": ("wrong_gradient", "turning_gradient", *_ATTACKS),
    "one_hot": ("zero_gradient", *_ATTACKS),
    "zero_gradient": _ATTACKS,
    "turning_gradient": ("wrong_gradient", *_ATTACKS),
    "wrong_gradient": _ATTACKS,
    **{check: _ATTACKS[i + 1 :] for i, check in enumerate(_ATTACKS)},
}


def findings_of(a: Answers) -> list[Finding]:
    """Every finding that the answers give, red until something answers it; what another explains
    goes into that one."""
    if not len(a.ids):
        return []
    found = [f for check in CHECKS for f in check(a)]
    bad = {f.check for f in found if f.severity != "info"}
    explained = {shown for check in bad for shown in EXPLAINS[check]}
    return [_cause(f, bad) for f in found if f.severity == "info" or f.check not in explained]


def _cause(f: Finding, bad: set[str]) -> Finding:
    """The finding, with those that it explains."""
    shown = [check for check in EXPLAINS[f.check] if check in bad]
    if f.severity == "info" or not shown:
        return f
    text = f"{f.text} It shows as {', '.join(shown)} too."
    return f.model_copy(update={"explains": shown, "text": text})


def follow(
    found: Sequence[Finding], protocol: str, threat: Threat, sources: GradientSources
) -> list[Trial]:
    """The trials that answer these findings after a protocol of this name, each once, in the order
    of the first sign that asks for it."""
    return [trial for trial in follow_ups(found, protocol) if _fits(trial, threat, sources)]


def follow_ups(found: Sequence[Finding], protocol: str) -> list[Trial]:
    """As `follow`, whether or not they fit the threat and the target."""
    if protocol not in FOLLOWED:
        return []
    checks = [
        check
        for f in found
        if f.severity != "info"
        for check in (f.check, *f.explains)
        if f.check != "stepped" or check not in _GRADIENTS
    ]
    texts = dict.fromkeys(text for check in checks for text in FOLLOW_UPS.get(check, ()))
    return [parse_trial(text) for text in texts]


def answered(found: Sequence[Finding], trials: Sequence[Trial]) -> list[Finding]:
    """The findings, amber where one of these trials answers them."""
    run = {trial.write(whole=True) for trial in trials}

    def one(f: Finding) -> Finding:
        texts = {parse_trial(text).write(whole=True) for text in FOLLOW_UPS.get(f.check, ())}
        if f.severity == "red" and texts & run:
            return f.model_copy(update={"severity": "amber"})
        return f

    return [one(f) for f in found]


def _fits(trial: Trial, threat: Threat, sources: GradientSources) -> bool:
    if not sources.has(trial.gradient) or not trial.attack.works_in(threat.norm):
        return False
    if trial.gradient:
        return True
    try:
        check_fit(trial.attack, sources.target, threat, sources.images(trial.attack))
    except HoldfastError:
        return False
    return True


_STEPS = "Typical of thresholds, rounding, detached code and saturated units."
_STRUCTURED = (
    "Typical of what comes after suppression, a threshold or an argmax: give the raw head, boxes "
    "and scores before non-maximum suppression, or logits of pixels."
)


def _zero_gradient(a: Answers) -> Iterator[Finding]:
    rows = np.zeros(len(a.ids), bool)
    for flags in a.zero.values():
        rows |= flags.any(1)
    if rows.any():
        losses = ", ".join(loss for loss, flags in a.zero.items() if flags.any())
        yield _found(
            a, "zero_gradient", rows, 0, "gradients",
            f"On {rows.sum()} of {len(rows)} rows probed the gradient ({losses}) is exactly "
            "zero, at the input or near it: an attack that follows it does not move.",
            _STRUCTURED if a.structured else _STEPS,
            "AutoAttack's checks; arXiv:1802.00420, section 3.1",
        )  # fmt: skip


def _non_finite_gradient(a: Answers) -> Iterator[Finding]:
    if a.odd is not None and a.odd.any():
        yield _found(
            a, "non_finite_gradient", a.odd, 0, "gradients",
            f"On {a.odd.sum()} of {len(a.odd)} rows probed the gradient is not finite.",
            "Look for a division by zero, a logarithm or a root at zero.", "any",
        )  # fmt: skip


def _wrong_gradient(a: Answers) -> Iterator[Finding]:
    if a.slope is None or not a.zero:
        return
    rows = ~a.zero["margin"][:, 1] & ~(a.slope <= 0.5)
    if rows.mean() > 0.25:
        yield _found(
            a, "wrong_gradient", rows, 0.25, "slope",
            f"On {rows.sum()} of {len(rows)} rows probed the gradient is off by more than half "
            "from what small steps in its own direction give.",
            "The backward pass is not that of the forward pass, or holds on a tiny scale only.",
            "ours: at most 4 % on the sound models of holdfast.testing",
        )  # fmt: skip


def _turning_gradient(a: Answers) -> Iterator[Finding]:
    if a.turn is None or not a.zero:
        return
    seen = ~a.zero["margin"].any(1)
    if seen.any() and (value := float(np.median(a.turn[seen]))) < 0.5:
        yield _found(
            a, "turning_gradient", seen & (a.turn < 0.5), 0.5, "gradients",
            f"The gradient turns within an eighth of eps: the median cosine is {value:.2f}, so a "
            "step leads nowhere.",
            "Shattered gradients, or activations that switch.",
            "ours: at least 0.8 on the sound models of holdfast.testing", value,
        )  # fmt: skip


def _non_smooth(a: Answers) -> Iterator[Finding]:
    if not a.hard:
        return
    if a.stepped:
        yield _found(
            a, "stepped", np.ones(len(a.ids), bool), 0, "gradients",
            f"Steps hide the model's gradient ({', '.join(a.hard)}): the attacks of the protocol "
            "went straight through them, by a gradient that is not the model's own and may miss "
            "examples.",
            "", "arXiv:1802.00420, section 4", severity="amber",
        )  # fmt: skip
        return
    rows = a.broken_by.get("bpda", np.zeros(len(a.ids), bool))
    text = (
        f"Inputs go through steps without a gradient ({', '.join(a.hard)}), but going straight "
        "through them broke no more."
    )
    severity, advice = "info", ""
    if rows.any():
        text = (
            f"Inputs go through steps without a gradient ({', '.join(a.hard)}); straight through "
            f"them, an attack broke {rows.sum()} rows probed that the model's own gradient did "
            "not."
        )
        severity, advice = "red", "Measure with straight-through gradients."
    source = "arXiv:1802.00420, section 4"
    yield _found(a, "non_smooth", rows, 0, "bpda", text, advice, source, severity=severity)


def _one_hot(a: Answers) -> Iterator[Finding]:
    if a.one_hot is not None and a.one_hot.mean() > 0.01:
        yield _found(
            a, "one_hot", a.one_hot, 0.01, "clean",
            f"On {a.one_hot.sum()} of {len(a.one_hot)} rows probed the softmax is exactly "
            "one-hot in float32: a cross-entropy has no gradient there. Losses scaled by the gap "
            "of the scores were used.",
            "Large logits, as of defensive distillation or a scaled head.",
            "arXiv:1607.04311; AutoAttack's checks",
        )  # fmt: skip


def _binarisation(a: Answers) -> Iterator[Finding]:
    source = (
        "arXiv:2206.13991, where it is 5 %; ours: at most 11 % on the sound models of "
        "holdfast.testing"
    )
    if a.planted is None or a.missed is None or a.planted.sum() < PLANTED:
        if a.zero and not a.structured:
            yield _found(
                a, "binarisation", np.zeros(len(a.ids), bool), MISSED, "planted",
                "The binarisation test was not made: it needs a torch module that ends in a linear "
                "layer and does not answer at random, a threat in linf or l2, and features that "
                "tell the ball's edge apart.",
                "", source, severity="info",
            )  # fmt: skip
    elif (value := float(a.missed.sum() / a.planted.sum())) > MISSED:
        yield _found(
            a, "binarisation", a.missed, MISSED, "planted",
            "With an adversarial example planted by way of a new last layer, the protocol's first "
            f"attack misses it on {a.missed.sum()} of {a.planted.sum()} rows probed.",
            "What lies before the last layer misleads gradients.", source, value,
        )  # fmt: skip


def _beaten(a: Answers) -> Iterator[Finding]:
    """How the protocol's first attack compares with others: where it does worse, on how many."""
    for name, (check, text, source) in {
        "whole": (
            "unbounded",
            "Free to move in the whole box, the protocol's first attack still fails on {n} of {of} "
            "rows probed, where the image of another class would do.",
            "arXiv:1902.06705, section 5; Athalye et al., arXiv:1802.00420, section 3.1",
        ),
        "larger": (
            "larger_eps",
            "An attack that breaks {n} of {of} rows probed within eps fails on them within twice "
            "eps.",
            "arXiv:1902.06705, section 5",
        ),
        "one": (
            "one_step",
            "A single step breaks {n} of {of} rows probed that the protocol's first attack does "
            "not.",
            "arXiv:1802.00420, section 3.1",
        ),
        "more": (
            "more_steps",
            "Twice the steps of the protocol's first attack break {n} more of {of} rows probed: "
            "it had not converged.",
            "arXiv:2106.09947; arXiv:1902.06705, section 5",
        ),
        "scores": (
            "black_box",
            "A search that sees only scores breaks {n} of {of} rows probed that gradients do "
            "not.",
            "arXiv:1802.00420, section 3.1",
        ),
        "labels": (
            "labels",
            "A search that sees only labels breaks {n} of {of} rows probed that gradients do "
            "not.",
            "arXiv:2006.12792, section 4",
        ),
    }.items():  # fmt: skip
        rows, enough = a.broken_by.get(name), least(name, len(a.ids))
        if rows is not None and rows.sum() >= enough:
            yield _found(
                a, check, rows, (enough - 1) / len(rows), name,
                text.format(n=rows.sum(), of=len(rows)),
                "Gradients are masked, or too few.", source,
            )  # fmt: skip


def _found(
    a: Answers,
    check: str,
    rows: np.ndarray,
    threshold: float,
    cost: str,
    text: str,
    advice: str,
    source: str,
    value: float | None = None,
    severity: Severity = "red",
) -> Finding:
    return Finding(
        check=check,
        severity=severity,
        text=text,
        value=float(rows.mean()) if value is None else value,
        threshold=threshold,
        ids=a.ids[rows][:16].tolist(),
        source=source,
        passes=a.passes.get(cost, 0),
        advice=advice,
    )


CHECKS: tuple[Callable[[Answers], Iterator[Finding]], ...] = (
    _zero_gradient,
    _non_finite_gradient,
    _wrong_gradient,
    _turning_gradient,
    _non_smooth,
    _one_hot,
    _beaten,
    _binarisation,
)
