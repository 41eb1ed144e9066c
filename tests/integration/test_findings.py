"""Findings: what is planted is seen, what is sound is left in peace, and the figure is what a
strong attack finds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.planted import Planted
from torch import Tensor, nn

import holdfast
from holdfast.attacks import parse_trial
from holdfast.data import from_arrays, open_data
from holdfast.diagnostics.checks import FOLLOW_UPS, answered, findings_of, follow
from holdfast.diagnostics.gradient_sources import GradientSources
from holdfast.diagnostics.probe import Answers
from holdfast.errors import SpecError
from holdfast.evaluation import protocols
from holdfast.evaluation.merge import merge
from holdfast.evaluation.probing import probe
from holdfast.evaluation.verify import verify
from holdfast.runs.manifest import Finding
from holdfast.runs.run import Run
from holdfast.targets import TorchTarget
from holdfast.targets.frameworks.pytorch.bpda import hard_steps, with_bpda
from holdfast.testing import BROKEN, SOUND, Defence
from holdfast.testing.sound import NETS, mlp, trained
from holdfast.threats.threat import Threat

M = 40


def sound_answers() -> Answers:
    """Of a model without fault: 40 rows, of which the first attack left 20."""
    no = np.zeros(M, dtype=bool)
    names = "one more scores labels bpda whole larger".split()
    return Answers(
        np.arange(M),
        one_hot=no,
        zero={loss: np.zeros((M, 2), dtype=bool) for loss in ("ce", "dlr", "margin")},
        odd=no,
        slope=np.full(M, 0.01),
        turn=np.full(M, 0.95),
        planted=~no,
        missed=no,
        broken_by={"stood": np.arange(M) < 20, **dict.fromkeys(names, no)},
    )


def some(n: int) -> np.ndarray:
    return np.arange(M) < n


PLANTED: dict[str, Callable[[Answers], object]] = {
    "zero_gradient": lambda a: a.zero["dlr"].__setitem__((3, 1), True),
    "non_finite_gradient": lambda a: setattr(a, "odd", some(1)),
    "wrong_gradient": lambda a: setattr(a, "slope", np.where(some(15), 0.9, 0.01)),
    "turning_gradient": lambda a: setattr(a, "turn", np.full(M, 0.2)),
    "one_hot": lambda a: setattr(a, "one_hot", some(2)),
    "unbounded": lambda a: a.broken_by.update(whole=some(1)),
    "larger_eps": lambda a: a.broken_by.update(larger=some(2)),
    "one_step": lambda a: a.broken_by.update(one=some(2)),
    "more_steps": lambda a: a.broken_by.update(more=some(3)),
    "black_box": lambda a: a.broken_by.update(scores=some(2)),
    "labels": lambda a: a.broken_by.update(labels=some(2)),
    "binarisation": lambda a: setattr(a, "missed", some(9)),
    "non_smooth": lambda a: (a.hard.append("round"), a.broken_by.update(bpda=some(1))),
}


@pytest.mark.parametrize("check", PLANTED)
def test_a_planted_answer_raises_exactly_its_finding(check: str) -> None:
    answers = sound_answers()
    assert findings_of(answers) == []
    PLANTED[check](answers)
    (found,) = findings_of(answers)
    assert (found.check, found.severity) == (check, "red")
    assert found.source
    assert set(found.ids) <= set(range(M))


def test_what_changes_little_is_let_pass() -> None:
    answers = sound_answers()
    answers.broken_by |= {
        "one": some(1),
        "more": some(2),
        "scores": some(1),
        "labels": some(1),
        "larger": some(1),
    }
    answers.slope, answers.hard = np.where(some(10), 0.9, 0.01), ["sort"]
    (found,) = findings_of(answers)
    assert (found.check, found.severity) == ("non_smooth", "info")


def test_a_sign_takes_in_what_it_explains_and_is_answered_for_all_of_it() -> None:
    answers = sound_answers()
    for check in ("one_hot", "unbounded", "binarisation"):
        PLANTED[check](answers)
    (found,) = findings_of(answers)
    assert (found.check, found.explains) == ("one_hot", ["unbounded", "binarisation"])
    assert "shows as unbounded, binarisation too" in found.text
    threat, source = Threat.linf(0.1), open_data("digits")
    sources = GradientSources(TorchTarget(mlp(), shape=(1, 8, 8)), threat, source)
    trials = follow([found], "standard", threat, sources)
    assert {parse_trial(t) for t in ('apgd(steps=100, loss="mifpe")', "square(steps=1000)")} <= {
        *trials
    }


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_every_sign_is_answered_in_every_norm(norm: str) -> None:
    source = open_data("digits")
    target = TorchTarget(mlp(), shape=(1, 8, 8))
    threat = getattr(Threat, norm)(1.0)
    sources = GradientSources(target, threat, source)
    for check, plant in PLANTED.items():
        answers = sound_answers()
        plant(answers)
        found = findings_of(answers)
        trials = follow(found, "standard", threat, sources)
        if norm == "l0" and check in ("one_hot", "more_steps"):
            continue  # its searches use neither of these losses
        assert trials, check
        assert [f.severity for f in answered(found, trials)] == ["amber"]
        assert follow(found, "custom", threat, sources) == []
    assert set(FOLLOW_UPS) == set(PLANTED)


def test_steps_are_found_in_the_graph() -> None:
    target = TorchTarget(
        Planted(lambda x: (x > 0.5).to(x.dtype) + x.floor() + (4 * x).long() / 4), shape=(1, 8, 8)
    )
    assert set(hard_steps(target, torch.rand(2, 1, 8, 8))) >= {"gt", "floor", "long"}
    shaped = Planted(lambda x: x + 0.1 * torch.randn_like(x) + x.new_zeros(8))
    assert hard_steps(TorchTarget(shaped, shape=(1, 8, 8)), torch.rand(2, 1, 8, 8)) == []
    # a mask that no input moves
    constant = Planted(lambda x: x * (torch.arange(8) > 3).to(x.dtype))
    assert hard_steps(TorchTarget(constant, shape=(1, 8, 8)), torch.rand(2, 1, 8, 8)) == []


@pytest.mark.parametrize(
    "step",
    [
        torch.round,
        torch.sign,
        Tensor.detach,
        lambda x: (x > 0.5).float(),
        lambda x: (~(x < 0.5)).to(x.dtype),
        lambda x: torch.where(x >= 0.5, 1.0, 0.0),
        lambda x: (8 * x).long().float() / 8,
        lambda x: x * (x > 0.2),
    ],
)
def test_straight_through_gives_the_same_scores_and_a_gradient(
    step: Callable[[Tensor], Tensor],
) -> None:
    target = TorchTarget(Planted(step), shape=(1, 8, 8))
    bpda = with_bpda(target)
    assert bpda is not None
    x = torch.rand(5, 1, 8, 8)
    z, pull = bpda.linearize(x)
    torch.testing.assert_close(z, target.scores(x))
    assert (pull(torch.randn(5, 10)).flatten(1).abs().amax(1) > 0).all()


class Optimised(Defence):
    """A step of an optimiser at test time, before the answer."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (g,) = torch.autograd.grad(self.inner(leaf).logsumexp(1).sum(), leaf)
        return self.inner(x.detach() - 0.1 * g)


def test_autograd_inside_the_model_is_found_and_gone_through() -> None:
    net = trained(functools.partial(mlp, nn.Tanh))
    target = TorchTarget(Optimised(net), shape=(1, 8, 8))
    x = torch.rand(5, 1, 8, 8)
    assert "grad" in hard_steps(target, x)
    bpda = with_bpda(target)
    assert bpda is not None
    z, pull = bpda.linearize(x)
    torch.testing.assert_close(z, target.scores(x))
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(net(leaf).logsumexp(1).sum(), leaf, create_graph=True)
    cotangent = torch.randn(5, 10)
    (known,) = torch.autograd.grad((net(leaf - 0.1 * g) * cotangent).sum(), leaf)
    torch.testing.assert_close(pull(cotangent), known)


def test_a_flatter_softmax_keeps_the_order() -> None:
    target = TorchTarget(
        Planted(lambda x: x, lambda z: (500 * z).softmax(1)), shape=(1, 8, 8), probabilities=True
    )
    bpda = with_bpda(target)
    assert bpda is not None
    x = torch.rand(5, 1, 8, 8)
    z, pull = bpda.linearize(x)
    assert torch.equal(z.argmax(1), target.scores(x).argmax(1))
    cotangent = torch.nn.functional.one_hot(
        z.topk(2, 1).indices[:, 1], 10
    ) - torch.nn.functional.one_hot(z.argmax(1), 10)
    assert (pull(cotangent.float()).flatten(1).abs().amax(1) > 0).all()


def measure(model: nn.Module, rows: tuple[int, int] = (0, 16), **options: Any) -> Run:
    target = holdfast.wrap(model)
    return holdfast.evaluate(target, source(), "linf(0.1)", samples=rows, **options)


def source():
    return from_arrays(*open_data("digits").rows(0, 16))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `standard` of one trial, and follow-ups of two."""
    lists = {"standard": (3, "", {"other": ('apgd(steps=5, loss="mifpe")',)})}
    monkeypatch.setattr(protocols, "PROTOCOLS", lists)
    monkeypatch.setattr(protocols, "STEPPED", {})
    monkeypatch.setattr(protocols, "DRAWN", {"other": ('apgd(steps=3, loss="mifpe")',)})
    bpda = 'apgd(steps=10, loss="margin", gradient="bpda")'
    answers = dict.fromkeys(FOLLOW_UPS, (bpda, "square(steps=9)"))
    monkeypatch.setattr("holdfast.diagnostics.checks.FOLLOW_UPS", answers)


@pytest.mark.usefixtures("short")
def test_what_answers_a_finding_is_in_the_run_and_holds(tmp_path: Path) -> None:
    model = Planted(lambda x: (4 * x).round() / 4)
    whole = measure(model, out=tmp_path / "whole")
    named = [trial.spec for trial in whole.manifest.trials]
    assert len(named) == 3
    assert "gradient='bpda'" in named[1]
    assert whole.manifest.trials[1].broken > 0
    assert whole.verdict.status == "upper-bound"
    assert "gradient" in whole.verdict.reason
    assert whole.manifest.probe_costs.forwards > 0
    assert verify(whole.folder, holdfast.wrap(model), source()) == []
    parts = [measure(model, rows, out=tmp_path / str(rows[0])) for rows in ((0, 8), (8, 16))]
    merged = merge(parts, tmp_path / "merged")
    apart = {"calibration"}  # of confidences, whose last bit may depend on the batch
    assert merged.metrics.model_dump(exclude=apart) == whole.metrics.model_dump(exclude=apart)
    assert merged.verdict.model_dump(exclude={"findings"}) == whole.verdict.model_dump(
        exclude={"findings"}
    )


@pytest.mark.usefixtures("short")
def test_an_unfinished_run_goes_on_with_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Planted(lambda x: (4 * x).round() / 4)
    whole = measure(model)
    with monkeypatch.context() as broken:

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        broken.setattr("holdfast.evaluation.evaluate.judge_chunk", stop)
        with pytest.raises(KeyboardInterrupt):
            measure(model, out=tmp_path / "run")
    monkeypatch.setattr(
        "holdfast.evaluation.probing.probe", None
    )  # it was probed: nobody asks again
    again = measure(model, out=tmp_path / "run", resume=True)
    assert again.samples.equals(whole.samples)
    assert again.verdict == whole.verdict


@pytest.mark.usefixtures("short")
def test_verify_misses_findings_and_trials_that_were_taken_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Planted(lambda x: (4 * x).round() / 4)
    kept = measure(model, out=tmp_path / "run")
    explained = [check for finding in kept.manifest.initial_findings for check in finding.explains]
    assert explained
    # neither a note nor what a finding explains has to be there
    with monkeypatch.context() as other:
        found = [Finding(check=check, severity="red", text="") for check in explained]
        found.append(Finding(check="binarisation", severity="info", text=""))
        asked = SimpleNamespace(costs=kept.manifest.probe_costs)
        other.setattr("holdfast.evaluation.claims.probe", lambda *_: asked)
        other.setattr("holdfast.diagnostics.checks.findings_of", lambda _: found)
        assert verify(kept.folder, holdfast.wrap(model), source()) == []
    run_json = kept.folder / "run.json"
    text = kept.manifest.model_copy(update={"initial_findings": []}).model_dump_json()
    run_json.write_text(text)
    wrong = " ".join(verify(kept.folder, holdfast.wrap(model), source()))
    assert "leaves out" in wrong
    assert "non_smooth" in wrong
    assert "trials: the findings ask for" in wrong


@pytest.mark.usefixtures("short")
def test_a_randomised_model_is_measured_by_its_mean() -> None:
    model = Planted(lambda x: x + 0.1 * torch.randn_like(x))
    found = measure(model)
    assert found.manifest.model.draws == 20
    assert found.verdict.status == "upper-bound"
    assert "randomised" in [f.check for f in found.verdict.findings if f.severity == "amber"]
    assert verify(found.folder, holdfast.wrap(model), source()) == []


def test_a_gradient_source_may_be_asked_for() -> None:
    attack = 'apgd(steps=10, loss="margin", gradient="bpda")'
    model = Planted(torch.sign)
    messages: list[Any] = []
    found = measure(model, attacks=[attack], on_estimate=messages.append)
    assert found.metrics.counts["broken"] > 0
    assert messages
    assert verify(found.folder, holdfast.wrap(model), source()) == []
    with pytest.raises(SpecError, match="sideways"):
        measure(model, attacks=['fgsm(gradient="sideways")'])


def test_only_a_gradient_can_be_smoothed() -> None:
    data, threat = open_data("digits"), Threat.linf(0.1)
    for model, open_ in ((mlp(), True), (Planted(torch.round), False)):
        target = TorchTarget(model, shape=(1, 8, 8))
        assert GradientSources(target, threat, data).has("smoothed") is open_


def test_what_one_row_cannot_show_is_not_asked() -> None:
    target, threat = TorchTarget(Planted(lambda x: x), shape=(1, 8, 8)), Threat.linf(0.02)

    def asked(n: int) -> set[str]:
        rows = from_arrays(*open_data("digits").rows(0, n))
        sources = GradientSources(target, threat, rows)
        return set(probe(target, rows, threat, parse_trial("pgd(steps=3)"), sources, 0).passes)

    alone = asked(1)
    assert {"clean", "gradients", "slope", "first"} <= alone
    assert alone <= {"clean", "gradients", "slope", "first", "whole"}
    assert asked(16) >= {*alone, "one", "scores", "labels", "planted"}


def test_rows_without_a_gradient_at_the_start_close_no_source_and_looking_is_charged() -> None:
    x = np.repeat(np.array([0, 1], np.float32), 16)[:, None].repeat(2, 1)
    target = TorchTarget(lambda x: (x - 0.5).relu(), shape=(2,))
    sources = GradientSources(target, Threat.linf(0.1), from_arrays(x, np.zeros(32, np.int64)))
    assert [sources.has("smoothed"), sources.has("smoothed")] == [True, True]
    assert (sources.costs.forwards, sources.costs.queries, sources.costs.backwards) == (8, 8, 8)


def by_hand(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Which rows PGD leaves robust on what an adversary who knows the defence attacks: [n] bool."""
    bare, robust_rows = getattr(model, "bare", model), model(x).argmax(1) == y
    for seed in range(3):
        d = eps * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) - 1)
        for t in range(60):
            leaf = (x + d).clamp(0, 1).detach().requires_grad_()
            z = bare(leaf)
            lead = z.scatter(1, y[:, None], -1e9).amax(1) - z.gather(1, y[:, None])[:, 0]
            g = torch.autograd.grad(lead.sum(), leaf)[0]
            d = (d + 0.2 * eps * (1 - t / 60) * g.sign()).clamp(-eps, eps)
            with torch.no_grad():
                robust_rows &= model((x + d).clamp(0, 1)).argmax(1) == y
    return robust_rows


RANDOM = ("resized", "noisy", "pruning")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BROKEN if name not in RANDOM])
def test_a_broken_defence_is_flagged_and_its_figure_is_that_of_an_attack_made_for_it(
    name: str,
) -> None:
    model = BROKEN[name]()
    x, y = map(torch.from_numpy, open_data("digits").rows(0, 100))
    found = holdfast.evaluate(holdfast.wrap(model), open_data("digits"), "linf(0.1)", samples=100)
    assert found.verdict.status != "trusted"
    assert found.robust_accuracy.value <= by_hand(model, x, y, 0.1).double().mean() + 0.02  # pyright: ignore


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_a_randomised_defence_is_flagged_and_its_figure_is_that_of_its_mean(name: str) -> None:
    model = BROKEN[name]()
    x, y = map(torch.from_numpy, open_data("digits").rows(0, 60))
    found = holdfast.evaluate(holdfast.wrap(model), open_data("digits"), "linf(0.1)", samples=60)
    assert found.verdict.status != "trusted"

    def mean(at: Tensor, draws: int) -> Tensor:
        return torch.stack([model(at).softmax(1) for _ in range(draws)]).mean(0).log()

    torch.manual_seed(0)
    d = torch.zeros_like(x)
    for t in range(60):
        leaf = (x + d).clamp(0, 1).detach().requires_grad_()
        z = mean(leaf, 20)
        lead = z.scatter(1, y[:, None], -1e9).amax(1) - z.gather(1, y[:, None])[:, 0]
        d = (d + 0.02 * (1 - t / 60) * torch.autograd.grad(lead.sum(), leaf)[0].sign()).clamp(
            -0.1, 0.1
        )
    with torch.no_grad():
        robust = (mean(x, 100).argmax(1) == y) & (mean((x + d).clamp(0, 1), 100).argmax(1) == y)
    assert found.robust_accuracy.value <= robust.double().mean() + 0.02  # pyright: ignore


SOUND_CASES = [(name, seed, "linf(0.08)") for name in NETS for seed in (0, 1)]
SOUND_CASES += [(name, 0, "linf(0.1)") for name in ("hardened-mlp", "hardened-cnn", "hardened-l2")]
SOUND_CASES += [
    ("mlp", 0, "l2(0.5)"),
    ("cnn", 0, "l2(0.5)"),
    ("tanh", 0, "l1(2)"),
    ("gelu", 0, "l0(3)"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seed", "threat"), SOUND_CASES)
def test_a_sound_model_is_trusted(name: str, seed: int, threat: str) -> None:
    found = holdfast.evaluate(
        holdfast.wrap(SOUND[name](seed)), open_data("digits"), threat, samples=40
    )
    assert [f.check for f in found.verdict.findings if f.severity != "info"] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "hardened-cnn"])
def test_all_findings_cost_little(name: str) -> None:
    found = holdfast.evaluate(holdfast.wrap(SOUND[name]()), open_data("digits"), "linf(0.1)")
    asked, all_ = found.manifest.probe_costs, found.manifest.costs
    assert asked.forwards + asked.backwards <= 0.15 * (all_.forwards + all_.backwards)


@pytest.mark.slow
@pytest.mark.cases
def test_a_thresholded_input_is_broken_without_a_hint(cases: Path) -> None:
    from helpers.cases import case, mnist

    model = case(cases, "torch_abs_cnn_mnist").load(binarize=True)
    found = holdfast.evaluate(holdfast.wrap(model), mnist(cases), "linf(0.3)", samples=500)
    assert found.verdict.status != "trusted"
    assert found.robust_accuracy.value <= 0.506  # pyright: ignore[reportOptionalOperand]


def test_finite_differences_are_not_taken_where_pixels_are_equal() -> None:
    """There each max-pool has ties, and no derivative; the gradient is right a little away."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(1, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.rand(30, 1, 1, 1).expand(30, 1, 14, 14).clone()
    source, target, threat = (
        from_arrays(x, model(x).argmax(1)),
        holdfast.wrap(model),
        Threat.linf(0.3),
    )
    target.bind((1, 14, 14))
    trial = protocols.protocol("standard", "linf").trials[0]
    answers = probe(target, source, threat, trial, GradientSources(target, threat, source), 0)
    assert answers.slope is not None
    assert len(answers.slope) == 16
    assert bool((answers.slope < 0.5).all())
