"""A run that was changed after it was made is not confirmed, even with every digest and figure made
to fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers.small_runs import N, Softmax, found, measure, refigured, rows, seal
from safetensors.numpy import load_file, save_file

import holdfast
from holdfast.data import from_arrays
from holdfast.errors import HoldfastError, InputError
from holdfast.evaluation.merge import merge
from holdfast.evaluation.verify import verify
from holdfast.reporting import html
from holdfast.runs import store
from holdfast.runs.compare import compare
from holdfast.runs.manifest import Costs, Finding, Manifest


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = measure(tmp_path_factory.mktemp("whole") / "run", epsilons=(0.02,))
    assert 0 < run.metrics.counts["broken"] < N - 3
    assert [finding.check for finding in run.manifest.initial_findings] == ["logit_scale"]
    return run.folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def test_a_genuine_run_of_a_model_that_gives_probabilities_holds(tmp_path: Path) -> None:
    """Line 5: the run of a softmax, and of a random forest, holds; also when the target is the
    object that was used."""
    from sklearn.ensemble import RandomForestClassifier

    x, y = rows()
    forest = RandomForestClassifier(5, random_state=0).fit(x.reshape(N, -1), y)
    for name, model, inputs in (("softmax", Softmax(), x), ("forest", forest, x.reshape(N, -1))):
        target, source = holdfast.wrap(model), from_arrays(inputs, y)
        made = holdfast.evaluate(
            target, source, "linf(0.1)", attacks=["square(steps=3)"], out=tmp_path / name
        )
        assert made.manifest.model.probabilities
        assert verify(tmp_path / name, target, source) == []
        assert verify(tmp_path / name, holdfast.wrap(model), source) == []


def test_an_unchanged_run_holds(whole: Path) -> None:
    """Line 5: nothing is found where nothing was changed."""
    assert found(whole) == []


def renamed(m: Manifest) -> Manifest:
    protocol = m.protocol.model_copy(update={"name": "autoattack", "version": 2})
    return m.model_copy(update={"protocol": protocol})


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (renamed, "version 2 cannot be checked"),
        (
            lambda m: m.model_copy(update={"perceptual": "ab" * 32}),
            "perceptual: run.json names a network",
        ),
        (lambda m: m.model_copy(update={"max_queries": 1}), "more than the budget"),
        (
            lambda m: m.model_copy(update={"probe_costs": Costs(forwards=9)}),
            "probe_costs: run.json says 9",
        ),
        (
            lambda m: m.model_copy(
                update={"initial_findings": [Finding(check="one_step", severity="red", text="")]}
            ),
            "one_step",
        ),
    ],
    ids=["renamed", "perceptual", "budget", "probe", "initial_findings"],
)
def test_forged_facts_are_found(
    run: Path, change: Callable[[Manifest], Manifest], seen: str
) -> None:
    """Line 5: a protocol under another name, an invented network, a budget, a probe or a
    finding."""
    seal(run, refigured(run, change(store.read_manifest(run))))
    assert seen in " ".join(found(run))


def test_an_emptied_probe_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line 5: whether a probe was due follows from protocol, budget and target, not from
    what run.json says."""
    short = {"autoattack": (3, "", {"other": ("apgd(steps=2)",)})}
    monkeypatch.setattr("holdfast.evaluation.protocols.PROTOCOLS", short)
    made = measure(tmp_path / "run", attacks=(), protocol="autoattack")
    assert made.manifest.probe_costs.forwards > 0
    assert found(made.folder) == []
    noted = [
        finding for finding in made.manifest.initial_findings if finding.check == "logit_scale"
    ]
    emptied = made.manifest.model_copy(update={"probe_costs": Costs(), "initial_findings": noted})
    seal(made.folder, refigured(made.folder, emptied))
    assert "probe_costs: run.json says 0 forwards" in " ".join(found(made.folder))


def test_an_edited_page_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line 5: every text of report.html is that of a new rendering; its pictures alone may
    differ."""
    page = html.write(run)
    text = page.read_text("utf-8")
    assert list(html.differs(run)) == []
    monkeypatch.setattr(html, "_render", lambda *_: text)  # it is the same each time, and slow
    figure = text.index("robust accuracy", text.index("<svg"))
    picture = text.index("base64,") + 100
    for edited, differs in (
        (text, False),
        (text.replace("upper-bound", "trusted", 1), True),
        (text.replace("<body>", "<body><p>Certified.</p>"), True),
        (text[:figure] + "proved" + text[figure:], True),
        (text.replace("</svg>", "<script>1</script></svg>", 1), True),
        (text[:picture] + "A" + text[picture + 1 :], False),
    ):
        page.write_text(edited, "utf-8")
        assert bool(list(html.differs(run))) is differs


def test_exchanged_pictures_are_found(run: Path) -> None:
    """Line 5: the gallery holds the originals of the data and the stored examples, and no
    others."""
    held = load_file(run / "gallery.safetensors")
    for name in ("x", "x_adv"):
        save_file(held | {name: held[name][::-1].copy()}, run / "gallery.safetensors")
        seal(run, store.read_manifest(run))
        assert "gallery" in " ".join(found(run))
    (run / "gallery.safetensors").unlink()
    seal(run, store.read_manifest(run))
    assert "gallery" in " ".join(found(run))


def test_another_schema_is_refused_in_one_sentence(run: Path) -> None:
    """Line 5: a schema version that this Holdfast does not know is not read."""
    text = (
        (run / "run.json").read_text("utf-8").replace('"schema_version": 2', '"schema_version": 99')
    )
    (run / "run.json").write_text(text, "utf-8")
    with pytest.raises(InputError, match="schema version 99"):
        found(run)
    with pytest.raises(InputError, match="schema version 99"):
        html.write(run)


# What no folder can prove: texts and settings that decide nothing, what one device measured, and
# what only the attacks could show again (how much a row cost, which trial came first, how near it
# came).
FREE = {
    "seed": "another one draws other noise in the attacks, which are not run again",
    "model.spec": "what was typed",
    "model.arch": "what was typed",
    "model.surrogate": "the model is verified without it",
    "data.spec": "what was typed",
    "data.split": "what was typed",
    "max_queries": "a larger one than any row cost says no more than no budget",
    "settings": "decide nothing",
    "provenance": "where and when",
    "probe_costs.seconds": "a clock's",
    "costs.seconds": "a clock's",
    "corruptions": "held where there are some: see test_corruptions",
    "threat.measured": "an eps may be left out: what was run there then counts as an upper bound",
    "initial_findings.value": "within a quarter: another device may find another",
    "initial_findings.passes": "what it cost",
    "initial_findings.ids": "the first rows that show it",
    "trials.costs": "their sums are held against the samples, which could be made to fit",
    "trials.restarts": "how many each round broke; their sums are held",
}
FIGURES = ("metrics", "verdict", "costs")
COLUMNS_FREE = {
    "margin": "the lowest seen on the way",
    "queries": "sums are held",
    "forwards": "sums are held",
    "backwards": "sums are held",
    "zero_gradients": "at most as many as backwards",
    "broken_by": "of two trials that broke one row each, which broke which",
}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all numbers and texts in JSON, the first of each list alone."""
    if isinstance(value, dict):
        return [leaf for key, part in value.items() for leaf in leaves(part, (*path, key))]
    if isinstance(value, list) and value:
        return leaves(value[0], (*path, 0))
    return [path]


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    return "other" if value is None or not isinstance(value, str) else f"{value}x"


def put(content: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


def named(path: tuple[Any, ...]) -> str:
    return ".".join(str(key) for key in path if not isinstance(key, int))


def forgeries(folder: Path) -> list[tuple[str, tuple[Any, ...]]]:
    content = json.loads((folder / "run.json").read_text("utf-8"))
    kept = [
        path for path in leaves(content) if path[0] not in ("files", "digest", "schema_version")
    ]
    return [
        (named(path), path)
        for path in kept
        if not any(named(path).startswith(free) for free in FREE)
    ]


def forged(folder: Path, path: tuple[Any, ...]) -> list[str]:
    """What verify says of a run of which one value of run.json was changed, and all else made to
    fit."""
    content = json.loads((folder / "run.json").read_text("utf-8"))
    value = content
    for key in path:
        value = value[key]
    put(content, path, other(value))
    try:
        manifest = Manifest.model_validate_json(json.dumps(content))
    except ValueError:
        return ["it is no run.json"]
    try:
        fit = refigured(folder, manifest)
    except (HoldfastError, ValueError, LookupError):
        fit = manifest
    seal(folder, manifest if path[0] in FIGURES else fit)
    return found(folder)


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_the_values_of_run_json_are_held(whole: Path, tmp_path: Path, every: int) -> None:
    """Line 5: change any value of the facts, and make all digests and figures fit: verify does not
    confirm."""
    held = [f for f in forgeries(whole) if f[0].partition(".")[0] not in FIGURES]
    assert len(held) > 25
    for name, path in held[::every]:
        assert forged(shutil.copytree(whole, tmp_path / str(path)), path), name


@pytest.mark.slow
def test_the_figures_of_run_json_are_held(whole: Path, tmp_path: Path) -> None:
    """Line 5: change any figure, and make all digests fit: verify does not confirm."""
    for name, path in forgeries(whole):
        if name.partition(".")[0] in FIGURES:
            assert forged(shutil.copytree(whole, tmp_path / str(path)), path), name


def test_the_columns_of_the_samples_are_held(whole: Path, tmp_path: Path) -> None:
    """Line 5: change any column of samples.parquet in some row, and make all else fit: verify does
    not confirm."""
    table = store.read_samples(whole)
    status = np.array(table.column("status").to_pylist())
    for name in set(table.column_names) - set(COLUMNS_FREE) - {"status"}:
        row = int(np.flatnonzero(status == "broken")[0])
        seen = table.column(name)[row].as_py()
        value = other(0.5 if seen is None else seen)
        assert changed(shutil.copytree(whole, tmp_path / name), name, row, value), name


@pytest.mark.parametrize(
    ("was", "others"),
    [
        ("broken", ("robust", "failed", "unstable", "wrong", "skipped", "certified")),
        # failed or unstable would not flatter
        ("robust", ("broken", "certified", "wrong", "skipped")),
        ("wrong", ("robust", "broken", "certified", "skipped")),
    ],
)
def test_the_statuses_are_held(
    whole: Path, tmp_path: Path, was: str, others: tuple[str, ...]
) -> None:
    """Line 5: call a row something else, and make all else fit: verify does not confirm."""
    status = store.read_samples(whole).column("status").to_pylist()
    for said in others:
        assert changed(
            shutil.copytree(whole, tmp_path / said), "status", status.index(was), said
        ), said


def changed(folder: Path, name: str, row: int, value: Any) -> list[str]:
    """What verify says where one value of the samples is another, and all else fits."""
    table = store.read_samples(folder)
    values, kind = table.column(name).to_pylist(), table.schema.field(name).type
    values[row] = value
    store.write_samples(
        folder, table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))
    )
    manifest = store.read_manifest(folder)
    with suppress(HoldfastError, ValueError, IndexError):  # there are no such figures
        manifest = refigured(folder, manifest)
    seal(folder, manifest)
    return found(folder)


def test_a_changed_figure_is_neither_compared_nor_merged_nor_shown(run: Path, whole: Path) -> None:
    """Line 5: run.json carries a digest of itself."""
    text = (run / "run.json").read_text("utf-8")
    (run / "run.json").write_text(text.replace('"seed": 0', '"seed": 1'), "utf-8")
    for ask in (
        lambda: compare(whole, run),
        lambda: merge([run], run.parent / "m"),
        lambda: html.write(run),
    ):
        with pytest.raises(InputError, match="digest"):
            ask()
    assert "digest" in " ".join(found(run))


def test_a_run_of_before_there_were_digests_is_read(run: Path) -> None:
    """Line 5: the digest is absent in older runs, which are still shown and verified."""
    content = json.loads((run / "run.json").read_text("utf-8"))
    del content["digest"]
    (run / "run.json").write_text(json.dumps(content), "utf-8")
    assert found(run) == []
