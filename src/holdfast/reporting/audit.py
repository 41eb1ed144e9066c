"""What an auditor asks: what was covered, what was not, and the entries of the schemes of the
field that this touches."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.runs.manifest import Manifest

TESTED, PARTLY, NOT = "tested", "in part", "not tested"

KNOWLEDGE = {
    "gradients": "White box: the adversary knows the model, its weights, its preprocessing and its "
    "gradients.",
    "scores": "Black box: the adversary asks the model and sees its scores.",
    "labels": "Black box: the adversary asks the model and sees its decisions alone.",
}


@dataclass(frozen=True)
class Place:
    """An entry of a scheme, and what this run says of it."""

    scheme: str
    name: str
    state: str
    note: str = ""


def knowledge(manifest: Manifest) -> str:
    said = KNOWLEDGE.get(manifest.model.access, manifest.model.access)
    if manifest.model.surrogate is not None:
        return f"{said} Its gradients are those of another model, {manifest.model.surrogate}."
    return said


def untested(manifest: Manifest) -> list[tuple[str, str]]:
    """Topic and what it is, of everything that this run says nothing about."""
    ran, transferred = bool(manifest.trials), manifest.model.surrogate is not None
    white = ran and manifest.model.access == "gradients"
    rows = [
        (
            not white or transferred,
            "White box",
            (
                "Adversaries who have the model itself, and so may find more than queries or "
                "another model show."
            ),
        ),
        (
            not ran or (white and not transferred),
            "Black box, transfer",
            "Adversaries who only ask the model, or attack another one in its place. They might "
            "break inputs that this run did not.",
        ),
        (
            True,
            "Other threats",
            (
                "Other norms and sizes, rotations, patches, physical changes, attacks adapted to "
                "this defence by hand."
            ),
        ),
        (
            manifest.metrics.corruptions is None,
            "Corruptions",
            "Noise, blur, weather, compression, and other shifts that no adversary chose.",
        ),
        (
            manifest.metrics.certified_accuracy is None,
            "Proof",
            "Nothing is proved: an input that was not broken may still be breakable.",
        ),
        (True, "Poisoning", "Tampered training data, or a model with a backdoor."),
        (True, "Privacy", "Membership inference, inversion, memorised data."),
        (True, "Extraction", "Theft of the model by its answers."),
        (True, "Availability", "Inputs that make the model slow or costly."),
        (True, "Other inputs", "Text, sound and other kinds of input than those of the data."),
        (True, "Fairness, drift", "Harm to groups of people, and data that change after the test."),
    ]
    return [(topic, text) for open_, topic, text in rows if open_]


def places(manifest: Manifest) -> list[Place]:
    """MITRE ATLAS, OWASP Machine Learning Security Top 10 (2023), NIST AI 100-2 E2025, EU AI Act
    Article 15."""
    tested = {True: TESTED, False: NOT}
    transferred, asked = manifest.model.surrogate is not None, manifest.model.access != "gradients"
    ran = bool(manifest.trials)  # else nothing was attacked, and rows were only proved
    white, evasion = tested[ran and not (transferred or asked)], TESTED if ran else PARTLY
    shifted = PARTLY if manifest.metrics.corruptions is not None else NOT
    known = "white-box knowledge" if white == TESTED else "limited knowledge"
    if not ran:
        known = "by proofs alone"
    schemes: dict[str, list[tuple[str, ...]]] = {
        "MITRE ATLAS": [
            ("AML.T0015 Evade ML model", evasion),
            ("AML.T0043.000 Craft adversarial data: white box", white),
            ("AML.T0043.001 Craft adversarial data: black box", tested[ran and asked]),
            ("AML.T0043.002 Craft adversarial data: transfer", tested[ran and transferred]),
            ("AML.T0043.003 and AML.T0043.004 Manual changes, triggers", NOT),
            ("AML.T0042 Verify attack", tested[ran], "each stored example is judged anew"),
            ("AML.T0031 Erode model integrity", PARTLY, "by evasion alone"),
            ("AML.T0020 Poison training data; AML.T0018 Backdoor; AML.T0010 Supply chain", NOT),
            ("AML.T0024 Exfiltration by inference (membership, inversion, extraction)", NOT),
            ("AML.T0029 Denial of service; AML.T0034 Cost", NOT),
        ],
        "OWASP ML Top 10 (2023)": [
            ("ML01 Input manipulation", evasion),
            ("ML02 Data poisoning; ML10 Model poisoning", NOT),
            ("ML03 Model inversion; ML04 Membership inference; ML05 Model theft", NOT),
            (
                "ML06 Supply chain; ML07 Transfer learning; ML08 Model skewing; "
                "ML09 Output integrity",
                NOT,
            ),
        ],
        "NIST AI 100-2 E2025": [
            ("Evasion (integrity)", evasion, known),
            ("Poisoning; privacy; availability breakdown", NOT),
        ],
        "EU AI Act, Art. 15": [
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
                shifted,
                "common corruptions, no feedback loops",
            ),
            ("(5) Adversarial examples or model evasion", evasion),
            ("(5) Data and model poisoning, confidentiality attacks, model flaws", NOT),
        ],
    }
    return [Place(scheme, *row) for scheme, rows in schemes.items() for row in rows]
