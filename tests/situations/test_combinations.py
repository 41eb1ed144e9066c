"""Things that each work alone, together: runs that verify must confirm, whatever the run was made
of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.small_runs import Bent, found, measure, rows, seal

import holdfast
from holdfast import usercode
from holdfast.data import from_arrays
from holdfast.evaluation.merge import merge
from holdfast.evaluation.verify import verify
from holdfast.generation import generate
from holdfast.reporting import generated as html
from holdfast.runs import store

BRIEF = 'fast(epochs=1, batch_size=32, judge="pgd(steps=1)", objective="pgd(steps=1)")'


def test_a_run_of_several_searches_for_the_smallest_size_is_confirmed(tmp_path: Path) -> None:
    """Line 9: where eps is inf each trial attacks all rows, and verify knows it."""
    run = measure(
        tmp_path / "run", attacks=("fmn(steps=5)", "deepfool(steps=5)"), threat="linf(inf)"
    )
    assert found(run.folder) == []
    first, second = run.manifest.trials
    assert first.attacked == second.attacked > second.broken
    lying = second.model_copy(
        update={"attacked": 1, "restarts": [second.restarts[0].model_copy(update={"attacked": 1})]}
    )
    seal(run.folder, run.manifest.model_copy(update={"trials": [first, lying]}))
    assert any(text.startswith("trials:") for text in found(run.folder))


def fitted(kind: str, y: np.ndarray) -> object:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    model = (
        RandomForestClassifier(3, random_state=0) if kind == "forest" else LogisticRegression(C=100)
    )
    return model.fit(rows()[0].reshape(len(y), -1), y)


def fingerprint(model: object) -> str:
    target = holdfast.wrap(model)
    target.bind((16,))
    return target.fingerprint()


def test_a_forest_is_the_same_model_in_another_process(tmp_path: Path) -> None:
    """Line 5: what lies in memory between the fields of a tree's nodes is no part of the model."""
    import joblib

    model = fitted("forest", rows()[1])
    tree = model.estimators_[0].tree_  # pyright: ignore[reportAttributeAccessIssue]
    state = tree.__getstate__()
    memory = bytearray(bytes(range(64)) * len(state["nodes"]))
    nodes = np.frombuffer(memory, state["nodes"].dtype)
    for name in nodes.dtype.names:
        nodes[name] = state["nodes"][name]
    known = fingerprint(model)
    assert memory[57:64] == bytes(range(57, 64))  # lies between the fields of the first node
    tree.__setstate__(state | {"nodes": nodes})
    assert fingerprint(model) == known
    joblib.dump(model, tmp_path / "forest.joblib")
    assert fingerprint(joblib.load(tmp_path / "forest.joblib")) == known
    nodes["threshold"][0] += 1
    tree.__setstate__(state | {"nodes": nodes})
    assert fingerprint(model) != known


def test_class_numbers_for_a_model_that_names_its_classes_are_confirmed(tmp_path: Path) -> None:
    """Lines 5 and 15: two remarks on the labels are both held, each against its own."""
    x, y = rows()
    model = fitted("line", np.array(["cat", "dog", "eel", "fox"])[y])
    data = from_arrays(x.reshape(len(y), -1), y)
    run = holdfast.evaluate(
        model, data, "linf(0.05)", attacks=["square(steps=3)"], out=tmp_path / "run"
    )
    assert Counter(f.check for f in run.manifest.initial_findings)["labels"] == 2
    target = holdfast.wrap(model)
    assert verify(run.folder, target, data) == []
    labels = [f for f in run.manifest.initial_findings if f.check == "labels"]
    for noted in ([labels[0]], [labels[0], labels[0]]):
        kept = [f for f in run.manifest.initial_findings if f.check != "labels"]
        seal(run.folder, run.manifest.model_copy(update={"initial_findings": [*noted, *kept]}))
        assert any("labels" in text for text in verify(run.folder, holdfast.wrap(model), data))


def test_data_of_another_shape_than_the_run_says_are_a_finding(tmp_path: Path) -> None:
    """Line 5: a shape that was changed in run.json is one more thing that does not hold."""
    run = measure(tmp_path / "run", attacks=("fgsm",))
    model = run.manifest.model.model_copy(update={"shape": [2, 4, 4]})
    seal(run.folder, run.manifest.model_copy(update={"model": model}))
    assert any("(2, 4, 4)" in text for text in found(run.folder))


def test_model_and_data_of_one_file_share_its_classes(tmp_path: Path) -> None:
    """Line 8: so that the model can be sent to another process; a file that changed is run
    again."""
    file = tmp_path / "both.py"
    file.write_text("class Net: pass\ndef rows(): return Net\n")
    model = usercode.find(f"{file}:Net")
    assert usercode.find(f"{file}:rows")() is model
    file.write_text("class Net: pass\ndef rows(): return Net  # another\n")
    assert usercode.find(f"{file}:Net") is not model


def test_shards_that_time_cut_short_are_merged_and_confirmed(tmp_path: Path) -> None:
    """Lines 5 and 22: rows that were skipped in one shard stand in a chunk of their own."""
    cut = measure(tmp_path / "cut", samples=(0, 8), max_seconds=0)
    rest = measure(tmp_path / "rest", samples=(8, 20))
    assert set(cut.samples.column("status").to_pylist()) == {"skipped"}
    out = tmp_path / "merged"
    merge([rest.folder, cut.folder], out)
    assert store.read_manifest(out).data.parts == [(0, 8), (8, 20)]
    assert found(out) == []


def test_a_generator_of_too_few_rows_says_nothing_of_their_spread(tmp_path: Path) -> None:
    """Line 29: one row a class to compare with is no spread, and no warning."""
    x = np.random.default_rng(0).random((24, 1, 4, 4), dtype=np.float32)
    data = from_arrays(x, np.arange(24) % 12)
    made = generate(
        data, "gan(steps=2)", out=tmp_path / "made", test=from_arrays(x[:12], np.arange(12))
    )
    assert all(np.isnan(made.quality.spread))
    assert "<svg" in html.write(tmp_path / "made").read_text("utf-8")


@pytest.mark.parametrize("form", ["one-hot", "five and up"])
def test_labels_in_any_form_are_divided_for_hardening(tmp_path: Path, form: str) -> None:
    """Lines 4, 15 and 16: without rows to test on, a share of each class is set apart, whatever
    classes are called."""
    x = np.random.default_rng(0).random((80, 1, 4, 4), dtype=np.float32)
    y = np.arange(80) % 4
    labels = np.eye(4, dtype=int)[y] if form == "one-hot" else y + 5
    done = holdfast.harden(
        Bent(), (x, labels), "linf(0.05)", recipe=BRIEF, protocol="quick", out=tmp_path / "hard"
    )
    assert len(done.after.samples) == 16
    assert set(done.after.samples.column("label").to_pylist()) == {0, 1, 2, 3}
