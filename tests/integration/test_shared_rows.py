"""Rows shared by several workers: the run of one process, whatever befalls them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import holdfast, names, refused, same_run
from helpers.model_files import MEANS

import holdfast as hf
from holdfast import usercode
from holdfast.cli import dispatch
from holdfast.runs.run import Run

ASKED = ("models.py:means", "digits", "--threat", "linf(0.1)", "--attack", "pgd(steps=3)")
ROWS = ("--samples", "40")
# dies in the midst of the first shard of each worker, as often as the file says
DYING = """
import os
import subprocess
import sys
from pathlib import Path

_means, _calls, _left = means, [], Path(__file__).with_name("deaths")

def means():
    net = _means()
    def count(*_):
        _calls.append(1)
        left = int(_left.read_text())
        if len(_calls) == 15 and left:
            _left.write_text(str(left - 1))
            os.kill(os.getpid(), 9)
    net.register_forward_hook(count)
    return net
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path, "models.py").write_text(MEANS)
    monkeypatch.chdir(tmp_path)


def test_two_workers_make_the_run_of_one_process_also_where_one_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "LEAST", 10)  # so that each is given two shards
    assert holdfast("evaluate", *ASKED, *ROWS, "--out", "one").exit_code == 0
    Path("models.py").write_text(MEANS + DYING)
    Path("deaths").write_text("1")
    gate = ("--gate", "robust_accuracy>=1.01")
    done = holdfast("evaluate", *ASKED, *ROWS, "--workers", 2, "--out", "two", *gate)
    assert done.exit_code == 1, done.output  # the gate is of the whole run
    names(done.stderr, "gate not held")
    assert Path("deaths").read_text() == "0"
    same_run("one", "two")
    assert not Path("two.shards").exists()
    assert holdfast("verify", "two", "models.py:means", "digits").exit_code == 0
    two = ("--workers", 2, "--out", "two")
    assert holdfast("evaluate", *ASKED, *ROWS, *two, "--resume").exit_code == 0
    names(refused("evaluate", *ASKED, *ROWS, *two), "a finished run")


def test_going_on_never_takes_the_place_of_another_run() -> None:
    parts = ("--shard", "0/2", "--out", "two.shards")
    assert holdfast("evaluate", *ASKED, *ROWS, *parts).exit_code == 0
    more = ("evaluate", *ASKED, *ROWS, "--workers", 2, "--out", "two", "--resume")
    Path("two").mkdir()
    Path("two/notes.txt").write_text("mine")
    names(refused(*more), "two holds other files")
    assert Path("two/notes.txt").read_text() == "mine"
    Path("two/notes.txt").unlink()
    other = ("models.py:means", "digits", "--threat", "linf(0.2)", *ASKED[4:], *ROWS)
    assert holdfast("evaluate", *other, "--out", "two").exit_code == 0
    names(refused(*more), "two holds a finished run")
    assert Run("two").manifest.threat.text == "linf(0.2)"


@pytest.mark.slow
def test_a_worker_that_always_dies_is_named_and_its_work_kept() -> None:
    Path("models.py").write_text(MEANS + DYING)
    Path("deaths").write_text("99")
    text = refused("evaluate", *ASKED, *ROWS, "--workers", 2, "--out", "two")
    names(text, "the worker of shard", "died 3 times", "code -9", "--resume")
    names(refused("evaluate", *ASKED, *ROWS, "--workers", 2, "--out", "two"), "unfinished run")
    more = ("--out", "two", "--resume")
    Path("deaths").write_text("0")  # any number of workers goes on with the shards that are there
    assert holdfast("evaluate", *ASKED, *ROWS, "--workers", 3, *more).exit_code == 0
    assert Run("two").samples.num_rows == 40


@pytest.mark.slow
def test_what_workers_refuse_is_the_sentence_of_the_command() -> None:
    two = ("--workers", 2, "--out", "two")
    names(refused("evaluate", *ASKED, *ROWS, *two, "--shard", "0/2"), "--shard 0/2", "one of both")
    names(refused("evaluate", *ASKED, "--samples", "1", *two), "1 rows were asked for in 2 shards")
    names(refused("evaluate", "none.py:net", *ASKED[1:], *ROWS, *two), "none.py")
    assert not list(Path().glob("two*"))


def test_rows_at_random_are_the_same_in_shards_and_found_again_by_verify() -> None:
    drawn = ("--samples", "40", "--random")
    assert holdfast("evaluate", *ASKED, *drawn, "--out", "one").exit_code == 0
    whole, some = hf.as_source("digits"), hf.as_source("digits", random=(40, 0))
    ids = some.ids  # pyright: ignore[reportAttributeAccessIssue]
    assert ids.tolist() == sorted(set(ids.tolist()))
    assert set(ids) < set(hf.as_source("digits", random=90).ids)  # pyright: ignore
    assert some.labels(0, 40).tolist() == whole.labels(0, len(whole))[ids].tolist()
    assert Run("one").samples["label"].to_pylist() == some.labels(0, 40).tolist()
    assert Run("one").manifest.data.loading == {"random": "40,0"}
    for i in range(2):
        part = ("--shard", f"{i}/2", "--out", "parts")
        assert holdfast("evaluate", *ASKED, *drawn, *part).exit_code == 0
    assert holdfast("merge", "parts").exit_code == 0
    same_run("one", "parts/merged")
    assert holdfast("verify", "parts/merged", "models.py:means", "digits").exit_code == 0
    assert hf.verify("one", usercode.find("models.py:means")(), "digits") == []


@pytest.mark.slow
def test_workers_share_rows_at_random() -> None:
    drawn = ("--samples", "40", "--random")
    assert holdfast("evaluate", *ASKED, *drawn, "--out", "one").exit_code == 0
    two = ("--workers", 2, "--out", "two")
    assert holdfast("evaluate", *ASKED, *drawn, *two).exit_code == 0
    same_run("one", "two")


def test_another_sample_is_refused() -> None:
    for seed in ("0", "1"):
        part = ("--samples", "20", "--random", "--seed", seed, "--shard", f"{seed}/2")
        assert holdfast("evaluate", *ASKED, *part, "--out", "parts").exit_code == 0
    names(refused("merge", "parts"), "rows at random is 20,1", "has 20,0")
    shard = ("--shard", "0/2", "--out", "parts", "--resume", "--random")
    said = refused("evaluate", *ASKED, "--samples", "30", *shard)
    names(said, "rows at random 20,0 and this command says 30,0")
    names(refused("evaluate", *ASKED, "--samples", "2:9", "--random"), "--samples says", "2:9")
    names(refused("evaluate", *ASKED, "--samples", "5000", "--random"), "5,000 rows", "has 360")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "certify"])
def test_four_shards_and_four_workers_make_the_run_of_one_process(command: str) -> None:
    asked = (command, *(ASKED if command == "evaluate" else ASKED[:4]), *ROWS)
    assert holdfast(*asked, "--out", "one").exit_code == 0
    for i in range(4):
        assert holdfast(*asked, "--shard", f"{i}/4", "--out", "parts").exit_code == 0
    assert holdfast("merge", "parts").exit_code == 0
    same_run("one", "parts/merged")
    assert holdfast(*asked, "--workers", 4, "--out", "four").exit_code == 0
    same_run("one", "four")


@pytest.mark.slow
def test_time_is_that_of_all_workers_and_they_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "LEAST", 10)
    two = ("evaluate", *ASKED, *ROWS, "--workers", 2, "--out", "two")
    done = holdfast(*two, "--max-seconds", 0)
    assert done.exit_code == 0, done.output
    names(done.stderr, "time ran out", "--out two --resume")
    assert "skipped" in Run("two").samples["status"].to_pylist()
    assert holdfast(*two, "--resume").exit_code == 0
    assert holdfast("evaluate", *ASKED, *ROWS, "--out", "one").exit_code == 0
    same_run("one", "two")


@pytest.mark.slow
def test_workers_that_are_forked_off_a_command_make_the_run_of_one_process() -> None:
    """In this process torch has run, so that its workers are begun anew."""
    asked = ("evaluate", *ASKED, *ROWS)
    assert holdfast(*asked, "--out", "one").exit_code == 0
    command = [sys.executable, "-m", "holdfast", *asked, "--workers", "2", "--out", "two"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    names(done.stderr, "estimate: about", "for 40 samples")
    assert done.stderr.count("estimate: about") == 1
    same_run("one", "two")
