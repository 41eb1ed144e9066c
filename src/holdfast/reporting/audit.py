"""What an auditor asks: what was covered, what was not, and the entries of the schemes of the
field that this touches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from holdfast.runs.manifest import Manifest

TESTED, PARTLY, NOT = "tested", "in part", "not tested"

KNOWLEDGE = {
    "gradients": "White box: the adversary knows the model, its weights, its preprocessing and its "
    "gradients.",
    "scores": "Black box: the adversary asks the model and sees its scores.",
    "labels": "Black box: the adversary asks the model and sees its decisions alone.",
}
AS_OF = (
    "Names and numbers as of MITRE ATLAS 2026.09, OWASP 2023 (a draft), NIST AI 100-2 E2025, and "
    "Regulation (EU) 2024/1689 as amended by Regulation (EU) 2026/1744: Article 15 applies to "
    "high-risk systems of Annex III from 2 December 2027, and to those of Annex I from 2 August "
    "2028. Whether this is one of them is for the signer to check."
)


@dataclass(frozen=True)
class Covered:
    """What was asked of a model."""

    white: bool = False  # by attacks that know it
    black: bool = False  # by attacks that ask it
    transfer: bool = False  # by attacks that follow another model
    corruptions: bool = False
    proofs: bool = False
    backdoor: bool = False
    data: bool = False
    membership: bool = False
    extraction: bool = False

    def __or__(self, other: Covered) -> Covered:
        return Covered(*(a or b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def evasion(self) -> bool:
        return self.white or self.limited

    @property
    def limited(self) -> bool:
        """By attacks of limited knowledge."""
        return self.black or self.transfer


@dataclass(frozen=True)
class Topic:
    """What may be asked of a model."""

    name: str
    text: str
    asked: str = ""  # the property of `Covered` that says whether it was; empty: nothing asks it
    why: str = "Holdfast has no test of it."  # of what nothing asks


TOPICS = [
    Topic(
        "White box",
        "Adversaries who have the model itself, and so may find more than queries or another model "
        "show.",
        "white",
    ),
    Topic(
        "Black box, transfer",
        "Adversaries who only ask the model, or attack another one in its place. They might break "
        "inputs that this run did not.",
        "limited",
    ),
    Topic(
        "Other threats",
        "Other norms and sizes, rotations, patches, physical changes, attacks adapted to this "
        "defence by hand.",
        why="Of these Holdfast asks what it is given as a threat.",
    ),
    Topic(
        "Corruptions",
        "Noise, blur, weather, compression, and other shifts that no adversary chose.",
        "corruptions",
    ),
    Topic(
        "Proof",
        "Nothing is proved: an input that was not broken may still be breakable.",
        "proofs",
    ),
    Topic("Backdoor", "A model that a hidden trigger turns to one answer.", "backdoor"),
    Topic("Poisoning", "Tampered training data.", "data"),
    Topic("Membership", "Whether answers give away training rows.", "membership"),
    Topic(
        "Other privacy",
        "Inputs, or properties of the training data, recovered from the model; memorised data.",
    ),
    Topic("Extraction", "Theft of the model by its answers.", "extraction"),
    Topic("Availability", "Inputs that make the model slow or costly."),
    Topic("Supply chain", "Tampered software, packages and parts of other makers."),
    Topic(
        "Other inputs",
        "Text, sound and other kinds of input than those of the data.",
        why="An audit is of one kind.",
    ),
    Topic("Fairness, drift", "Harm to groups of people, and data that change after the test."),
]


@dataclass(frozen=True)
class Place:
    """An entry of a scheme, and what was done of it."""

    scheme: str
    name: str
    state: str
    note: str = ""


def knowledge(manifest: Manifest) -> str:
    said = KNOWLEDGE.get(manifest.model.access, manifest.model.access)
    if manifest.model.surrogate is not None:
        return f"{said} Its gradients are those of another model, {manifest.model.surrogate}."
    return said


def covered(manifest: Manifest) -> Covered:
    """What a run asked of its model."""
    ran, transferred = bool(manifest.trials), manifest.model.surrogate is not None
    asked = manifest.model.access != "gradients"
    return Covered(
        white=ran and not (transferred or asked),
        black=ran and asked,
        transfer=ran and transferred,
        corruptions=manifest.metrics.corruptions is not None,
        proofs=manifest.metrics.certified_accuracy is not None,
    )


def untested(manifest: Manifest) -> list[tuple[str, str]]:
    """Topic and what it is, of everything that a run says nothing about."""
    asked = covered(manifest)
    return [
        (topic.name, topic.text)
        for topic in TOPICS
        if not (topic.asked and getattr(asked, topic.asked))
    ]


def places(manifest: Manifest) -> list[Place]:
    """The entries of the schemes, and what a run did of them."""
    return places_of(covered(manifest))


def places_of(asked: Covered) -> list[Place]:
    """Entries of MITRE ATLAS, OWASP Machine Learning Security Top 10 (2023), NIST AI 100-2 E2025
    and of Article 15 of the EU AI Act."""
    schemes = {
        "MITRE ATLAS": _atlas(asked),
        "OWASP ML Top 10 (2023)": _owasp(asked),
        "NIST AI 100-2 E2025": _nist(asked),
        "EU AI Act, Art. 15": _ai_act(asked),
    }
    return [Place(scheme, *row) for scheme, rows in schemes.items() for row in rows]


Rows = Sequence[tuple[str, ...]]  # name, state, and perhaps a note
_TRIGGERS = "small triggers are sought"
_PLANTED = "planted rows and wrong labels are sought in the data given"


def _whole(asked: bool) -> str:
    return TESTED if asked else NOT


def _part(asked: bool, note: str) -> tuple[str, ...]:
    """A state, and what the part is."""
    return (PARTLY, note) if asked else (NOT,)


def _evaded(asked: Covered) -> str:
    """Whether inputs were attacked; else they may be proved."""
    if asked.evasion:
        return TESTED
    return PARTLY if asked.proofs else NOT


def _atlas(asked: Covered) -> Rows:
    return [
        ("AML.T0015 Evade AI Model", _evaded(asked)),
        ("AML.T0043.000 White-Box Optimization", _whole(asked.white)),
        ("AML.T0043.001 Black-Box Optimization", _whole(asked.black)),
        ("AML.T0043.002 Black-Box Transfer", *_transferred(asked)),
        ("AML.T0043.003 Manual Modification", NOT),
        ("AML.T0043.004 Insert Backdoor Trigger", *_part(asked.backdoor, _TRIGGERS)),
        (
            "AML.T0042 Verify Attack",
            _whole(asked.evasion),
            "each stored example is judged anew" if asked.evasion else "",
        ),
        ("AML.T0031 Erode AI Model Integrity", *_part(asked.evasion, "by evasion alone")),
        ("AML.T0018 Manipulate AI Model", *_part(asked.backdoor, _TRIGGERS)),
        ("AML.T0020 Training Data Poisoning", *_part(asked.data, _PLANTED)),
        ("AML.T0010 AI Supply Chain Compromise", NOT),
        ("AML.T0024.000 Infer Training Data Membership", _whole(asked.membership)),
        ("AML.T0024.001 Invert AI Model", NOT),
        ("AML.T0024.002 Extract AI Model", _whole(asked.extraction)),
        ("AML.T0029 Denial of AI Service; AML.T0034 Cost Harvesting", NOT),
    ]


def _transferred(asked: Covered) -> tuple[str, ...]:
    if asked.transfer:
        return (TESTED,)
    return _part(asked.extraction, "examples made on a copy")


def _owasp(asked: Covered) -> Rows:
    return [
        ("ML01:2023 Input Manipulation Attack", _evaded(asked)),
        ("ML02:2023 Data Poisoning Attack", *_part(asked.data, _PLANTED)),
        ("ML03:2023 Model Inversion Attack", NOT),
        ("ML04:2023 Membership Inference Attack", _whole(asked.membership)),
        ("ML05:2023 Model Theft", _whole(asked.extraction)),
        ("ML06:2023 AI Supply Chain Attacks", NOT),
        ("ML07:2023 Transfer Learning Attack", NOT),
        ("ML08:2023 Model Skewing", NOT),
        ("ML09:2023 Output Integrity Attack", NOT),
        ("ML10:2023 Model Poisoning", *_part(asked.backdoor, _TRIGGERS)),
    ]


def _nist(asked: Covered) -> Rows:
    known = {True: "white-box knowledge", False: "limited knowledge"}[asked.white]
    if not asked.evasion:
        known = "by proofs alone" if asked.proofs else ""
    return [
        ("NISTAML.022 Evasion", _evaded(asked), known),
        ("NISTAML.025 Black-box Evasion", _whole(asked.limited)),
        ("NISTAML.013 Data Poisoning", *_part(asked.data, _PLANTED)),
        (
            "NISTAML.023 Backdoor Poisoning",
            *_part(asked.backdoor or asked.data, "triggers, or the rows that plant them"),
        ),
        ("NISTAML.012, NISTAML.021 Clean-label; NISTAML.024 Targeted Poisoning", NOT),
        ("NISTAML.011, NISTAML.026 Model Poisoning", *_part(asked.backdoor, _TRIGGERS)),
        ("NISTAML.031 Model Extraction", _whole(asked.extraction)),
        ("NISTAML.033 Membership Inference", _whole(asked.membership)),
        ("NISTAML.032 Reconstruction; NISTAML.034 Property Inference", NOT),
        ("NISTAML.014 Energy-latency", NOT),
    ]


def _ai_act(asked: Covered) -> Rows:
    secrets = [name for name in ("membership", "extraction") if getattr(asked, name)]
    return [
        (
            "(1) Accuracy, robustness, cybersecurity",
            PARTLY,
            "figures for this model, these data, this threat",
        ),
        (
            "(3) Levels and metrics to declare",
            PARTLY,
            "accuracy, robust accuracy, each with its interval",
        ),
        (
            "(4) Errors, faults, inconsistencies; feedback loops",
            *_part(asked.corruptions, "common corruptions, no feedback loops"),
        ),
        ("(5) Data poisoning", *_part(asked.data, _PLANTED)),
        ("(5) Model poisoning", *_part(asked.backdoor, _TRIGGERS)),
        ("(5) Adversarial examples or model evasion", _evaded(asked)),
        ("(5) Confidentiality attacks", *_part(bool(secrets), " and ".join(secrets))),
        ("(5) Model flaws", NOT),
    ]
