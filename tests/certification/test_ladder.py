"""Certificates in runs: what is proved holds, what cannot be proved says why, and a row that is
both proved and broken fails the run."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bounds import exact_bounds
from helpers.twins import onnx_file
from sklearn.ensemble import RandomForestClassifier
from sklearn.svm import SVC
from torch import nn
from typer.testing import CliRunner, Result

import holdfast
from holdfast.bounds import Margins
from holdfast.certification import Ladder, certify, ladder
from holdfast.cli.main import app
from holdfast.data import open_data
from holdfast.errors import HoldfastError
from holdfast.evaluation import certificates, evaluate
from holdfast.evaluation.merge import merge
from holdfast.evaluation.prepare import prepare
from holdfast.evaluation.verify import verify
from holdfast.reporting import audit, words
from holdfast.runs import store
from holdfast.runs.run import Run
from holdfast.targets.demo import demo_model
from holdfast.targets.target import Bounds
from holdfast.threats.threat import Threat

N = 24
THREAT = "linf(0.04)"


class Net(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def data() -> tuple[np.ndarray, np.ndarray]:
    x = torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = Net()(x).argmax(1)
    y[::8] = (y[::8] + 1) % 3
    return x.numpy(), y.numpy()


def measured(out: Path | None = None, threat: str = THREAT, **options: Any) -> Run:
    options = {"attacks": ["pgd(steps=20)"], "certifier": Ladder(60)} | options
    return holdfast.evaluate(Net(), data(), threat, out=out, **options)


def statuses(run: Run) -> np.ndarray:
    return run.samples.column("status").to_numpy(zero_copy_only=False)


@pytest.fixture
def bounds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No branch and bound, which decides every row of these small networks."""
    monkeypatch.setattr(ladder, "METHODS", ("ibp", "crown", "alpha-crown"))


def test_rows_are_wrong_broken_certified_or_open() -> None:
    run = measured()
    status, m = statuses(run), run.metrics
    assert {"wrong", "broken", "certified"} <= set(status)
    assert m.certified_accuracy is not None
    assert m.certified_accuracy.value == (status == "certified").mean()
    assert 0 < m.certified_accuracy.value <= run.robust_accuracy.value
    assert sum(m.certified_by.values()) == m.counts["certified"]
    assert m.certified_by["ibp"] < m.counts["certified"]  # the ladder was climbed
    by = np.array(run.samples.column("certified_by").to_pylist(), dtype=object)
    radius = run.samples.column("certified_radius").to_numpy(zero_copy_only=False)
    assert ((by != None) == (status == "certified")).all()  # noqa: E711
    assert (radius[status == "certified"] == 0.04).all()
    why = np.array(run.samples.column("not_certified").to_pylist(), dtype=object)
    assert all(why[status == "robust"])


@pytest.mark.parametrize("threat", [THREAT, "l2(0.15)", "l1(0.4)", "l0(1)"])
def test_no_attack_breaks_what_is_certified(threat: str) -> None:
    proved = certify(Net(), data(), threat)
    certified = statuses(proved) == "certified"
    assert certified.any()
    run = holdfast.evaluate(Net(), data(), threat)
    assert not (statuses(run)[certified] == "broken").any()


@pytest.mark.usefixtures("bounds_alone")
def test_without_attacks_the_upper_end_is_what_is_right_clean() -> None:
    run = certify(Net(), data(), THREAT)
    assert set(statuses(run)) <= {"wrong", "robust", "certified"}
    assert run.robust_accuracy == run.clean_accuracy
    assert run.verdict.status == "upper-bound"
    assert "at least" in words.headline(run.manifest)
    assert "no attack was run" in words.headline(run.manifest)
    states = {place.state for place in audit.places(run.manifest)}
    assert audit.TESTED not in states
    assert "White box" in dict(audit.untested(run.manifest))


def test_what_branch_and_bound_finds_wrong_is_broken_with_its_example(tmp_path: Path) -> None:
    out, target = tmp_path / "run", holdfast.wrap(Net())
    run = certify(target, data(), "linf(0.1)", seconds_per_row=60, out=out)
    broken = np.flatnonzero(statuses(run) == "broken")
    assert len(broken)
    assert set(run.samples.column("broken_by").to_pylist()) == {None}
    attacked = measured(threat="linf(0.1)", certifier=None)
    assert set(np.flatnonzero(statuses(attacked) == "broken")) <= set(broken)
    (x, y), (ids, found) = data(), zip(*run.examples(), strict=True)
    examples = np.concatenate(found)
    assert np.concatenate(ids).tolist() == broken.tolist()
    assert np.abs(examples - x[broken]).max() <= 0.1 * (1 + 1e-5)
    assert (target.labels(torch.from_numpy(examples)).numpy() != y[broken]).all()
    assert not verify(out, target, data(), certifier=Ladder(60), full=True)


def test_data_in_float64_have_examples_of_branch_and_bound_too() -> None:
    x, y = data()
    run = certify(Net(), (x.astype(np.float64), y), "linf(0.1)", seconds_per_row=60)
    assert (statuses(run) == "broken").any()
    assert not verify(run, Net(), (x.astype(np.float64), y), certifier=Ladder(60), full=True)


def test_what_proofs_found_wrong_is_judged_where_the_run_ended_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = certify(Net(), data(), "linf(0.1)", seconds_per_row=60)
    with monkeypatch.context() as patched:
        search = evaluate._search

        def dies(*args: Any, again: bool = False) -> None:
            if again:
                raise KeyboardInterrupt
            search(*args)

        patched.setattr(evaluate, "_search", dies)
        with pytest.raises(KeyboardInterrupt):
            certify(Net(), data(), "linf(0.1)", seconds_per_row=60, out=tmp_path)
    run = certify(Net(), data(), "linf(0.1)", seconds_per_row=60, out=tmp_path, resume=True)
    assert statuses(run).tolist() == statuses(whole).tolist()


@pytest.mark.slow
def test_what_an_earlier_try_found_wrong_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = certify(Net(), data(), "linf(0.1)", seconds_per_row=2)
    with monkeypatch.context() as patched:
        judge, prove = ladder._NetworkRows._judge, certificates._Chunk.prove
        seen = list[int]()

        def once(self: Any, row: int, x: torch.Tensor) -> bool:
            found = not seen and judge(self, row, x)
            seen.extend([row] if found else [])
            return found

        def cut(self: Any, *args: Any) -> None:
            prove(self, *args)
            self.finished = False

        patched.setattr(ladder._NetworkRows, "_judge", once)
        patched.setattr(certificates._Chunk, "prove", cut)
        first = certify(Net(), data(), "linf(0.1)", seconds_per_row=2, out=tmp_path)
    assert (statuses(first) == "broken").sum() == 1 < (statuses(whole) == "broken").sum()
    run = certify(Net(), data(), "linf(0.1)", seconds_per_row=2, out=tmp_path, resume=True)
    assert statuses(run).tolist() == statuses(whole).tolist()


def test_where_all_is_proved_weak_attacks_do_no_harm() -> None:
    x, y = data()
    some = certify(Net(), (x, y), "linf(0.005)")
    proved = np.flatnonzero(statuses(some) == "certified")
    how = {"attacks": ["fgsm"], "certifier": Ladder()}
    run = holdfast.evaluate(Net(), (x[proved], y[proved]), "linf(0.005)", **how)
    assert set(statuses(run)) == {"certified"}
    assert "effort" not in {f.check for f in run.verdict.findings}
    assert "all that was not broken is proved" in words.headline(run.manifest)


def test_the_largest_radius_is_proved_and_not_exceeded_by_an_attack() -> None:
    few = tuple(part[:10] for part in data())
    run = certify(Net(), few, THREAT, radius=True)
    radius = run.samples.column("certified_radius").to_numpy(zero_copy_only=False)
    assert (radius[statuses(run) == "certified"] > 0.04).all()
    assert np.isfinite(radius[statuses(run) == "robust"]).all()  # less than eps is proved
    found = holdfast.evaluate(Net(), few, "linf(inf)", protocol="quick")
    smallest = found.samples.column("size").to_numpy(zero_copy_only=False)
    known = np.isfinite(radius) & np.isfinite(smallest)
    assert known.any()
    assert (radius[known] < smallest[known]).all()
    shares = [p.certified_accuracy.value for p in run.metrics.curve if p.certified_accuracy]
    assert shares[0] == run.clean_accuracy.value
    assert shares == sorted(shares, reverse=True)


def test_at_each_eps_of_a_curve_rows_are_proved() -> None:
    sizes = (0.01, 0.02, 0.08)
    run = measured(epsilons=sizes)
    points = {point.eps: point for point in run.metrics.curve}
    proved = {eps: points[eps].certified_accuracy for eps in (0.04, *sizes)}
    for eps, share in proved.items():
        assert share is not None
        alone = certify(
            Net(), data(), f"linf({eps})", seconds_per_row=60
        ).metrics.certified_accuracy
        assert alone is not None
        assert share.value == alone.value <= points[eps].robust_accuracy.value
    assert proved[0.04] == run.metrics.certified_accuracy
    radius = run.samples.column("certified_radius").to_numpy(zero_copy_only=False)
    assert {0.01, 0.02} & set(radius[statuses(run) == "broken"])


def test_a_run_holds_and_its_proofs_are_made_again(tmp_path: Path) -> None:
    measured(tmp_path / "run", epsilons=[0.02])
    target = holdfast.wrap(Net())
    assert not verify(tmp_path / "run", target, data(), certifier=Ladder(60), full=True)
    assert any("without a certifier" in said for said in verify(tmp_path / "run", target, data()))


@pytest.mark.usefixtures("bounds_alone")
def test_a_proof_that_was_made_up_is_found(tmp_path: Path) -> None:
    run = certify(Net(), data(), "linf(0.1)", out=tmp_path / "run")
    at = list(statuses(run)).index("robust")
    columns = run.samples.to_pydict()
    columns["status"][at], columns["certified_by"][at] = "certified", "crown"
    columns["certified_radius"][at], columns["not_certified"][at] = 0.1, None
    table = run.samples.from_pydict(columns, schema=run.samples.schema)
    store.write_samples(tmp_path / "run", table)
    said = verify(tmp_path / "run", holdfast.wrap(Net()), data(), certifier=Ladder(60), full=True)
    assert f"certificates: crown does not prove rows {at} again." in said


def test_shards_are_the_run_that_one_process_writes(tmp_path: Path) -> None:
    whole = measured(tmp_path / "whole")
    measured(tmp_path / "a", samples=(0, 10))
    measured(tmp_path / "b", samples=(10, N))
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    assert merged.samples.equals(whole.samples)
    assert merged.metrics == whole.metrics


def test_time_that_ran_out_is_said_and_gone_on_with(tmp_path: Path) -> None:
    run = certify(Net(), data(), THREAT, out=tmp_path / "run", max_seconds=0)
    assert run.unfinished
    assert set(statuses(run)) == {"wrong", "robust"}
    why = set(run.samples.column("not_certified").to_pylist())
    assert why == {None, "time ran out before ibp"}
    again = certify(Net(), data(), THREAT, out=tmp_path / "run", resume=True)
    assert not again.unfinished
    assert statuses(again).tolist() == statuses(certify(Net(), data(), THREAT)).tolist()


class Slow:
    """A method that takes a second of a clock for each row, and proves nothing."""

    def __init__(self, clock: list[float], x: torch.Tensor, *_: Any) -> None:
        self.clock, self.x = clock, x
        self.wrong = dict[int, torch.Tensor]()

    def at(self, rows: torch.Tensor) -> Slow:
        return Slow(self.clock, self.x[rows])

    def climb(self, method: str) -> torch.Tensor:
        self.clock[0] += len(self.x) * (method == "dear")
        return torch.zeros(len(self.x), dtype=torch.bool)


def test_no_method_begins_what_the_time_does_not_pay_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(ladder.time, "monotonic", lambda: clock[0])
    methods = ladder.Methods(("cheap", "dear"), partial(Slow, clock))
    climb = ladder.Climb(Ladder(), holdfast.wrap(Net()), methods)
    threat = replace(Threat.linf(0.1), eps=torch.full((N,), 0.1))
    steps = list[tuple[str, int]]()
    x, y = (torch.from_numpy(part) for part in data())
    found = climb.climb(x, y, threat, 20.5, lambda *said: steps.append(said))
    assert clock[0] == 20  # not 32: the second group is cut
    assert found.reason.count("dear does not prove it") == 20
    assert found.reason.count("time ran out before dear") == N - 20
    assert steps[0] == ("cheap", 0)
    assert steps[-1] == ("dear", N)


def test_the_time_is_estimated_and_progress_says_how_many_rows() -> None:
    estimates, shares, said = [], [], []

    def on_progress(progress: Any) -> None:
        shares.append(progress.share)
        said.append(progress.trial)

    how = {"attacks": ["pgd(steps=5)"], "certifier": Ladder(2.0), "on_estimate": estimates.append}
    holdfast.evaluate(Net(), data(), THREAT, on_progress=on_progress, **how)
    assert estimates[0].proofs == 2 * N
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert any(text.startswith("proving with crown: ") for text in said)
    certify(Net(), data(), THREAT, on_estimate=estimates.append, max_seconds=5)
    assert estimates[-1].passes == 0
    assert 0 < estimates[-1].proofs <= 5


def test_a_run_without_proofs_says_nothing_of_them(tmp_path: Path) -> None:
    run = measured(tmp_path / "run", certifier=None)
    said = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "certification" not in said
    assert said["metrics"]["certified_accuracy"] is None
    assert "certified_by" not in said["metrics"]
    assert "certified_accuracy" not in said["metrics"]["curve"][0]
    assert "certified_by" not in run.samples.column_names


def test_trees_are_certified_exactly() -> None:
    x, y = (part.reshape(N, -1).squeeze() for part in data())
    forest = RandomForestClassifier(10, random_state=0).fit(x, y)
    run = holdfast.evaluate(forest, (x, y), THREAT, protocol="quick", certifier=Ladder())
    assert run.manifest.certification is not None
    assert run.manifest.certification.methods == ["leaves", "merged-leaves", "exact"]
    assert "certified" in statuses(run)


@pytest.mark.parametrize("last", ["Gemm", "Softmax"])
def test_onnx_is_proved_as_torch_is(tmp_path: Path, last: str) -> None:
    pytest.importorskip("onnx")
    x, y = open_data("digits").rows(0, 8)
    models = demo_model(), holdfast.load(str(onnx_file(tmp_path, last=last)))
    by, lower = [], []
    for model in models:
        run = certify(model, (x, y), "linf(0.004)")
        by.append(run.samples.column("certified_by").to_pylist())
        ready = prepare(holdfast.wrap(model), (x, y), THREAT, "none")
        rows = torch.from_numpy(x[:4]), torch.from_numpy(y[:4])
        lower.append(exact_bounds(ready.target.network(), *rows, THREAT, Bounds()))
    assert {"ibp", "crown"} == set(by[0])
    assert by[0] == by[1]
    assert torch.allclose(*lower, rtol=0, atol=1e-5)


def test_a_softmax_at_the_end_changes_no_status() -> None:
    models = Net(), nn.Sequential(Net(), nn.Softmax(1))
    bare, chances = (certify(one, data(), THREAT) for one in models)
    assert statuses(bare).tolist() == statuses(chances).tolist()


def test_a_single_logit_is_proved() -> None:
    net = nn.Sequential(Net(), nn.Linear(3, 1))
    x = data()[0]
    y = (net(torch.from_numpy(x))[:, 0] > 0).long().numpy()
    assert "certified" in statuses(certify(net, (x, y), "linf(0.01)"))


def test_preprocessing_is_part_of_the_proof() -> None:
    net = Net()
    first = net[1]
    with torch.no_grad():
        first.bias += first.weight.sum(1) * 0.5
        first.weight *= 0.25
    x, y = data()
    model = holdfast.wrap(net, preprocess=[holdfast.Normalize(0.5, 0.25)])
    assert (
        statuses(certify(model, (x, y), THREAT)).tolist()
        == statuses(certify(Net(), (x, y), THREAT)).tolist()
    )


@pytest.mark.parametrize("goal", ["2", "'random'", "'least-likely'"])
def test_a_threat_with_a_goal_is_proved_not_to_reach_it(goal: str, tmp_path: Path) -> None:
    threat = f"linf(0.1, target={goal})"
    proved = certify(Net(), data(), threat, out=tmp_path / "run")
    certified, of_any = (
        statuses(run) == "certified" for run in (proved, certify(Net(), data(), "linf(0.1)"))
    )
    assert (certified >= of_any).all()
    assert certified.sum() > of_any.sum()  # rows whose label may change, but not to the goal
    attacked = measured(threat=threat, certifier=None)
    assert ("broken" in statuses(attacked)) == (goal == "'random'")
    assert not (statuses(attacked)[certified] == "broken").any()
    target = holdfast.wrap(Net())
    assert not verify(tmp_path / "run", target, data(), certifier=Ladder(60), full=True)


def test_rows_of_the_goal_are_not_asked_about() -> None:
    run = certify(Net(), data(), "linf(0.005, target=0)")
    of_goal = run.samples.column("label").to_numpy() == 0
    assert set(statuses(run)[of_goal]) == {"skipped"}
    assert "certified" in statuses(run)[~of_goal]


# --- contradictions


class Everything:
    """Proves whatever it is asked about."""

    def __init__(self, graph: Any, x: torch.Tensor, *_: Any) -> None:
        self.rows = x

    def at(self, rows: torch.Tensor) -> Everything:
        raise AssertionError("no row is left")

    def climb(self, method: str, *_: Any) -> Margins:
        lower = torch.ones(len(self.rows), 3, dtype=torch.float64)
        return Margins(lower, 0 * lower, method)


def command(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    x, y = data()
    np.savez(tmp_path / "data.npz", x=x, y=y)
    (tmp_path / "net.py").write_text(
        "import torch\n\ndef build():\n    torch.manual_seed(0)\n    return torch.nn.Sequential("
        "torch.nn.Flatten(), torch.nn.Linear(16, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3))\n"
    )
    return tmp_path / "net.py", tmp_path / "data.npz"


def test_a_row_both_proved_and_broken_fails_the_run(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    net, rows = files
    monkeypatch.setattr(ladder, "Bounded", Everything)
    ask = (f"{net}:build", rows, "--threat", THREAT, "--attack", "pgd(steps=20)", "--certify")
    found = command("evaluate", *ask, "--out", tmp_path / "run")
    run = Run(tmp_path / "run")
    broken = run.samples.column("id").to_numpy()[statuses(run) == "broken"]
    assert found.exit_code == 3
    assert f"contradiction: Rows {broken[0]}" in found.stderr
    assert run.verdict.status == "unreliable"
    assert next(f for f in run.verdict.findings if f.check == "contradiction").ids[0] == broken[0]
    assert command("verify", tmp_path / "run", f"{net}:build", rows).exit_code == 3
    command("certify", *ask[:4], "--out", tmp_path / "proved")
    found = command("compare", tmp_path / "proved", tmp_path / "run")
    assert found.exit_code == 3
    assert f"contradiction: rows {broken[0]}" in found.stderr
    parts = [("--samples", "0:12", "--out", tmp_path / "a"), ("--samples", "12:24")]
    command("evaluate", *ask, *parts[0])
    command("evaluate", *ask, *parts[1], "--out", tmp_path / "b")
    joined = command("merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "merged")
    assert joined.exit_code == 3


# --- the commands


def test_the_command_and_its_gate(files: tuple[Path, Path], tmp_path: Path) -> None:
    net, rows = files
    ask = (f"{net}:build", rows, "--threat", THREAT, "--samples", "10")
    held = command("certify", *ask, "--gate", "certified_accuracy>=0.1", "--out", tmp_path / "a")
    assert held.exit_code == 0, held.output
    gate = ("--gate", "certified_accuracy.low>=0.99", "--out", tmp_path / "b")
    missed = command("certify", *ask, *gate)
    assert missed.exit_code == 1
    assert command("verify", tmp_path / "a", *ask[:2], "--full").exit_code == 0
    how = ("--protocol", "quick", "--certify", "--radius", "--out", tmp_path / "c")
    both = command("evaluate", *ask, *how)
    assert both.exit_code == 0, both.output
    assert "Proved: " in " ".join(both.stdout.split())


@pytest.mark.usefixtures("bounds_alone")
def test_the_headline_is_the_bracket() -> None:
    run = measured(threat="linf(0.1)")
    assert run.metrics.certified_accuracy is not None
    ends = (run.metrics.certified_accuracy, run.robust_accuracy)
    low, high = (words.percent(share.value) for share in ends)
    said = words.headline(run.manifest)
    assert f"robust accuracy lies between {low} (proved) and {high} (not broken)." in said


class Noisy(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.randn(len(x), 3)


class Odd(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).cumsum(1)


class Dropping(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout(x, training=True))


class Together(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = super().forward(x)
        return z + 0.1 * z.mean(0)


class Normalised(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.batch_norm(x, None, None, training=True))


class Counting(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


class Exported(Net):
    """Answers otherwise where it is traced."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = super().forward(x)
        return 2 * z if torch.compiler.is_compiling() else z


class InThrees(Net):
    """Answers otherwise to three rows and more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = super().forward(x)
        return z if len(x) < 3 else 2 * z


@pytest.mark.parametrize(
    ("model", "threat", "said"),
    [
        (Net(), "rotation(30, 3)", "movement of images"),
        (Net(), "linf(inf)", "eps is not finite"),
        (Net(), "linf(2)", "larger than the whole box"),
        (Odd(), THREAT, "operator cumsum"),
        (Net().half(), THREAT, "float16"),
        (Noisy(), THREAT, "randomised"),
        (Dropping(), THREAT, "randomised"),
        (Together(), THREAT, "others of its batch"),
        (InThrees(), THREAT, "others of its batch"),
        (Exported(), THREAT, "answers otherwise"),
        (Normalised(), THREAT, "by the statistics of the batch"),
        (Counting(), THREAT, "overwrites"),
        (holdfast.wrap(Net(), draws=4), THREAT, "randomised"),
        (Net(), "linf(0.04, target=3)", "knows 0 to 2"),
        (Net(), "linf(-1)", "eps"),
    ],
)
def test_what_cannot_be_proved_is_refused(model: Any, threat: str, said: str) -> None:
    with pytest.raises(HoldfastError, match=said) as error:
        certify(model, data(), threat)
    assert "\n" not in str(error.value)


def test_trees_are_proved_in_linf_alone() -> None:
    x, y = (part.reshape(N, -1).squeeze() for part in data())
    forest = RandomForestClassifier(3, random_state=0).fit(x, y)
    with pytest.raises(HoldfastError, match=r"proofs of trees under l2\(1\); expected linf"):
        certify(forest, (x, y), "l2(1)")


def test_a_model_without_a_graph_is_refused() -> None:
    x, y = (part.reshape(N, -1).squeeze() for part in data())
    with pytest.raises(HoldfastError, match="not supported: proofs of a SVC"):
        certify(SVC().fit(x, y), (x, y), THREAT)
    with pytest.raises(HoldfastError, match="seconds_per_row"):
        Ladder(seconds_per_row=0)


def test_options_of_proofs_need_proofs(files: tuple[Path, Path]) -> None:
    net, rows = files
    found = command("evaluate", f"{net}:build", rows, "--threat", THREAT, "--radius")
    assert found.exit_code == 2
    assert "need --certify" in found.stderr
