"""What build servers and auditors read of a run: gates, JUnit, SARIF, Markdown, the model card, and
the workflow."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

import pytest
import typer
import yaml
from helpers.commands import holdfast, names, refused
from helpers.made_up_runs import HOSTILE, make
from helpers.model_files import MEANS
from jsonschema import Draft7Validator

from holdfast.cli.main import app
from holdfast.errors import SpecError
from holdfast.reporting import audit, html
from holdfast.runs import gates
from holdfast.runs.manifest import Manifest

TEXT = {
    "type": "object",
    "required": ["text"],
    "properties": {"text": {"type": "string", "minLength": 1}},
}
# The parts of SARIF 2.1.0 (its sections 3.13 to 3.49) that Holdfast writes; nothing else may be.
SARIF: dict[str, Any] = {
    "type": "object",
    "required": ["version", "runs"],
    "additionalProperties": False,
    "properties": {
        "$schema": {"type": "string", "format": "uri"},
        "version": {"const": "2.1.0"},
        "runs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["tool"],
                "additionalProperties": False,
                "properties": {
                    "tool": {
                        "type": "object",
                        "required": ["driver"],
                        "properties": {
                            "driver": {
                                "type": "object",
                                "required": ["name"],
                                "additionalProperties": False,
                                "properties": {
                                    "name": {"type": "string"},
                                    "version": {"type": "string"},
                                    "rules": {
                                        "type": "array",
                                        "uniqueItems": True,
                                        "items": {
                                            "type": "object",
                                            "required": ["id"],
                                            "additionalProperties": False,
                                            "properties": {
                                                "id": {"type": "string"},
                                                "shortDescription": TEXT,
                                            },
                                        },
                                    },
                                },
                            }
                        },
                    },
                    "invocations": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["executionSuccessful"],
                            "additionalProperties": False,
                            "properties": {
                                "executionSuccessful": {"type": "boolean"},
                                "commandLine": {"type": "string"},
                                "endTimeUtc": {
                                    "type": "string",
                                    "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$",
                                },
                            },
                        },
                    },
                    "results": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "required": ["message"],
                            "additionalProperties": False,
                            "properties": {
                                "ruleId": {"type": "string"},
                                "ruleIndex": {"type": "integer", "minimum": -1},
                                "level": {"enum": ["none", "note", "warning", "error"]},
                                "message": TEXT,
                                "locations": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "additionalProperties": False,
                                        "properties": {
                                            "physicalLocation": {
                                                "type": "object",
                                                "required": ["artifactLocation"],
                                                "additionalProperties": False,
                                                "properties": {
                                                    "artifactLocation": {
                                                        "type": "object",
                                                        "properties": {
                                                            "uri": {
                                                                "type": "string",
                                                                "pattern": r"^[\w/.%~-]+$",
                                                            }
                                                        },
                                                    }
                                                },
                                            }
                                        },
                                    },
                                },
                            },
                        },
                    },
                    "properties": {"type": "object"},
                },
            },
        },
    },
}
# What the JUnit schemas of Ant (windyroad/JUnit-Schema) and of Jenkins' xunit plugin (junit-10)
# both allow: for each element its attributes (all of them required here), and what may be in it, in
# this order.
JUNIT = {
    "testsuites": (set(), ["testsuite*"]),
    "testsuite": (
        {"name", "tests", "failures", "errors", "time", "timestamp", "hostname", "package", "id"},
        ["properties", "testcase*", "system-out", "system-err"],
    ),
    "properties": (set(), ["property*"]),
    "property": ({"name", "value"}, []),
    "testcase": ({"name", "classname", "time"}, ["failure?"]),
    "failure": ({"message", "type"}, []),
    "system-out": (set(), []),
    "system-err": (set(), []),
}


def check(element: xml.Element) -> None:
    """An element and all in it against `JUNIT`."""
    attributes, inside = JUNIT[element.tag]
    assert set(element.attrib) == attributes
    pattern = "".join(
        f"(?:{part.rstrip('*?')};){part[-1] if part[-1] in '*?' else ''}" for part in inside
    )
    assert re.fullmatch(pattern, "".join(f"{child.tag};" for child in element))
    for child in element:
        check(child)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manifest:
    monkeypatch.chdir(tmp_path)
    return make(tmp_path / "run")


HELD = (
    "clean_accuracy>0",
    "robust_accuracy.low<=1",
    "verdict>=unreliable",
    "attack_success_rate!=2",
)
BROKEN_ROWS = ("robust_accuracy>=1", "corruptions.mce<1", "certified_accuracy>=0")


def test_gates_hold_or_fall(run: Manifest) -> None:
    assert [g.held for g in gates.judge([gates.parse(t) for t in HELD], run)] == [True] * len(HELD)
    broken_rows = gates.judge([gates.parse(t) for t in BROKEN_ROWS], run)
    assert [g.held for g in broken_rows] == [False] * len(BROKEN_ROWS)
    names(broken_rows[1].sentence, "corruptions.mce is not measured")
    run.verdict.status = "upper-bound"
    seen = {
        t: gates.judge([gates.parse(f"verdict{t}")], run)[0].held
        for t in ("==trusted", "!=unreliable", "<trusted")
    }
    assert seen == {"==trusted": False, "!=unreliable": True, "<trusted": True}


@pytest.mark.parametrize(
    "text",
    [
        "robust>=0.4",
        "verdict==fine",
        "robust_accuracy=>1",
        "robust_accuracy>=x",
        "",
        "worst_group.clean_accuracy>=0.5",
    ],
)
def test_a_gate_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="gate"):
        gates.parse(text)


def test_junit_and_sarif(run: Manifest) -> None:
    expected = [part for text in (HELD[0], BROKEN_ROWS[0]) for part in ("--gate", text)]
    done = holdfast("report", "run", *expected, "--junit", "out/a.xml", "--sarif", "a.sarif")
    assert done.exit_code == 1
    names(done.stderr, "gate not held: robust_accuracy is ", "not >= 1")
    root = xml.parse("out/a.xml").getroot()
    check(root)
    suite = root[0]
    cases = {
        (c.get("classname"), c.get("name")): c.find("failure") is not None
        for c in suite.iter("testcase")
    }
    assert int(suite.get("tests") or 0) == len(cases) == 3 + len(run.verdict.findings)
    assert int(suite.get("failures") or 0) == sum(cases.values())
    assert cases["holdfast.gate", HELD[0]] is False
    assert cases["holdfast.gate", BROKEN_ROWS[0]] is True
    for finding in run.verdict.findings:
        assert finding.severity == "red" or finding.check in suite.findtext("system-out", "")
        assert cases["holdfast.finding", finding.check] is (finding.severity == "red")
    found = json.loads(Path("a.sarif").read_text(encoding="utf-8"))
    Draft7Validator(SARIF).validate(found)
    results, rules = found["runs"][0]["results"], found["runs"][0]["tool"]["driver"]["rules"]
    assert len(results) == len(run.verdict.findings) + 1
    assert all(rules[r["ruleIndex"]]["id"] == r["ruleId"] for r in results)
    levels = {"red": "error", "amber": "warning", "info": "note"}
    assert [r["level"] for r in results] == [
        *(levels[f.severity] for f in run.verdict.findings),
        "error",
    ]


def test_markdown_and_the_model_card(run: Manifest) -> None:
    done = holdfast("report", "run", "--markdown", "-", "--gate", HELD[0])
    assert done.exit_code == 0
    names(done.stdout, "**Verdict: ", "| clean accuracy | ", "### Not tested", "Poisoning", "held")
    assert "<script" not in done.stdout
    assert holdfast("report", "run", "--model-card", "card.md").exit_code == 0
    text = Path("card.md").read_text(encoding="utf-8")
    assert "<script" not in text.split("---", 2)[2]
    index = yaml.safe_load(text.split("---")[1])["model-index"][0]
    assert index["name"] == run.model.spec
    assert index["results"][0]["metrics"][1]["value"] == run.metrics.robust_accuracy.value
    names(text, "## Intended use", "### Threat model", "## Reproduce", run.model.fingerprint)


def test_every_scheme_and_what_is_not_tested_stand_on_the_page(run: Manifest) -> None:
    page = html.write(Path("run")).read_text(encoding="utf-8")
    for place in audit.places(run):
        assert place.name in page
    assert {p.scheme.split()[0] for p in audit.places(run)} == {"MITRE", "OWASP", "NIST", "EU"}
    topics = [topic for topic, _ in audit.untested(run)]
    assert {"Poisoning", "Membership", "Extraction", "Corruptions", "Black box, transfer"} <= set(
        topics
    )
    names(page, *topics, "Sign-off", "Limits")
    run.model.access = "labels"
    assert "White box" in [topic for topic, _ in audit.untested(run)]
    assert next(p for p in audit.places(run) if "White-Box" in p.name).state == audit.NOT
    names(audit.knowledge(run), "decisions alone")


def workflow() -> tuple[list[dict[str, Any]], list[list[str]]]:
    """The steps of the example, and its `holdfast` commands."""
    text = (Path(__file__).parents[2] / "examples" / "github-actions.yml").read_text()
    steps = yaml.safe_load(text)["jobs"]["holdfast"]["steps"]
    return steps, [shlex.split(s["run"]) for s in steps if s.get("run", "").startswith("holdfast ")]


@pytest.mark.parametrize(("model", "codes"), [("means", (0, 1)), ("spotty", (3, 1))])
def test_the_workflow_fails_by_the_codes_it_is_to(
    model: str, codes: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own commands, on a small model: the gates fall, and a model that gives NaN is
    `unreliable`."""
    monkeypatch.chdir(tmp_path)
    Path("models.py").write_text(MEANS)
    ours = {"$MODEL": f"models.py:{model}", "$DATA": "digits", "linf(8/255)": "linf(0.2)"}
    ours |= {"standard": "quick", "1000": "12"}
    for (_, *words), code in zip(workflow()[1], codes, strict=True):
        assert holdfast(*(ours.get(word, word) for word in words)).exit_code == code
    check(xml.parse("robustness.xml").getroot())
    Draft7Validator(SARIF).validate(
        json.loads(Path("robustness.sarif").read_text(encoding="utf-8"))
    )


def test_the_workflow_says_what_the_command_line_knows() -> None:
    """Every `holdfast` command of the example: it exists, its options exist, its gates can be
    read."""
    steps, commands = workflow()
    assert "--strict" in commands[0]
    assert [c[1] for c in commands] == ["evaluate", "report"]
    known = typer.main.get_command(app).commands  # pyright: ignore
    for _, name, *words in commands:
        flags = {flag for p in known[name].params for flag in p.opts}
        assert {w for w in words if w.startswith("--")} <= flags
        for flag, value in pairwise(words):
            if flag == "--gate":
                gates.parse(value)
    for step in steps:
        assert ("uses" in step) != ("run" in step)


def test_a_bad_gate_is_refused_before_the_run() -> None:
    names(refused("report", "nothing", "--gate", "robust>1"), "unknown figure 'robust'")


def test_hostile_names_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "run", spec=HOSTILE)
    assert (
        holdfast(
            "report", "run", "--junit", "a.xml", "--sarif", "a.sarif", "--model-card", "a.md"
        ).exit_code
        == 0
    )
    check(xml.parse("a.xml").getroot())
    Draft7Validator(SARIF).validate(json.loads(Path("a.sarif").read_text(encoding="utf-8")))
