"""Extraction: the budget is hard, copies agree, and the figures follow from the evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import holdfast, refused

from holdfast.audit.extraction import Metered, Rounded, answering, audit_extraction, decimals_of
from holdfast.audit.verify import verify
from holdfast.errors import AccessError, InputError, SpecError
from holdfast.reporting.pages import report
from holdfast.runs import audits
from holdfast.targets import load, wrap
from holdfast.targets.target import Access


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extraction") / "run"
    options: dict[str, Any] = {"queries": (300, 20), "rows": 100, "epochs": 5, "out": folder}
    audit_extraction(load("demo"), "digits", "linf(0.2)", **options)
    return folder


def test_more_queries_give_a_better_copy(audited: Path) -> None:
    result = audits.read_as(audited, audits.ExtractionAudit).result
    few, many = result.substitutes
    assert (few.queries, many.queries) == (20, 300)
    assert float(many.agreement) > max(0.6, float(few.agreement))
    assert float(many.transfer) > float(result.noise)
    assert result.measured == many.agreement.n == 100
    assert "300" in report(audited).read_text()


def test_rounded_answers_and_labels_alone_are_reported_with_scores(tmp_path: Path) -> None:
    options: dict[str, Any] = {"queries": (40,), "rows": 60, "epochs": 2, "out": tmp_path / "run"}
    kinds = ("labels", "rounded(1)", "scores")
    audit, folder = audit_extraction(load("demo"), "digits", "linf(0.2)", answers=kinds, **options)
    assert [one.answers for one in audit.result.substitutes] == ["scores", "rounded(1)", "labels"]
    assert audit.costs.queries == 120
    assert "answered by" in audit.verdict.reason
    assert verify(folder) == []
    assert "rounded(1)" in report(folder).read_text()


def test_a_model_that_gives_labels_alone_is_copied_by_them() -> None:
    options: dict[str, Any] = {"queries": (40,), "rows": 40, "epochs": 1}
    alone = answering(load("demo"), decimals_of("labels"))
    audit, _ = audit_extraction(alone, "digits", "linf(0.2)", **options)
    assert [one.answers for one in audit.result.substitutes] == ["labels"]
    with pytest.raises(AccessError, match=r"rounded\(1\), but the model gives labels alone"):
        audit_extraction(alone, "digits", "linf(0.2)", answers=["labels", "rounded(1)"], **options)


def test_an_adversary_sees_no_more_than_it_is_given() -> None:
    target, x = load("demo"), torch.rand(9, 1, 8, 8)
    target.bind((1, 8, 8))
    whole = target.scores(x).softmax(1)
    seen = answering(target, decimals_of("rounded(2)")).scores(x).exp()
    assert torch.allclose(100 * seen, (100 * whole).round(), atol=1e-3)
    alone = answering(target, decimals_of("labels"))
    assert alone.access == Access.LABELS
    assert torch.equal(alone.labels(x), target.labels(x))
    assert answering(target, decimals_of("scores")) is target


def test_verify_computes_it_again(audited: Path, tmp_path: Path) -> None:
    assert verify(audited) == []
    for path in audited.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = (audited / "run.json").read_text().replace('"measured": 100', '"measured": 99')
    (tmp_path / "run.json").write_text(text)
    assert any("measured" in said for said in verify(tmp_path))


def test_an_example_beyond_the_threat_turns_nothing() -> None:
    options: dict[str, Any] = {"queries": (100,), "rows": 60, "epochs": 2, "attack": "deepfool"}
    found, _ = audit_extraction(load("demo"), "digits", "linf(0.001)", **options)
    assert float(found.result.substitutes[0].transfer) < 0.1


def test_not_one_query_more_than_the_budget() -> None:
    meter = Metered(load("demo"), 10)
    x = torch.zeros(6, 1, 8, 8)
    meter.bind((1, 8, 8))
    meter.labels(x)
    with pytest.raises(InputError, match="12 queries were asked for, of a budget of 10"):
        meter.scores(x)
    meter.labels(x[:4])
    assert meter.spent == 10


@pytest.mark.parametrize(
    ("threat", "options", "kind"),
    [
        ("linf(0.1)", {"queries": (0,)}, InputError),
        ("linf(0.1)", {"queries": ()}, InputError),
        ("linf(0.1)", {"attack": "none such"}, SpecError),
        ("far", {}, SpecError),
        ("linf(0.1)", {"answers": ["rounded(0)"]}, SpecError),
        ("linf(0.1)", {"answers": ["gradients"]}, SpecError),
    ],
)
def test_bad_input(threat: str, options: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        audit_extraction(load("demo"), "digits", threat, **options)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("audit", "extraction", "demo", "digits", "--threat", "linf(0.2)", "--samples", "40")
    shown = holdfast(*asked, "--queries", "60", "--out", "run").stdout
    assert "Does a copy help attacks?" in shown
    said = holdfast("verify", "run").stdout
    assert "confirmed" in said
    assert "The model was not asked whether" in said
    assert "whole number" in refused(*asked, "--queries", "1.5")


def test_answers_that_are_rounded_to_nothing_are_alike() -> None:
    x = torch.rand((4, 3), generator=torch.Generator().manual_seed(0))
    target = wrap(torch.nn.Linear(3, 100), shape=(3,))
    answers = Rounded(target, 1).scores(x).softmax(1)
    assert torch.equal(answers, torch.full_like(answers, 0.01))
