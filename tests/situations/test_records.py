"""An unfinished run goes on to the end that it would have had, whatever became of its records."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.small_runs import N, command, flipped, found, interrupted, measure, same

from holdfast.errors import InputError
from holdfast.evaluation import chunk
from holdfast.runs import store
from holdfast.runs.run import Run
from holdfast.targets import TorchTarget
from holdfast.training.state import restored, stored


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measure(tmp_path_factory.mktemp("known") / "run").folder


def stopped(out: Path, monkeypatch: pytest.MonkeyPatch, after: int, **more: Any) -> None:
    """A run that is interrupted after so many records."""
    with interrupted(monkeypatch, after), pytest.raises(KeyboardInterrupt):
        measure(out, **more)


@pytest.fixture(scope="module", autouse=True)
def _() -> Iterator[None]:
    """Chunks of five rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunk, "stride_of", lambda shape: 5)
        yield


def test_a_flipped_bit_of_a_record_is_done_again_or_refused(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 6: whatever bit of a record or stored example of an unfinished run flips, the run ends
    as it would have."""
    stopped(tmp_path / "cut", monkeypatch, 11)
    files = sorted(p.relative_to(tmp_path) for p in (tmp_path / "cut").rglob("*.*") if p.is_file())
    assert len(files) > 5
    draw, refused = random.Random(0), []
    for file in [*files[::3], files[-1]]:
        shutil.copytree(tmp_path / "cut", tmp_path / "again")
        flipped(tmp_path / "again" / file.relative_to("cut"), draw.randrange(10**6))
        try:
            run = measure(tmp_path / "again", resume=True)
        except InputError:
            refused.append(file.name)
        else:
            assert same(run, known), file
        shutil.rmtree(tmp_path / "again")
    assert set(refused) <= {"question.json"}


def test_exchanged_records_are_done_again(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 6: a record says its own name and its question: those of another chunk, trial or run are
    not taken."""
    stopped(tmp_path / "run", monkeypatch, 11)
    stopped(tmp_path / "other", monkeypatch, 11, seed=1)
    names = {p.stem for p in (tmp_path / "run" / "journal").glob("*.safetensors")}
    assert names >= {"000000000-done", "000000005-0000", "000000005-0001"}
    assert "000000005-done" not in names
    for source, name, place in (
        ("run", "000000000-0000", "000000005-0000"),  # of another chunk
        ("run", "000000005-0000", "000000005-0001"),  # of another trial
        ("other", "000000005-0000", "000000005-0000"),  # of another seed
    ):
        again = shutil.copytree(tmp_path / "run", tmp_path / f"{source} {name}")
        record = (tmp_path / source / "journal" / f"{name}.safetensors").read_bytes()
        (again / "journal" / f"{place}.safetensors").write_bytes(record)
        assert same(measure(again, resume=True), known)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "\xff\xfe", '{"eps": "0.05"}'])
def test_a_corrupt_question_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    """Line 6: so is what else begins as JSON."""
    (tmp_path / "run" / "journal").mkdir(parents=True)
    (tmp_path / "run" / "journal" / "question.json").write_text(text, "latin-1")
    with pytest.raises(InputError, match=r"question\.json|cannot resume"):
        measure(tmp_path / "run", resume=True)


@pytest.mark.parametrize("bit", [3, 700, -9])
def test_a_damaged_state_of_a_training_is_refused(tmp_path: Path, bit: int) -> None:
    """Line 6: what harden and generate go on from carries a digest too."""
    path = tmp_path / "training.safetensors"
    path.write_bytes(stored({"w": torch.zeros(4)}, {"epoch": 1}))
    assert restored(path.read_bytes())[1] == {"epoch": 1}
    flipped(path, bit % (8 * len(path.read_bytes())))
    with pytest.raises(InputError, match="digest"):
        restored(path.read_bytes())


def test_a_run_that_time_cut_goes_on_to_the_same_end(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 22: --resume after --max-seconds does what was left; the folder is then that of a run
    without a limit."""
    clock = iter(range(10**6))
    with monkeypatch.context() as slow:
        slow.setattr(
            "holdfast.evaluation.chunk.time", SimpleNamespace(monotonic=lambda: float(next(clock)))
        )
        slow.setattr("holdfast.evaluation.evaluate.time", SimpleNamespace(monotonic=lambda: 0.0))
        cut = measure(tmp_path / "run", max_seconds=8)
        assert cut.unfinished
        assert 0 < cut.metrics.counts["skipped"] < N
        assert found(cut.folder) == []
        clock = iter(range(10**6))
        more = measure(tmp_path / "run", max_seconds=8, resume=True)
        assert more.metrics.counts["skipped"] < cut.metrics.counts["skipped"]
    with pytest.raises(InputError, match="--resume"):
        measure(tmp_path / "run")
    end = measure(tmp_path / "run", resume=True)
    assert not end.unfinished
    assert same(end, known)
    assert end.metrics == store.read_manifest(known).metrics
    assert sorted(p.name for p in end.folder.iterdir()) == sorted(p.name for p in known.iterdir())
    assert same(measure(tmp_path / "run", resume=True), known)


def test_a_run_that_would_last_too_long_takes_fewer_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One trial on a chunk may last far beyond --max-seconds: it takes the rows for which there is
    time, the others are skipped, and --resume ends where a run without a limit does."""
    clock, ask, limit = [0.0], TorchTarget._forward, 150

    def slow(self: TorchTarget, x: Any, *model: Any) -> torch.Tensor:
        clock[0] += len(x)  # a second for each row
        return ask(self, x, *model)

    def cut(**more: Any) -> Run:
        return measure(tmp_path / "run", attacks=["pgd(steps=40, restarts=2)"], **more)

    skipped = []
    with monkeypatch.context() as patch:
        patch.setattr(TorchTarget, "_forward", slow)
        for name in ("chunk", "evaluate", "estimate"):
            patch.setattr(
                f"holdfast.evaluation.{name}.time", SimpleNamespace(monotonic=lambda: clock[0])
            )
        for number in range(8):
            began = clock[0]
            run = cut(max_seconds=limit, resume=number > 0)
            # the last row that was begun, and the judge of all, come on top
            assert clock[0] - began <= limit + 120
            assert found(run.folder) == []
            skipped.append(run.metrics.counts["skipped"])
    assert skipped == sorted(skipped, reverse=True)
    assert any(count % 5 for count in skipped)
    assert run.unfinished
    whole = measure(tmp_path / "whole", attacks=["pgd(steps=40, restarts=2)"])
    assert same(cut(resume=True), whole.folder)


def test_the_terminal_says_how_a_cut_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 22: the same command, with --resume."""
    monkeypatch.chdir(tmp_path)
    # to draw takes longest
    monkeypatch.setattr("holdfast.reporting.figures._svg", lambda *_: "<svg></svg>")
    asked = (
        "evaluate",
        "demo",
        "digits",
        "--threat",
        "linf(0.1)",
        "--attack",
        "fgsm",
        "--samples",
        "8",
        "--out",
        "run",
    )
    done = command(*asked, "--max-seconds", "0")
    assert done.exit_code == 0
    assert "--out run --resume" in " ".join(done.stderr.split())
    done = command(*asked, "--resume", "--max-seconds", "600")
    assert done.exit_code == 0
    assert "--resume" not in done.stderr
    assert Run("run").metrics.counts["skipped"] == 0
