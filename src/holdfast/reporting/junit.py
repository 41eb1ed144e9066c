"""A run as JUnit XML, which build servers show as tests: one case for each gate, each finding, and
the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree as xml

from holdfast.reporting import words
from holdfast.runs.gates import Outcome
from holdfast.runs.manifest import Manifest


def junit(manifest: Manifest, gates: Sequence[Outcome] = ()) -> bytes:
    """UTF-8 XML in the form that Ant, Jenkins, GitLab and GitHub's reporters read.

    A gate that does not hold, a red finding and an unreliable verdict are failures; the rest is
    told as output of the whole suite. Valid by the schemas of Ant (windyroad/JUnit-Schema) and of
    Jenkins' xunit plugin (junit-10).
    """
    cases = [("gate", g.gate.text, g.sentence, g.held) for g in gates]
    cases += [
        ("finding", f.check, f"{f.severity}: {f.text}", f.severity != "red")
        for f in manifest.verdict.findings
    ]
    status = manifest.verdict.status
    cases.append(("verdict", status, words.VERDICTS[status], status != "unreliable"))
    failures = sum(not held for *_, held in cases)
    seconds = f"{manifest.costs.seconds:.3f}"
    root = xml.Element("testsuites")
    suite = xml.SubElement(
        root,
        "testsuite",
        name=words.printable(f"holdfast {manifest.model.spec} {words.asked(manifest)}"),
        tests=str(len(cases)),
        failures=str(failures),
        errors="0",
        time=seconds,
        timestamp=words.printable(manifest.provenance.created[:19]),
        hostname="localhost",
        package="holdfast",
        id="0",
    )
    properties = xml.SubElement(suite, "properties")
    proved = manifest.metrics.certified_accuracy
    for name, value in (
        ("clean_accuracy", manifest.metrics.clean_accuracy.value),
        ("robust_accuracy", manifest.metrics.robust_accuracy.value),
        *(() if proved is None else (("certified_accuracy", proved.value),)),
        ("model", manifest.model.fingerprint),
        ("data", manifest.data.fingerprint),
        ("protocol", manifest.protocol.name),
    ):
        xml.SubElement(properties, "property", name=name, value=words.printable(value))
    for kind, name, text, held in cases:
        place = {"classname": f"holdfast.{kind}", "name": words.printable(name), "time": "0"}
        case = xml.SubElement(suite, "testcase", place)
        if not held:
            failure = xml.SubElement(case, "failure", message=words.printable(text), type=kind)
            failure.text = words.printable(text)
    # Ant's schema knows no output of a single case.
    lines = [
        words.headline(manifest),
        *(f"{kind} {name}: {text}" for kind, name, text, held in cases if held),
    ]
    xml.SubElement(suite, "system-out").text = "\n".join(map(words.printable, lines))
    xml.SubElement(suite, "system-err")
    xml.indent(root)
    return xml.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"
