"""Folders that hold anything at all: every command that reads a run ends in one sentence, and never
in a traceback."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.small_runs import command, flipped
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from holdfast.data import Source, open_data
from holdfast.errors import HoldfastError
from holdfast.evaluation.verify import verify
from holdfast.reporting import html
from holdfast.runs import store
from holdfast.runs.compare import compare
from holdfast.targets import Target, load

ASKED = ("--threat", "linf(0.15)", "--attack", "fgsm", "--samples", "12")


def put(content: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        content = content[key]
    content[path[-1]] = value


def edited(name: str, value: Any) -> Callable[[Path], None]:
    """A value of run.json, with every digest made to fit."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / "run.json").read_text("utf-8"))
        put(content, tuple(int(key) if key.isdigit() else key for key in name.split(".")), value)
        content["digest"] = store.NO_DIGEST
        (folder / "run.json").write_bytes(store.with_digest(json.dumps(content).encode()))

    return edit


def text(content: bytes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / "run.json").write_bytes(content)

    return edit


def tensors(name: str, **change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = next(folder.glob(name))
        held = load_file(path)
        held |= {key: np.ascontiguousarray(make(held[key])) for key, make in change.items()}
        save_file(held, path)
        reseal(folder)

    return edit


def table(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        pq.write_table(change(store.read_samples(folder)), folder / "samples.parquet")
        reseal(folder)

    return edit


def reseal(folder: Path) -> None:
    edited("files", store.checksums(folder))(folder)


def replaced(name: str, by: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = next(folder.glob(name))
        path.unlink()
        if by == "folder":
            path.mkdir()
        elif by == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(folder.parent / "nowhere")

    return edit


def header(length: int, content: bytes) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = next(folder.glob("adversarial/*"))
        path.write_bytes(length.to_bytes(8, "little") + content)
        reseal(folder)

    return edit


def with_null(held: pa.Table) -> pa.Table:
    place = held.schema.get_field_index("label")
    return held.set_column(
        place, "label", pa.array([None, *held.column("label").to_pylist()[1:]], pa.int64())
    )


def with_label(value: int) -> Callable[[pa.Table], pa.Table]:
    def change(held: pa.Table) -> pa.Table:
        place = held.schema.get_field_index("label")
        return held.set_column(place, "label", pa.array([value] * held.num_rows, pa.int64()))

    return change


HOSTILE: dict[str, Callable[[Path], None]] = {
    "nested": text(b"[" * 100_000),
    "nested in place": text(b'{"schema_version": 1, "settings": ' + b"[" * 100_000),
    "no text": text(b"\xff\xfe\x00{}"),
    "not an object": text(b"[]"),
    "schema": edited("schema_version", 99),
    "parts": edited("data.parts.0", [0, 10**18]),
    "parts backwards": edited("data.parts.0", [20, 0]),
    "parts below": edited("data.parts.0", [-20, 0]),
    "no parts": edited("data.parts", []),
    "classes": edited("model.classes", 10**12),
    "shape": edited("model.shape", [0]),
    "bounds": edited("model.bounds", [1, 1]),
    "share": edited("metrics.robust_accuracy.value", 5),
    "eps": edited("threat.eps", 1e308),
    "no eps": edited("threat.measured", []),
    "norm": edited("threat.norm", "linfinity"),
    "movement": edited("model.transformation", "rotation(1e308, -3)"),
    "task": edited("model.task", "regression()"),
    "goal": edited("threat.target", 10**9),
    "no names": edited("data.class_names", []),
    "trial": edited("protocol.trials.0", "pgd(steps=1"),
    "no trials": edited("protocol.trials", []),
    "counts": edited("metrics.counts", {}),
    "matrix": edited("metrics.confusion.clean", [[1, 2], [3]]),
    "great costs": edited("costs.forwards", 10**4000),
    "curve": edited("metrics.curve", []),
    "two lengths": tensors("adversarial/*", id=lambda ids: ids[:-1]),
    "same id": tensors("adversarial/*", id=lambda ids: ids * 0),
    "float ids": tensors("adversarial/*", id=lambda ids: ids.astype(np.float32)),
    "whole inputs": tensors("adversarial/*", x=lambda x: x.astype(np.int64)),
    "flat inputs": tensors("adversarial/*", x=lambda x: x.reshape(len(x), -1)),
    "nan": tensors("adversarial/*", x=lambda x: x * np.float32("nan")),
    "wide gallery": tensors("gallery.*", x=lambda x: x.reshape(len(x), -1)),
    "one gallery": tensors("gallery.*", x=lambda x: x[:1], x_adv=lambda x: x[:1]),
    "odd gallery": tensors("gallery.*", x=lambda x: x / 0.0, x_adv=lambda x: x / 0.0),
    "lost gallery": tensors("gallery.*", id=lambda ids: ids + 10**6),
    "long header": header(2**62, b"{}"),
    "nested header": header(100_000, b"[" * 100_000),
    "no rows": table(lambda held: held.slice(0, 0)),
    "other columns": table(lambda held: held.select(["id", "label"])),
    "more columns": table(lambda held: held.append_column("more", held.column("id"))),
    "null": table(with_null),
    "great label": table(with_label(10**12)),
    "negative label": table(with_label(-5)),
    "status": table(
        lambda held: held.set_column(6, "status", pa.array(["\x1b[2J"] * held.num_rows))
    ),
    "folder": replaced("samples.parquet", "folder"),
    "folder as run.json": replaced("run.json", "folder"),
    "pipe": replaced("adversarial/*", "pipe"),
    "pipe as run.json": replaced("run.json", "pipe"),
    "link": replaced("gallery.*", "link"),
    "link to nothing": replaced("samples.parquet", "link"),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the demo model, as the command line makes it."""
    folder = tmp_path_factory.mktemp("shared")
    assert (
        command("evaluate", "demo", "digits", *ASKED, "--out", str(folder / "run")).exit_code == 0
    )
    return folder / "run"


def asked_of(run: Path, shared: Path) -> None:
    """Every command that reads a run folder, which was changed: no traceback, and nothing left
    behind."""
    forms = [
        part
        for name in ("junit", "model-card", "sarif")
        for part in (f"--{name}", str(run.parent / name))
    ]
    merged = run.parent / "merged"
    for args in (
        ("report", str(run), *forms),
        ("compare", str(shared), str(run)),
        ("merge", str(run), "--out", str(merged)),
        ("evaluate", "demo", "digits", *ASKED, "--out", str(run), "--resume"),
        ("verify", str(run), "demo", "digits"),
    ):
        done = command(*args)
        assert done.exit_code in ((1, 2) if args[0] == "verify" else (0, 2)), args
        assert "\x1b" not in done.output
        assert done.exit_code < 2 or done.stderr.lstrip().startswith("error: ")
        assert done.exit_code == 0 or not merged.exists() or args[0] != "merge"


COMMON = ("nested", "parts", "two lengths", "pipe")


@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow):RuntimeWarning")
@pytest.mark.parametrize(
    "name", [n if n in COMMON else pytest.param(n, marks=pytest.mark.slow) for n in HOSTILE]
)
def test_a_hostile_folder_ends_in_one_sentence(
    shared: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 29: report, compare, verify, merge and --resume say what is wrong, with 2; verify with 1
    or 2."""
    if name in COMMON:
        # to draw takes longest
        monkeypatch.setattr("holdfast.reporting.figures._svg", lambda *_: "<svg></svg>")
    run = tmp_path / "run"
    shutil.copytree(shared, run)
    HOSTILE[name](run)
    asked_of(run, shared)


def test_a_picture_too_large_is_not_drawn(shared: Path, tmp_path: Path) -> None:
    """Line 29: a gallery of pictures too large for a page is told in numbers."""
    run = shutil.copytree(shared, tmp_path / "run")
    wide = np.zeros((1, 1, 1, 5000), np.float32)
    ids = load_file(run / "gallery.safetensors")["id"][:1]
    save_file({"id": ids, "x": wide, "x_adv": wide + 0.5}, run / "gallery.safetensors")
    edited("model.shape", [1, 1, 5000])(run)
    assert (
        "data:image/png"
        not in html.write(run)
        .read_text("utf-8")
        .split("<h2>Examples</h2>")[1]
        .split("</section>")[0]
    )


# ------------------------------------------------------------------ bit flips


def unharmed(folder: Path, file: Path, bit: int) -> None:
    """A flipped bit of a finished run ends nothing in a traceback, and is found unless nobody reads
    it."""
    before = (folder / file).read_bytes()
    flipped(folder / file, bit)
    try:
        seen = bool(refused(lambda: verify(folder, *measured())))
        if file.name == "report.html":
            with pytest.MonkeyPatch.context() as patch:  # the same text each time, and slow to make
                patch.setattr(html, "_render", lambda *_: before.decode())
                assert list(html.differs(folder)) or drawn(before, bit)
        else:
            assert seen, file
        refused(lambda: compare(folder, folder))
    finally:
        (folder / file).write_bytes(before)


@functools.cache
def measured() -> tuple[Target, Source]:
    return load("demo"), open_data("digits")


def refused(ask: Callable[[], Any]) -> Any:
    """What is found, or the sentence in its place."""
    try:
        return ask()
    except HoldfastError as error:
        return str(error)


def drawn(page: bytes, bit: int) -> bool:
    """Whether a bit lies in a picture, or in the drawing of a figure."""
    at = bit // 8 % len(page)
    in_figure = page.rfind(b"<svg", 0, at + 4) > page.rfind(b"</svg>", 0, at)
    return in_figure or page.rfind(b"base64,", 0, at) > page.rfind(b'"', 0, at + 1)


def files_of(folder: Path) -> list[Path]:
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


@settings(max_examples=24)
@given(place=st.integers(0, 10**9), bit=st.integers(0, 10**9))
def test_a_flipped_bit_is_found(shared: Path, place: int, bit: int) -> None:
    """Line 29: in every file of a run folder."""
    files = files_of(shared)
    assert len(files) >= 5
    unharmed(shared, files[place % len(files)], bit)


@pytest.mark.slow
@settings(max_examples=1000)
@given(place=st.integers(0, 10**9), bit=st.integers(0, 10**9))
def test_a_thousand_flipped_bits_are_found(shared: Path, place: int, bit: int) -> None:
    """Line 29: as above, in a thousand places."""
    files = files_of(shared)
    unharmed(shared, files[place % len(files)], bit)


@pytest.mark.slow
def test_the_command_refuses_a_flipped_bit(shared: Path, tmp_path: Path) -> None:
    """Line 29: one in each file, with the code of a run that does not hold, or of one that cannot
    be read."""
    assert command("verify", str(shared), "demo", "digits").exit_code == 0
    for file in files_of(shared):
        run = shutil.copytree(shared, tmp_path / file.name)
        flipped(run / file, 8 * 700 + 1)
        assert command("verify", str(run), "demo", "digits").exit_code in (1, 2), file
