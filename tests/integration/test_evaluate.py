"""The main job: what an evaluation must hold whatever happens to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.commands import assert_same_figures
from torch import Tensor, nn

import holdfast
from holdfast.attacks import SearchResult, parse
from holdfast.attacks.problem import meets_goal
from holdfast.attacks.shared import pool
from holdfast.data import from_arrays, open_data
from holdfast.diagnostics.gradient_sources import GradientSources
from holdfast.errors import InputError, SpecError
from holdfast.evaluation import judge
from holdfast.evaluation.build_manifest import build_manifest
from holdfast.evaluation.merge import merge
from holdfast.evaluation.verify import verify
from holdfast.runs import journal, store
from holdfast.runs.manifest import Facts
from holdfast.runs.metrics import survivors
from holdfast.runs.run import Run
from holdfast.targets import Access, TorchTarget
from holdfast.targets.demo import demo_model
from holdfast.threats.threat import Threat

ATTACKS = (
    'apgd(steps=6, loss="mifpe")',
    'apgd(steps=6, loss="dlr", targets=2)',
    "pgd(steps=5, restarts=2)",
)
N = 60


def digits(n: int = N) -> tuple[np.ndarray, np.ndarray]:
    return open_data("digits").rows(0, n)


def measure(
    model: nn.Module | None = None, *, n: int = N, threat: str = "linf(0.08)", **options
) -> Run:
    batch_size = options.pop("batch_size", 64)
    target = holdfast.wrap(model or demo_model(), batch_size=batch_size)
    attacks = options.pop("attacks", ATTACKS)
    return holdfast.evaluate(
        target, options.pop("data", digits(n)), threat, attacks=attacks, **options
    )


def statuses(run: Run) -> list[str]:
    return run.samples.sort_by("id").column("status").to_pylist()


class Wrapped(nn.Module):
    """The demo model with its logits changed."""

    def __init__(self, change) -> None:
        super().__init__()
        self.inner, self.change = demo_model(), change

    def forward(self, x: Tensor) -> Tensor:
        return self.change(self.inner(x), x)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return measure(out=tmp_path_factory.mktemp("whole") / "run", epsilons=(0.04,))


def test_figures_are_those_of_the_samples(whole: Run) -> None:
    status = np.array(statuses(whole))
    m = whole.metrics
    assert m.robust_accuracy.value == (status == "robust").mean()
    assert m.clean_accuracy.value == (status != "wrong").mean()
    assert sum(m.counts.values()) == m.robust_accuracy.n == N
    assert 0 < m.counts["broken"] < N
    assert sum(t.broken for t in whole.manifest.trials if t.eps == 0.08) == m.counts["broken"]
    assert np.array(m.confusion.attacked).sum() == N
    assert np.trace(m.confusion.attacked) == m.counts["robust"]
    curve = {p.eps: p for p in m.curve}
    assert curve[0.04].measured
    assert not curve[0.024].measured
    values = [p.robust_accuracy.value for p in m.curve]
    assert values == sorted(values, reverse=True)


def test_run_json_is_what_the_published_schema_says(whole: Run) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    published = Path(__file__).parents[2] / "docs" / "schema" / "run.schema.json"
    text = (whole.folder / "run.json").read_text(encoding="utf-8")
    jsonschema.validate(json.loads(text), json.loads(published.read_text(encoding="utf-8")))


def test_an_unchanged_run_verifies(whole: Run) -> None:
    assert verify(whole.folder, holdfast.wrap(demo_model()), open_data_arrays()) == []


def open_data_arrays():
    from holdfast.data import from_arrays

    return from_arrays(*digits())


KILLED = """
import gc, os, signal, sys
from holdfast.runs import journal, store
import test_evaluate

whole_write = store.write_bytes
gc.freeze()  # the children share these pages, which the collector would copy

def killed(left, stage, **options):
    def write(path, content):
        nonlocal left
        left -= 1
        if left == 0 and stage == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if left == 0 and stage == "half":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name("." + path.name + ".part").write_bytes(content[: len(content) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        whole_write(path, content)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    store.write_bytes = journal.write_bytes = write
    test_evaluate.measure(out={out!r}, epsilons=(0.04,), **options)

for left, stage, resume in {moments}:
    child = os.fork()  # each a process of its own, that imports nothing anew
    if not child:
        killed(left, stage, resume=resume)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), os.path.exists({out!r} + "/run.json"))
"""


def test_kill_9_at_five_moments_then_resume_gives_the_same_run(whole: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    moments = [
        (2, "after", False),
        (2, "half", True),
        (3, "before", True),
        (1, "half", True),
        (4, "after", True),
    ]
    script = KILLED.format(out=str(out), moments=moments)
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.splitlines() == [f"{-signal.SIGKILL} False"] * 5
    again = measure(out=out, epsilons=(0.04,), resume=True)
    assert again.samples.equals(whole.samples)
    assert again.metrics == whole.metrics
    assert again.manifest.files == whole.manifest.files
    assert not (out / "journal").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"threat": "linf(0.09)"}, "eps 0.08.*0.09"),
        ({"model": Wrapped(lambda z, x: z)}, "model"),
        ({"data": (digits()[0] * np.float32(0.99), digits()[1])}, "data"),
        ({"seed": 1}, "seed 0.*1"),
    ],
)
def test_resume_refuses_another_question_by_name(whole: Run, change: dict, named: str) -> None:
    with pytest.raises(InputError, match=f"cannot resume.*made with {named}"):
        measure(**({"out": whole.folder, "epsilons": (0.04,), "resume": True} | change))


def test_resume_says_that_a_protocol_has_another_version(tmp_path: Path) -> None:
    begun = {"protocol": "standard version 7: pgd(steps=3)"}
    journal.refuse_changes(tmp_path, begun, {"protocol": "standard version 8: pgd(steps=3)"})
    with pytest.raises(InputError, match=r"with standard version 7, .* standard version 8, whose"):
        journal.refuse_changes(tmp_path, begun, {"protocol": "standard version 8: pgd(steps=4)"})
    with pytest.raises(InputError, match=r"standard version 7 and .* quick version 4\. Use"):
        journal.refuse_changes(tmp_path, begun, {"protocol": "quick version 4: pgd(steps=4)"})
    own = {"protocol": "custom version 1: pgd(steps=3)"}
    with pytest.raises(InputError, match=r"pgd\(steps=3\) and .* pgd\(steps=4\)"):
        journal.refuse_changes(tmp_path, own, {"protocol": "custom version 1: pgd(steps=4)"})


def test_a_folder_with_another_run_is_left_alone(whole: Run) -> None:
    before = store.checksums(whole.folder)
    with pytest.raises(InputError, match="holds a finished run"):
        measure(out=whole.folder)
    assert store.checksums(whole.folder) == before


def doubled(model: nn.Module, *, n: int = N, **options) -> Run:
    """In float64."""
    x, y = digits(n)
    return measure(model.double(), data=(x.astype(np.float64), y), **options)


@pytest.fixture(scope="module")
def ordinary() -> tuple[Run, Run]:
    """The demo in float64 and in float32."""
    return doubled(demo_model()), measure()


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_batch_size_changes_nothing(batch_size: int, ordinary: tuple[Run, Run]) -> None:
    n = 20 if batch_size == 1 else N  # each row is a pass of its own there
    other = doubled(demo_model(), n=n, batch_size=batch_size)
    assert {"robust", "broken"} <= set(statuses(other))
    assert statuses(other) == statuses(ordinary[0])[:n]
    assert other.samples.column("forwards").equals(ordinary[0].samples.column("forwards")[:n])
    assert_same_but_unstable(measure(n=n, batch_size=batch_size), ordinary[1], n)


def assert_same_but_unstable(a: Run, b: Run, n: int = N) -> None:
    """On the first n rows."""
    pairs = zip(statuses(a), statuses(b)[:n], strict=True)
    assert all(left == right or "unstable" in (left, right) for left, right in pairs)


def test_shards_merge_into_the_run_of_one_process(whole: Run, tmp_path: Path) -> None:
    parts = [(40, 60), (0, 20), (20, 40)]
    for i, part in enumerate(parts):
        measure(out=tmp_path / str(i), epsilons=(0.04,), samples=part)
    run = merge([tmp_path / str(i) for i in range(3)], tmp_path / "merged")
    merged = run.manifest
    assert_same_but_unstable(run, whole)
    assert run.samples.column("broken_by").equals(whole.samples.column("broken_by"))
    assert_same_figures(merged.metrics, whole.metrics)
    assert [t.broken for t in merged.trials] == [t.broken for t in whole.manifest.trials]
    assert merged.files.keys() == whole.manifest.files.keys()
    assert verify(run.folder, holdfast.wrap(demo_model()), open_data_arrays()) == []


def test_rounds_say_what_one_more_would_break() -> None:
    two, three = (measure(attacks=[f"pgd(steps=2, restarts={n})"]) for n in (2, 3))
    (trial,), (more,) = two.manifest.trials, three.manifest.trials
    assert more.restarts[:2] == trial.restarts
    assert more.restarts[2].attacked == trial.attacked - trial.broken > 0
    assert (trial.attacked, trial.broken) == (
        trial.restarts[0].attacked,
        sum(r.broken for r in trial.restarts),
    )
    assert two.metrics.survivors == survivors(trial.restarts[1])
    assert more.restarts[2].broken <= two.metrics.survivors.high
    alone, still = (
        measure(attacks=["pgd(steps=2)"]),
        measure(attacks=["pgd(steps=2)", "fmn(steps=3, max_margin=0.001)"]),
    )
    # nothing says how the rows that a first round leaves differ from the others
    assert alone.metrics.survivors is None
    # FMN draws nothing, and here it breaks nothing
    assert still.metrics.survivors == survivors(still.manifest.trials[0].restarts[0])
    # one more relay would start at another point than the last one
    warm = ["pgd(steps=2)", 'relay(steps=1, climb=1, step_size=0.001, start_at="best")']
    left = measure(attacks=warm)
    assert [t.broken for t in left.manifest.trials][1] == 0
    assert left.metrics.survivors == survivors(left.manifest.trials[0].restarts[0])
    # nobody knows whether a restart would have left the rows that a later attack breaks
    later = measure(attacks=["pgd(steps=1)", 'relay(steps=30, start_at="best")'])
    assert later.manifest.trials[1].broken > 0
    assert later.metrics.survivors is None


def test_an_estimate_as_earlier_versions_made_it_is_confirmed(tmp_path: Path) -> None:
    relay = 'relay(steps=1, climb=1, step_size=0.001, start_at="best")'
    run = measure(out=tmp_path / "run", attacks=["pgd(steps=2)", relay])
    (last,) = run.manifest.trials[1].restarts
    for restart, confirmed in ((last, True), (last.model_copy(update={"broken": 1}), False)):
        metrics = run.manifest.metrics.model_copy(update={"survivors": survivors(restart)})
        store.write_manifest(run.folder, run.manifest.model_copy(update={"metrics": metrics}))
        found = verify(run.folder, holdfast.wrap(demo_model()), open_data_arrays())
        assert (found == []) == confirmed


def test_a_shard_mixes_in_the_same_images() -> None:
    """Whichever rows are measured, what is mixed into them comes from all of the data."""
    options = {"attacks": ["admix(steps=3)"], "threat": "linf(0.04)"}
    first, second = (statuses(measure(samples=part, **options)) for part in ((0, 20), (20, 60)))
    assert [*first, *second] == statuses(measure(**options))
    assert 0 < [*first, *second].count("broken") < N


def test_the_images_that_a_user_gives_are_used() -> None:
    target, data, mix = TorchTarget(demo_model()), open_data("digits"), parse("admix(steps=1)")
    held = GradientSources(target, Threat.linf(0.1), data).images(mix)
    assert held is not None
    assert len(held[1]) == pool.ROWS
    own = torch.rand(3, 1, 8, 8), torch.arange(3)
    assert GradientSources(target, Threat.linf(0.1), data, own).images(mix) is own
    x, y = data.rows(0, 8)
    usual, substitute = (
        holdfast.attack(target, x, y, "linf(0.1)", "admix(steps=3)", pool=given)
        for given in (None, own)
    )
    assert not np.array_equal(usual.x_adv, substitute.x_adv)
    with pytest.raises(SpecError, match="images of one class alone"):
        holdfast.attack(target, x, y, "linf(0.1)", "admix", pool=(own[0], torch.ones(3)))


def test_order_changes_nothing() -> None:
    # The same rows under the same ids in another order: what a shuffled loader gives.
    x, y = (torch.from_numpy(a) for a in digits())
    target = holdfast.wrap(demo_model().double(), shape=(1, 8, 8))
    ids = torch.arange(N)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    attack = holdfast.attacks.parse("apgd(steps=6)")
    threat = holdfast.Threat.linf(0.08)

    def result(rows: Tensor) -> SearchResult:
        return holdfast.attacks.run(
            attack, target, x.double()[rows], y.long()[rows], threat, ids=ids[rows]
        )

    in_order, shuffled = result(ids), result(order)
    assert torch.equal(shuffled.outcome, in_order.outcome[order])
    assert torch.equal(shuffled.forwards, in_order.forwards[order])
    assert torch.allclose(shuffled.size, in_order.size[order], rtol=1e-12)


@pytest.mark.parametrize(
    "change", [lambda z, x: z + 100, lambda z, x: z * 300], ids=["+100", "x300"]
)
def test_shift_and_scale_of_the_logits_change_no_status(change, ordinary: tuple[Run, Run]) -> None:
    assert statuses(doubled(Wrapped(change))) == statuses(ordinary[0])
    assert_same_but_unstable(measure(Wrapped(change)), ordinary[1])


def test_nan_is_failed_never_robust_never_broken() -> None:
    def off_grid_nan(z: Tensor, x: Tensor) -> Tensor:
        off = ((x * 16).round() - x * 16).abs().flatten(1).amax(1) > 1e-3
        return torch.where(off[:, None], torch.nan, z)

    run = measure(Wrapped(off_grid_nan))
    assert set(statuses(run)) == {"failed", "wrong"}
    assert run.robust_accuracy.value == 0
    assert run.metrics.attack_success_rate.value == 0
    assert run.verdict.status == "unreliable"
    assert "failed" in [f.check for f in run.verdict.findings]


def test_zero_gradients_are_not_robustness() -> None:
    run = measure(Wrapped(lambda z, x: z.detach()))
    assert run.verdict.status == "unreliable"
    assert "zero_gradients" in [f.check for f in run.verdict.findings]


def test_probabilities_are_found_and_served_as_logits(whole: Run) -> None:
    run = measure(Wrapped(lambda z, x: z.softmax(1)), epsilons=(0.04,))
    assert "probabilities" in [f.check for f in run.verdict.findings]
    assert abs(run.robust_accuracy.value - whole.robust_accuracy.value) <= 0.01  # pyright: ignore


def test_a_randomised_model_is_unstable() -> None:
    run = measure(Wrapped(lambda z, x: z + 10 * torch.randn_like(z)))
    assert run.metrics.counts["unstable"] > N / 4
    assert run.verdict.status == "unreliable"


def test_a_chunk_that_time_did_not_reach_is_skipped_whole() -> None:
    run = measure(max_seconds=0)
    assert set(statuses(run)) == {"skipped"}
    assert run.metrics.clean_accuracy.n == 0
    assert run.verdict.status == "unreliable"  # no figure can be quoted


def test_a_protocol_cut_short_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([0.0] * 4)  # asked before the first unit, around it and after its first step
    clock = SimpleNamespace(monotonic=lambda: next(ticks, float("inf")))
    monkeypatch.setattr(sys.modules["holdfast.evaluation.chunk"], "time", clock)
    run = measure(max_seconds=1000, epsilons=(0.04,))
    assert "robust" in statuses(run)
    assert run.verdict.status == "upper-bound"
    assert "unfinished" in [f.check for f in run.verdict.findings]
    assert [eps for eps, _ in run.manifest.threat.measured] == [0.08]


def test_a_sigmoid_head_is_measured_as_its_logit() -> None:
    x, y = digits()
    data = (x, (y >= 5).astype(np.int64))

    def one(z: Tensor, _: Tensor) -> Tensor:
        return z[:, 5:].logsumexp(1) - z[:, :5].logsumexp(1)

    heads = (Wrapped(one), Wrapped(lambda z, x: one(z, x).sigmoid()))
    attacks = [text.replace("targets=2", "targets=1") for text in ATTACKS]
    logit, sigmoid = (measure(head, data=data, attacks=attacks) for head in heads)
    assert statuses(logit) == statuses(sigmoid)
    assert "broken" in statuses(logit)


def test_rows_of_the_goal_itself_are_not_broken_by_it() -> None:
    run = measure(threat="linf(0.0001, target=2)", attacks=["pgd(steps=2)"])
    label, status = run.samples.column("label").to_pylist(), statuses(run)
    assert {s for s, c in zip(status, label, strict=True) if c == 2} == {"skipped"}
    assert "broken" not in status


def test_what_cannot_be_meant_is_refused() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    for threat, attacks in (
        (holdfast.Threat.linf(0.1, mask=mask), ["pgd"]),
        (holdfast.Threat.linf(0.1, goal=holdfast.Targeted(2)), ["pgd(targets=2)"]),
    ):
        with pytest.raises(holdfast.SpecError):
            holdfast.evaluate(holdfast.wrap(demo_model()), digits(), threat, attacks=attacks)


def edit_manifest(run: dict) -> None:
    run["threat"]["text"], run["threat"]["eps"] = "linf(0.8)", 0.8


def edit_protocol(run: dict) -> None:
    run["protocol"]["name"] = "standard"


def edit_trial(run: dict) -> None:
    run["trials"][0]["spec"] = "autoattack()"


def edit_limit(run: dict) -> None:
    run["threat"]["measured"][0][1] = 0.5


def edit_rounds(run: dict) -> None:
    run["trials"][0]["restarts"][0]["broken"] -= 1


@pytest.mark.parametrize(
    "edit", [edit_manifest, edit_protocol, edit_trial, edit_limit, edit_rounds]
)
def test_verify_does_not_believe_run_json(whole: Run, tmp_path: Path, edit) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    content = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    edit(content)
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    assert verify(folder, holdfast.wrap(demo_model()), open_data_arrays())


@pytest.mark.parametrize(
    "status", ["robust", "certified", "skipped", "unstable", "failed", "wrong"]
)
def test_verify_finds_a_broken_row_that_is_called_something_else(
    whole: Run, tmp_path: Path, status: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    table = whole.samples
    edited = [status if s == "broken" else s for s in table.column("status").to_pylist()]
    at = table.schema.get_field_index("status")
    table = table.set_column(at, "status", [edited])
    store.write_samples(folder, table)
    facts = Facts(**{name: getattr(whole.manifest, name) for name in Facts.model_fields})
    # every figure made to fit
    store.write_manifest(folder, build_manifest(folder, facts, table, whole.manifest.trials))
    assert verify(folder, holdfast.wrap(demo_model()), open_data_arrays())


def test_merge_refuses_a_shard_that_was_changed(whole: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    store.write_samples(folder, whole.samples.slice(1))
    with pytest.raises(InputError, match="was changed after its run"):
        merge([folder], tmp_path / "merged")


def test_records_of_an_earlier_version_with_equal_trials_serve_a_resume(tmp_path: Path) -> None:
    begun = {"protocol": "standard version 7: pgd(steps=3)", "seed": "0"}
    first, later, other = (journal.Journal(tmp_path) for _ in range(3))
    first.open(begun, resume=False)
    first.write("000", {"at": np.arange(3)})
    later.open(begun | {"protocol": "standard version 8: pgd(steps=3)"}, resume=True)
    assert later.find("000") is not None
    with pytest.raises(InputError, match="cannot resume"):
        other.open(begun | {"seed": "1"}, resume=True)


@pytest.mark.parametrize("name", ["quick", "standard"])
def test_merge_names_two_protocols_without_their_trials(tmp_path: Path, name: str) -> None:
    folders = [tmp_path / of for of in ("new", "old")]
    for folder, rows in zip(folders, [(0, 20), (20, 40)], strict=True):
        measure(out=folder, protocol="quick", attacks=[], samples=rows)
    protocol = (before := store.read_manifest(folders[1])).protocol
    other = {"name": name, "version": 3, "trials": protocol.trials[1:]}
    protocol = protocol.model_copy(update=other)
    store.write_manifest(folders[1], before.model_copy(update={"protocol": protocol}))
    for order in (folders, folders[::-1]):
        with pytest.raises(InputError, match=r"cannot merge .*old: its protocol is") as refused:
            merge(order, tmp_path / "merged")
        said = str(refused.value)
        assert re.search(rf"is {name} version 3, and .*new has quick version \d+\.", said)
        assert "apgd" not in said
        assert ("run one of them again" in said) == (name == "quick")
        assert not (tmp_path / "merged").exists()


def test_the_query_budget_is_hard() -> None:
    run = measure(max_queries=9)
    assert max(run.samples.column("forwards").to_pylist()) <= 9
    assert "budget" in [f.check for f in run.verdict.findings]


class Planted:
    """What a bad attack might hand in for rows that the model has right."""

    def __init__(self) -> None:
        x, y = (torch.from_numpy(a) for a in digits(8))
        self.x, self.y = x, y.long()
        self.target = TorchTarget(demo_model(), shape=(1, 8, 8))
        self.threat = holdfast.Threat.linf(0.1)

    def legal(self, found: Tensor) -> Sequence[bool]:
        return judge.within(self.target, self.threat, self.x, found)[0].tolist()


@pytest.mark.parametrize(
    "bad",
    [
        lambda x: (x + 0.11).clamp(0, 1),  # outside eps
        lambda x: x - 0.05,  # outside the box
        lambda x: torch.where(x > 0.5, torch.nan, x),
        lambda x: torch.where(x > 0.5, torch.inf, x),
    ],
    ids=["eps", "box", "nan", "inf"],
)
def test_planted_examples_count_for_nothing(bad) -> None:
    planted = Planted()
    assert not any(planted.legal(bad(planted.x)))
    assert all(planted.legal((planted.x + 0.1).clamp(0, 1)))


def test_an_original_handed_in_for_a_target_counts_for_nothing() -> None:
    planted = Planted()
    label = judge.rule(planted.target, planted.x).label
    goal = holdfast.Threat.linf(0.1, goal=holdfast.Targeted(3))
    meets = meets_goal(goal, label, planted.y)
    assert meets.tolist() == (label == 3).tolist()


def test_only_rows_close_to_being_broken_are_attacked_further() -> None:
    """By a rule on the row alone: batches change nothing."""
    attacks = ["pgd(steps=3)", "pgd(steps=3, step_size=0.3, max_margin=0.5)"]
    run, other = measure(attacks=attacks), measure(attacks=attacks, batch_size=7)
    first, second = run.manifest.trials
    assert 0 < second.attacked < first.attacked - first.broken
    assert statuses(run) == statuses(other)
    everyone = measure(attacks=["pgd(steps=3)", "pgd(steps=3, step_size=0.3)"])
    assert everyone.manifest.trials[1].attacked == first.attacked - first.broken


def test_rows_that_an_attack_has_searched_are_left() -> None:
    """By those alone that it asked about, and not where it could not follow the model."""
    attacks = ["pgd(steps=3)", "square(steps=2, max_margin=0.5)", "acg(steps=2, unless='square')"]
    first, second, third = measure(attacks=attacks).manifest.trials
    assert 0 < second.attacked < first.attacked
    assert third.attacked == first.attacked - first.broken - second.attacked
    again = measure(attacks=["pgd(steps=3)", "acg(steps=2, restarts=2, unless='acg')"])
    assert again.manifest.trials[1].restarts[1].attacked > 0  # its own restarts are not earlier
    alone = measure(attacks=["pgd(steps=3)", "acg(steps=2, unless='square')"]).manifest.trials
    assert alone[1].attacked == alone[0].attacked - alone[0].broken


def test_one_search_for_the_smallest_serves_every_eps() -> None:
    eps = [0.04, 0.08, 0.16]
    run = measure(threat="linf(0.08)", epsilons=[0.04, 0.16], attacks=["fmn(steps=40)"])
    assert [t.attacked > 0 for t in run.manifest.trials] == [True, False, False]
    size = run.samples.column("size").to_numpy(zero_copy_only=False)
    assert not bool((size > 0.16 * 1.001).any())
    alone = [
        measure(threat=f"linf({e})", attacks=["fmn(steps=40)"]).robust_accuracy.value for e in eps
    ]
    assert alone == sorted(alone, reverse=True)
    wrong = sum(s == "wrong" for s in statuses(run))
    found = [1 - (wrong + int((size <= e * 1.000001).sum())) / N for e in eps]
    assert found == pytest.approx(alone)


def test_an_attack_goes_on_from_the_best_point_known() -> None:
    cold = measure(attacks=["pgd(steps=6)", "pgd(steps=1, step_size=0.05, start_at='zero')"])
    warm = measure(attacks=["pgd(steps=6)", "pgd(steps=1, step_size=0.05, start_at='best')"])
    margins = [run.samples.column("margin").to_numpy(zero_copy_only=False) for run in (cold, warm)]
    standing = np.array([s == "robust" for s in statuses(warm)])
    assert float(margins[1][standing].mean()) < float(margins[0][standing].mean())


def test_the_cost_is_estimated_before_the_start() -> None:
    messages = []
    for attacks in (
        ["pgd(steps=20)"],
        ["pgd(steps=10)", "apgd(steps=15, targets=3)", "square(steps=40, max_margin=0.6)"],
        ["square(steps=40)", "acg(steps=100, unless='square')"],
    ):
        run = measure(attacks=attacks, on_estimate=messages.append)
        right = sum(s != "wrong" for s in statuses(run))
        spent = (run.manifest.costs.forwards + run.manifest.costs.backwards) / max(right, 1)
        assert 0.5 < messages[-1].passes / spent < 2
        assert messages[-1].rows == N
        assert messages[-1].seconds > 0


def test_a_protocol_for_scores_is_known_again() -> None:
    target = holdfast.wrap(demo_model())
    target.bind((1, 8, 8))
    target.access = Access.SCORES
    run = holdfast.evaluate(target, digits(3), "linf(0.6)", protocol="quick")
    assert not any("apgd" in trial for trial in run.manifest.protocol.trials)
    assert verify(run.folder, target, from_arrays(*digits(3))) == []
