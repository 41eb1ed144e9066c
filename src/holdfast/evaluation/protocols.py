"""Protocols: named, versioned lists of trials. A literal, not code; a change of a list raises its
version."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from holdfast.attacks import CATALOGUE, parse_trial
from holdfast.attacks.attack import Attack
from holdfast.attacks.trial import Trial
from holdfast.errors import SpecError, suggest
from holdfast.runs.migration import with_todays_options
from holdfast.targets.target import Access
from holdfast.threats.patch import Patch
from holdfast.threats.rotation import Rotation
from holdfast.threats.threat import Targeted, Threat
from holdfast.threats.transform import Transform


@dataclass(frozen=True)
class Protocol:
    name: str
    version: int
    trials: tuple[Trial, ...]


NONE = Protocol("none", 1, ())  # for a run that only proves

_STANDARD = (
    'apgd(steps=30, loss="mifpe")',
    'apgd(steps=20, loss="margin", targets=3, max_margin=0.3)',
    'relay(steps=40, leg=20, p=0.2, loss="mifpe")',
    'relay(steps=140, leg=50, p=0.2, loss="mifpe", max_margin=0.25)',
    'acg(steps=50, loss="mifpe", restarts=4, max_margin=0.15)',
    "bab(close=0.025, max_margin=0.1)",
    'relay(steps=500, leg=100, loss="mifpe", max_margin=0.2, unless="bab")',
    'relay(steps=500, leg=200, p=0.02, start_at="best", restarts=4, max_margin=0.1, unless="bab")',
    'relay(steps=1000, p=0.02, start_at="best", restarts=3, max_margin=0.06, unless="bab")',
)
_QUICK = (
    'apgd(steps=20, loss="mifpe")',
    'relay(steps=140, leg=50, p=0.2, loss="mifpe", max_margin=0.35)',
    'relay(steps=500, leg=100, loss="mifpe", max_margin=0.1)',
    'relay(steps=980, leg=100, loss="mifpe", max_margin=0.035)',
)
_STANDARD_L2 = (
    'apgd(steps=20, loss="mifpe")',
    'apgd(steps=20, loss="margin", targets=3, max_margin=0.5)',
    "brendelbethge(steps=600, walks=20, last=0.3, close=1)",
    'acg(steps=50, loss="mifpe", restarts=2, max_margin=0.1)',
    "relay(steps=400, leg=80, p=0.3, max_margin=0.05)",
)
_STANDARD_L1 = (
    'apgd(steps=50, loss="mifpe")',
    'apgd(steps=50, loss="dlr", targets=3, max_margin=0.7)',
    "fmn(steps=100, max_margin=0.7)",
    "square(steps=500, max_margin=0.6)",
)
_SQUARE_AND_RELAYS = (
    "square(steps=5000, max_margin=0.5)",
    'relay(steps=1960, leg=100, p=0.1, loss="mifpe", restarts=4, max_margin=0.2)',
    "relay(steps=8400, max_margin=0.15)",
    "relay(steps=8400, step_size=0.1, max_margin=0.08)",
)
_THOROUGH = (
    'relay(steps=500, leg=100, p=0.1, loss="mifpe", restarts=6, max_margin=0.5, unless="bab")',
    'relay(steps=1000, p=0.02, start_at="best", restarts=4, max_margin=0.2, unless="bab")',
    'relay(steps=2000, restarts=4, max_margin=0.2, unless="bab")',
    'relay(steps=2000, p=0.02, start_at="best", restarts=4, max_margin=0.12, unless="bab")',
    "square(steps=5000, max_margin=0.15)",
    "bab(restarts=3, close=0.1, max_margin=0.15)",
)
_THOROUGH_L2 = (
    "fab(steps=40, targets=3)",
    "brendelbethge(steps=480, walks=12, last=0.2)",
    "square(steps=2000, max_margin=0.2)",
    "relay(steps=6000, max_margin=0.08)",
)
_SPARSE = ("sigmazero(steps=300)", "vfga(steps=50)", "fmn(steps=300)")
_PIXELS = ("brendelbethge(steps=120)", "sigmazero(steps=300)", "sparsers(steps=1000)")

# Each list by norm, of which "l0 by pixel" goes before l0 where it counts pixels; "other" serves
# the norms without one of their own. Why these trials: docs/protocols.md.
PROTOCOLS: dict[str, tuple[int, str, dict[str, tuple[str, ...]]]] = {
    "quick": (
        4,
        "one short run for all rows, a few more for those of small margin: an upper bound, in Linf "
        "within a point of AutoAttack on the eight networks it was tuned on, at a hundredth of its "
        "passes; far higher in L2 where gradients are masked",
        {
            "linf": _QUICK,
            "other": (
                'apgd(steps=20, loss="mifpe")',
                'apgd(steps=20, loss="mifpe", restarts=3, max_margin=0.3)',
            ),
            "l0": ("sigmazero(steps=50)",),
            "l0 by pixel": _PIXELS[:1],
        },
    ),
    "standard": (
        8,
        (
            "AutoAttack's strength at a tenth of its passes: effort goes to the rows that it "
            "brings close to being broken"
        ),
        {
            "other": _STANDARD,
            "l2": _STANDARD_L2,
            "l1": _STANDARD_L1,
            "l0": _SPARSE[:2],
            "l0 by pixel": _PIXELS,
        },
    ),
    "thorough": (
        9,
        "standard, then longer searches in every direction that ever paid",
        {
            "other": (*_STANDARD, *_THOROUGH),
            "l2": (*_STANDARD_L2, *_THOROUGH_L2),
            "l1": (*_STANDARD_L1, *_SQUARE_AND_RELAYS),
            "l0": _SPARSE,
            "l0 by pixel": (*_PIXELS, "fmn(steps=300)", "sparsers(steps=10000, restarts=3)"),
        },
    ),
    "autoattack": (
        1,
        (
            "AutoAttack's standard version (Croce and Hein 2020, arXiv:2003.01690): its attacks, "
            "settings and order"
        ),
        {
            "other": (
                'apgd(steps=100, loss="ce")',
                'apgd(steps=100, loss="dlr", targets=9)',
                "fab(steps=100, targets=9)",
                "square(steps=5000)",
            ),
            "l1": (
                'apgd(steps=100, loss="ce", restarts=5)',
                'apgd(steps=100, loss="dlr", targets=5)',
                "fab(steps=100, targets=9)",
                "square(steps=5000)",
            ),
        },
    ),
    "autoattack-plus": (
        1,
        "AutoAttack's plus version",
        {
            "other": (
                'apgd(steps=100, loss="ce", restarts=5)',
                'apgd(steps=100, loss="dlr", restarts=5)',
                "fab(steps=100, restarts=5)",
                "square(steps=5000)",
                'apgd(steps=100, loss="dlr", targets=9)',
                "fab(steps=100, targets=9)",
            ),
        },
    ),
    "autoattack-rand": (
        1,
        "AutoAttack's version for randomised models: gradients are means of 20",
        {"other": ('apgd(steps=100, loss="ce", eot=20)', 'apgd(steps=100, loss="dlr", eot=20)')},
    ),
}


# Lists of earlier versions that differ, by name and version: `verify` still confirms their runs.
_BEFORE_BAB = (
    'apgd(steps=30, loss="mifpe")',
    'apgd(steps=20, loss="margin", targets=3, max_margin=0.5)',
    'relay(steps=140, leg=50, p=0.2, loss="mifpe")',
    'acg(steps=50, loss="mifpe", restarts=4, max_margin=0.25)',
    'relay(steps=500, leg=100, loss="mifpe", max_margin=0.3)',
    'relay(steps=980, leg=100, loss="mifpe", restarts=3, max_margin=0.08)',
)
_BEFORE_CLOSE = (
    *_BEFORE_BAB[:-1],
    "bab(max_margin=0.1)",
    'relay(steps=980, leg=100, loss="mifpe", restarts=2, max_margin=0.08)',
)
_BEFORE_CLOSE_L2 = (
    'apgd(steps=20, loss="mifpe")',
    'apgd(steps=20, loss="margin", targets=3, max_margin=0.5)',
    "brendelbethge(steps=360, walks=12, last=0.3)",
    'acg(steps=50, loss="mifpe", restarts=2, max_margin=0.1)',
    "relay(steps=400, leg=80, p=0.3, max_margin=0.05)",
)
_QUICK_BEFORE = (
    'apgd(steps=20, loss="mifpe")',
    'acg(steps=40, loss="mifpe", restarts=3, max_margin=0.08)',
    'relay(steps=140, leg=50, p=0.2, loss="mifpe", max_margin=0.08)',
)
_BEFORE_BEST = (
    *_STANDARD[:3],
    'relay(steps=140, leg=50, p=0.2, loss="mifpe", max_margin=0.3)',
    *_STANDARD[4:6],
    'relay(steps=500, leg=100, loss="mifpe", max_margin=0.15, unless="bab")',
    'relay(steps=980, leg=100, loss="mifpe", restarts=3, max_margin=0.1, unless="bab")',
    'relay(steps=4200, max_margin=0.08, unless="bab")',
)
EARLIER: dict[tuple[str, int], dict[str, tuple[str, ...]]] = {
    ("quick", 3): {"linf": _QUICK_BEFORE},
    ("standard", 5): {"other": _BEFORE_BAB, "l2": _BEFORE_CLOSE_L2},
    ("standard", 6): {"other": _BEFORE_CLOSE, "l2": _BEFORE_CLOSE_L2},
    ("standard", 7): {"other": _BEFORE_BEST},
    ("thorough", 6): {
        "other": (*_BEFORE_BAB, *_SQUARE_AND_RELAYS),
        "l2": (*_BEFORE_CLOSE_L2, *_THOROUGH_L2),
    },
    ("thorough", 7): {
        "other": (*_BEFORE_CLOSE, *_SQUARE_AND_RELAYS, "bab(restarts=3, max_margin=0.15)"),
        "l2": (*_BEFORE_CLOSE_L2, *_THOROUGH_L2),
    },
    ("thorough", 8): {
        "other": (
            *_BEFORE_BEST,
            *_SQUARE_AND_RELAYS,
            "bab(restarts=3, close=0.1, max_margin=0.15)",
        ),
    },
}


# What the protocols are for targets that give less than gradients. Scores alone prove little (a
# defence can bend them without being robust), so in Linf and L2 the longer lists end with a search
# by labels.
BLACK_BOX: dict[Access, dict[str, dict[str, tuple[str, ...]]]] = {
    Access.SCORES: {
        "quick": {
            "linf": ("signhunter(steps=200)", "square(steps=300)"),
            "l0": ("sparsers(steps=300)",),
            "other": ("square(steps=500)",),
        },
        "standard": {
            "linf": (
                "signhunter(steps=500)",
                "square(steps=5000)",
                "rays(steps=1000, max_margin=0.9)",
            ),
            "l2": ("square(steps=5000)", "hopskipjump(steps=20, max_margin=0.9)"),
            "l0": ("sparsers(steps=5000)",),
            "other": ("square(steps=5000)",),
        },
        "thorough": {
            "linf": (
                "signhunter(steps=2000)",
                "square(steps=10000, restarts=3)",
                "rays(steps=5000)",
            ),
            "l2": ("square(steps=10000, restarts=3)", "simba(steps=5000)", "cgba", "hopskipjump"),
            "l0": ("sparsers(steps=10000, restarts=3)",),
            "other": ("square(steps=10000, restarts=3)",),
        },
    },
    Access.LABELS: {
        "quick": {
            "linf": ("rays(steps=500)",),
            "l2": ("cgba(steps=10)",),
            "other": ("sweep(steps=500)",),
        },
        "standard": {
            "linf": ("rays(steps=5000)", "hopskipjump(steps=20)"),
            "l2": ("cgba(steps=60)", "hopskipjump(steps=20)"),
            "other": ("sweep(steps=5000)",),
        },
        "thorough": {
            "linf": ("rays(steps=20000)", "hopskipjump(steps=64, restarts=2)"),
            "l2": ("cgba(steps=120, restarts=2)", "hopskipjump(steps=64)"),
            "other": ("sweep(steps=20000)",),
        },
    },
}


# What they are in Linf for torch models whose scores are flat next to their inputs, because of
# steps: jumps between the corners of the ball. In other norms, and where steps hide the gradient
# alone, they are what they are for other models; all by gradients through the steps. Their
# versions are those of PROTOCOLS.
_JUMPS = (
    "dula(steps=50)",
    "dula(steps=100, heat=0.8, max_margin=0.5)",
    'dula(steps=100, moves=0.05, start_at="best", max_margin=0.25)',
    "dula(steps=200, heat=1, max_margin=0.2)",
    'dula(steps=300, moves=0.05, start_at="best", max_margin=0.15)',
    "dula(steps=400, heat=1, max_margin=0.12)",
    'dula(steps=400, heat=0.4, moves=0.05, start_at="best", max_margin=0.1)',
)
STEPPED: dict[str, tuple[str, ...]] = {
    "quick": ("dula(steps=30)",),
    "standard": _JUMPS,
    "thorough": (
        *_JUMPS,
        "relay(steps=500, leg=100, max_margin=0.12)",
        "dula(steps=250, heat=0.8, targets=3, max_margin=0.1)",
        "dula(steps=600, heat=1, max_margin=0.08)",
    ),
}


_SMALLEST = {
    "linf": ("fmn(steps=200)", "fab(steps=50)", "brendelbethge(steps=120)"),
    "l2": ("ddn(steps=100)", "fmn(steps=200)", "brendelbethge(steps=120)"),
    "l1": ("fmn(steps=200)", "alma(steps=200)", "brendelbethge(steps=120)"),
    "l0": ("sigmazero(steps=300)", "vfga(steps=50)", "fmn(steps=300)"),
    "l0 by pixel": (*_PIXELS[:2], "fmn(steps=300)"),
}

# What the protocols are where eps is inf: searches for the smallest perturbation, each of which
# takes all rows.
SMALLEST: dict[Access, dict[str, dict[str, tuple[str, ...]]]] = {
    Access.GRADIENTS: {
        "quick": {
            "l0": ("sigmazero(steps=50)",),
            "l0 by pixel": _PIXELS[:1],
            "other": ("fmn(steps=50)",),
        },
        "standard": _SMALLEST,
        "thorough": {
            "linf": (
                *_SMALLEST["linf"],
                "fmn(steps=1000)",
                "fab(steps=100, restarts=3)",
                "pdpgd(steps=500)",
                "brendelbethge(steps=480)",
            ),
            "l2": (
                *_SMALLEST["l2"],
                "ddn(steps=1000)",
                "fmn(steps=1000)",
                "alma(steps=1000)",
                "brendelbethge(steps=480)",
            ),
            "l1": (
                *_SMALLEST["l1"],
                "fmn(steps=1000)",
                "alma(steps=1000)",
                "ead(steps=1000)",
                "brendelbethge(steps=480)",
            ),
            "l0": (
                *_SMALLEST["l0"],
                "sigmazero(steps=1000)",
                "vfga(steps=100, restarts=3)",
                "fmn(steps=1000)",
            ),
            "l0 by pixel": (
                *_SMALLEST["l0 by pixel"],
                "brendelbethge(steps=480)",
                "sigmazero(steps=1000)",
                "fmn(steps=1000)",
            ),
        },
    },
    Access.LABELS: {
        "quick": {"linf": ("rays(steps=500)",), "l2": ("cgba(steps=10)",)},
        "standard": {
            "linf": ("rays(steps=5000)", "hopskipjump(steps=20)"),
            "l2": ("cgba(steps=60)", "hopskipjump(steps=20)"),
        },
        "thorough": {
            "linf": ("rays(steps=20000)", "hopskipjump(steps=64, restarts=2)"),
            "l2": ("cgba(steps=120, restarts=2)", "hopskipjump(steps=64)", "surfree(steps=500)"),
        },
    },
}


# Turns and shifts have many local maxima, so a grid finds more than gradients do (arXiv:1712.02779,
# section 5).
GRID = "sweep(steps=1000, order='grid')"
# No gradient says where a patch should lie, so its search goes before (arXiv:2006.12834, section
# 4).
SQUARES = "patchrs(steps=1000, schedule=1000)"


# What it is for randomised models, whose every question is the mean of many draws: no long
# searches.
DRAWN: dict[str, tuple[str, ...]] = {
    "other": (
        'apgd(steps=50, loss="mifpe")',
        'apgd(steps=20, loss="margin", targets=3, max_margin=0.5)',
        'apgd(steps=50, loss="margin", max_margin=0.7)',
    ),
    "l0": ("sigmazero(steps=100)",),
}


# What they are for the rows of a table, under norms that these attacks search; gradients first,
# then the genetic search on the rows that are left. Their versions are those of PROTOCOLS.
TABLES: dict[Access, dict[str, dict[str, tuple[str, ...]]]] = {
    Access.GRADIENTS: {
        "quick": dict.fromkeys(("linf", "l2"), ("capgd(steps=20, restarts=2)",)),
        "standard": dict.fromkeys(
            ("linf", "l2"), ("capgd(steps=50, restarts=4)", "genetic(steps=60)")
        ),
        "thorough": dict.fromkeys(
            ("linf", "l2"),
            ("capgd(steps=100, restarts=10)", "genetic(steps=200, population=80)"),
        ),
    },
    Access.SCORES: {
        "quick": dict.fromkeys(("linf", "l2", "l1"), ("genetic(steps=20)",)),
        "standard": dict.fromkeys(("linf", "l2", "l1"), ("genetic(steps=100)",)),
        "thorough": dict.fromkeys(
            ("linf", "l2", "l1"), ("genetic(steps=300, population=80, restarts=2)",)
        ),
    },
}

# Before these, in linf, where the target is an ensemble of trees whose leaves can be read.
TREES = "treeexact"


_SEGMENTATION = ("acg(steps=100)", "sea(steps=60)")
# What it is, with gradients, for a task of its own in Linf and L2; in other norms, and with less
# than gradients, it is what it is for classes. Their versions are those of PROTOCOLS.
OF_TASK: dict[str, dict[str, tuple[str, ...]]] = {
    "detection": {
        "quick": ("apgd(steps=20)",),
        "standard": ("apgd(steps=60)", "relay(steps=140, leg=50, p=0.2)"),
        "thorough": (
            "apgd(steps=200)",
            "relay(steps=500, leg=100, p=0.2)",
            "acg(steps=200, restarts=2)",
            "square(steps=1000)",
        ),
    },
    "segmentation": {
        "quick": ("acg(steps=30)",),
        "standard": _SEGMENTATION,
        "thorough": (
            *_SEGMENTATION,
            'sea(steps=300, loss="jsd")',
            'sea(steps=300, loss="masked_ce")',
            'sea(steps=300, loss="balanced_ce")',
            "acg(steps=300)",
        ),
    },
}


def protocol(
    name: str,
    norm: str,
    *,
    aimed: bool = False,
    access: Access = Access.GRADIENTS,
    drawn: bool = False,
    bounded: bool = True,
    group: str = "",
    version: int | None = None,
) -> Protocol:
    """The named protocol for a norm, and for what the target gives; `aimed` at one class, it aims
    at no others.

    `drawn`: for a model found to be randomised, which is measured by its mean. `bounded`: False
    where eps is inf, and the smallest perturbation is asked for. `group`: what the norm counts as
    one, where it is no feature. `version`: an earlier one of `EARLIER`.

    Raises:
        SpecError: there is no protocol of this name, or it has no list for this norm at an eps of
            inf.
    """
    if name == NONE.name:
        return NONE
    if name not in PROTOCOLS:
        raise SpecError(f"unknown protocol {name!r}; {suggest(name, PROTOCOLS)}")
    today, _, lists = PROTOCOLS[name]
    version = version or today
    lists = {**lists, **EARLIER.get((name, version), {})}
    lists = BLACK_BOX.get(access, {}).get(name, lists)
    if drawn and access == Access.GRADIENTS:
        lists = DRAWN
    if not bounded:
        lists = _smallest(name, norm, access)
    own = lists.get(f"{norm} by {group}", lists.get(norm, lists.get("other", ())))
    trials = [parse_trial(text) for text in own]
    return Protocol(
        name, version, tuple(replace(t, targets=0) for t in trials) if aimed else tuple(trials)
    )


def asked(
    name: str,
    threat: Threat,
    access: Access,
    *,
    drawn: bool = False,
    trees: bool = False,
    task: str = "classes",
    steps: str = "",
    version: int | None = None,
) -> Protocol:
    """The named protocol as it meets a threat, with what a movement of images asks for before it.

    `trees`: for a model that is an ensemble of trees. `task`: as the manifest says it. `steps`:
    what these do to the gradient, as `GradientSources.steps` says it. `version`: as `protocol`
    takes it.

    Raises:
        SpecError: as `protocol`.
    """
    aimed, bounded = isinstance(threat.goal, Targeted), threat.bounded
    kind = {"aimed": aimed, "access": access, "drawn": drawn, "bounded": bounded}
    own = protocol(name, threat.norm.name, group=threat.norm.group, version=version, **kind)
    table = TABLES.get(access, {}).get(name, {}).get(threat.norm.name)
    if threat.schema is not None and bounded and table is not None:
        own = replace(own, trials=chosen(table).trials)
    lists = OF_TASK.get(task.partition("(")[0], {}) if access == Access.GRADIENTS else {}
    if bounded and threat.norm.name in ("linf", "l2") and name in lists:
        own = replace(own, trials=chosen(lists[name]).trials)
    if threat.schema is not None and trees and name in TABLES[Access.SCORES]:
        (first,) = chosen([TREES]).trials
        if first.attack.works_in(threat.norm):
            own = replace(own, trials=(first, *own.trials))
    if steps and name in STEPPED:
        if (
            steps == "flat"
            and bounded
            and threat.norm.name == "linf"
            and threat.schema is None
            and not drawn
        ):
            own = replace(own, trials=chosen(STEPPED[name]).trials)
        own = replace(own, trials=tuple(map(through_steps, own.trials)))
    return own if threat.spatial is None else suited(own, threat.spatial.transform)


def through_steps(trial: Trial) -> Trial:
    """A trial whose gradients, where it asks for any, go straight through the model's steps."""
    return replace(trial, gradient="bpda") if trial.attack.needs == Access.GRADIENTS else trial


def suited(protocol: Protocol, transform: Transform) -> Protocol:
    """A protocol with what the transform asks for before it."""
    first: list[str] = []
    if isinstance(transform, Rotation):
        first = [GRID]
    # unless the target gives labels alone
    scored = any(trial.attack.needs >= Access.SCORES for trial in protocol.trials)
    if isinstance(transform, Patch) and scored:
        first = [SQUARES]
    return replace(protocol, trials=(*chosen(first).trials, *protocol.trials))


def seeks_smallest(name: str, norm: str, access: Access) -> bool:
    """Whether a protocol has a list for an eps of inf."""
    lists = SMALLEST.get(access, SMALLEST[Access.LABELS]).get(name, {})
    return norm in lists or "other" in lists


def _smallest(name: str, norm: str, access: Access) -> dict[str, tuple[str, ...]]:
    lists = SMALLEST.get(access, SMALLEST[Access.LABELS])  # a search on labels asks no scores
    if name not in lists:
        raise SpecError(
            f"protocol {name} searches a ball of eps, but eps is inf; use quick, standard or "
            "thorough."
        )
    if not seeks_smallest(name, norm, access):
        raise SpecError(
            f"no protocol finds the smallest change in {norm} of a model that gives "
            f"{access.name.lower()} alone; give "
            f"a finite eps, or a norm of {', '.join(lists[name])}."
        )
    return lists[name]


def default_attack(quick: Protocol, threat: Threat, access: Access) -> Protocol:
    """The attack where none is named: PGD in a ball of eps, or where that cannot run, the first one
    of this list of protocol `quick`."""
    ball = threat.bounded and threat.spatial is None
    if ball and access == Access.GRADIENTS and CATALOGUE["pgd"]().works_in(threat.norm):
        return chosen(["pgd"])
    return replace(quick, trials=quick.trials[:1])


def chosen(attacks: Sequence[str | Attack | Trial]) -> Protocol:
    """A user's own list of attacks as a protocol.

    Raises:
        SpecError: a text spells no attack, or names an option as an older Holdfast did.
    """

    def trial(given: str | Attack | Trial) -> Trial:
        if isinstance(given, Trial):
            return given
        if isinstance(given, Attack):
            return Trial(given)
        if (today := with_todays_options(given)) != given:
            raise SpecError(f"{given!r} names options as an older Holdfast did; write {today!r}.")
        return parse_trial(given)

    return Protocol("custom", 1, tuple(map(trial, attacks)))
