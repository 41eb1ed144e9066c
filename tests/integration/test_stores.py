"""Runs on a store that fsspec reaches: `--out s3://bucket/run`, and what reads them there."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from helpers.commands import holdfast, names, refused, same_run
from helpers.model_files import MEANS
from moto.server import ThreadedMotoServer

import holdfast as hf
from holdfast import usercode
from holdfast.runs import remote, store
from holdfast.runs.run import Run

ASKED = ("models.py:means", "digits", "--threat", "linf(0.1)", "--attack", "pgd(steps=3)")
ROWS = ("--samples", "40")
HOME = "memory://bucket/run"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path, "models.py").write_text(MEANS)
    monkeypatch.chdir(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


def held(under: str = "/bucket") -> list[str]:
    return sorted(fsspec.filesystem("memory").find(under))


def test_shards_on_a_store_are_merged_there_into_the_run_of_one_process() -> None:
    assert holdfast("evaluate", *ASKED, *ROWS, "--out", "one").exit_code == 0
    first = holdfast("evaluate", *ASKED, *ROWS, "--shard", "0/2", "--out", HOME)
    assert first.exit_code == 0, first.output
    names(first.stderr, f"report: {HOME}/shard-0-of-2/report.html")
    names(refused("merge", HOME), HOME, "shard 1/2 is missing")
    assert holdfast("evaluate", *ASKED, *ROWS, "--shard", "1/2", "--out", HOME).exit_code == 0
    merged = holdfast("merge", HOME)
    names(merged.stderr, f"report: {HOME}/merged/report.html")
    same_run("one", Run(f"{HOME}/merged").folder)
    names(refused("merge", HOME), f"{HOME}/merged holds a finished run")
    assert holdfast("merge", HOME, "--out", "here").exit_code == 0
    same_run("one", "here")


def test_what_is_at_a_url_is_read_as_any_run() -> None:
    assert holdfast("evaluate", *ASKED, *ROWS, "--out", HOME).exit_code == 0
    checked = holdfast("verify", HOME, "models.py:means", "digits")
    names(checked.stdout, f"{HOME} is confirmed")
    assert holdfast("compare", HOME, HOME).exit_code == 0
    fsspec.filesystem("memory").rm_file("/bucket/run/report.html")
    names(holdfast("report", HOME).stderr, f"report: {HOME}/report.html")
    assert "/bucket/run/report.html" in held()
    assert hf.compare(HOME, HOME).runs == (HOME, HOME)
    names(refused("report", "memory://bucket/none"), "memory://bucket/none holds no run")


def test_an_interrupted_run_goes_on_elsewhere() -> None:
    assert holdfast("evaluate", *ASKED, *ROWS, "--out", "one").exit_code == 0
    cut = holdfast("evaluate", *ASKED, *ROWS, "--out", HOME, "--max-seconds", "0")
    names(cut.stderr, f"--out {HOME} --resume")
    assert "/bucket/run/journal/question.json" in held()
    names(refused("evaluate", *ASKED, *ROWS, "--out", HOME), f"{HOME} holds", "--resume")
    assert holdfast("evaluate", *ASKED, *ROWS, "--out", HOME, "--resume").exit_code == 0
    assert not [path for path in held() if "journal" in path]
    same_run("one", Run(HOME).folder)
    before = held()
    assert holdfast("evaluate", *ASKED, *ROWS, "--out", HOME, "--resume").exit_code == 0
    assert held() == before


def test_what_is_finished_goes_up_while_the_rest_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(remote, "EVERY", 0.01)
    with remote.mirrored(HOME) as folder:
        store.write_bytes(folder / "journal/000.safetensors", b"done")
        store.write_bytes(folder / "journal/question.json", b"{}")
        until = time.monotonic() + 10
        while len(held()) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert held() == [
            "/bucket/run/journal/000.safetensors",
            "/bucket/run/journal/question.json",
        ]


def test_what_is_half_there_is_no_finished_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever upload is the last: run.json is there only with all others, and what is there can
    be gone on with."""
    memory = fsspec.filesystem("memory")
    net = usercode.find("models.py:means")()
    whole = hf.evaluate(net, "digits", "linf(0.1)", protocol="quick", samples=9, out=HOME)
    every, order = {path.removeprefix("/bucket/run/") for path in held()}, list[str]()
    monkeypatch.setattr(
        type(memory), "put_file", lambda self, here, there, **_: order.append(there)
    )
    copy = remote._Copy("memory://bucket/other")
    copy.folder = whole.folder
    (copy.folder / "journal").mkdir()
    (copy.folder / "journal/question.json").touch()
    copy.go_up()
    there = [path.removeprefix("/bucket/other/") for path in order]
    assert set(there) == every | {"journal/question.json"}
    assert there[0] == "journal/question.json"
    assert there[-1] == "run.json"


def test_a_store_that_refuses_is_named_before_anything_is_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def out(url: str) -> str:
        return refused("evaluate", *ASKED, *ROWS, "--out", url)

    names(out("nowhere://bucket/run"), "nowhere://bucket/run", "Protocol not known")
    names(out("gs://bucket/run"), "gs://bucket/run needs gcsfs", "pip install gcsfs")
    denied = PermissionError("Forbidden")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", _raising(denied))
    names(out(HOME), f"cannot write {HOME}: access is denied (Forbidden)")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    names(out("s3://bucket/run"), "s3fs, which is not installed: pip install 'holdfast[s3]'")


def test_what_cannot_be_uploaded_is_kept_here(monkeypatch: pytest.MonkeyPatch) -> None:
    check = remote._Copy.check_writable

    def then_full(copy: remote._Copy) -> None:
        check(copy)
        monkeypatch.setattr(type(copy.fs), "put_file", _raising(OSError(28, "No space left")))

    monkeypatch.setattr(remote._Copy, "check_writable", then_full)
    done = holdfast("evaluate", *ASKED, *ROWS, "--out", HOME)
    assert done.exit_code == 2
    text = done.stderr.splitlines()[-1]
    names(text, f"error: cannot write {HOME}", "No space left")
    kept = text.partition("is kept in ")[2].partition(":")[0]
    assert Run(kept).samples.num_rows == 40
    shutil.rmtree(Path(kept).parent)


def test_no_name_on_a_store_leads_out_of_the_copy() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("../../../evil", "/evil", "//evil"):
        memory.pipe_file("/bucket/run/own", b"")
        memory.store[f"/bucket/run/{name}"] = memory.store.pop("/bucket/run/own")
        names(refused("compare", HOME, HOME), f"holds {name}, which is no file of a run")
        memory.store.clear()


def _raising(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """S3 on this machine, with the bucket `shared`."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.mkdir("shared")
    yield fs
    server.stop()


@pytest.mark.slow
def test_s3_holds_shards_and_their_merged_run(s3: Any) -> None:
    assert holdfast("evaluate", *ASKED, *ROWS, "--out", "one").exit_code == 0
    for i in range(2):
        part = ("--shard", f"{i}/2", "--out", "s3://shared/run", "--resume")
        assert holdfast("evaluate", *ASKED, *ROWS, *part).exit_code == 0
    assert holdfast("merge", "s3://shared/run").exit_code == 0
    same_run("one", Run("s3://shared/run/merged").folder)
    assert s3.exists("shared/run/merged/report.html")
    missing = refused("evaluate", *ASKED, *ROWS, "--out", "s3://nowhere/run")
    names(missing, "cannot write s3://nowhere/run: there is no such bucket")


@pytest.mark.slow
def test_s3_holds_what_workers_share_until_it_is_one_run(s3: Any) -> None:
    assert holdfast("evaluate", *ASKED, *ROWS, "--out", "one").exit_code == 0
    shared = ("--workers", 2, "--out", "s3://shared/two")
    done = holdfast("evaluate", *ASKED, *ROWS, *shared)
    assert done.exit_code == 0, done.output
    same_run("one", Run("s3://shared/two").folder)
    assert s3.exists("shared/two/report.html")
    assert not s3.exists("shared/two.shards")
    names(refused("evaluate", *ASKED, *ROWS, *shared), "s3://shared/two holds a finished run")
    assert holdfast("evaluate", *ASKED, *ROWS, *shared, "--resume").exit_code == 0
