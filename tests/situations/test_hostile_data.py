"""Files that are damaged, hostile or odd, as data and as options: one sentence, at once, and never
a traceback."""

from __future__ import annotations

import gzip
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from holdfast.cli import texts
from holdfast.data import idx, npz, open_data, table
from holdfast.errors import HoldfastError, InputError, SpecError

PATIENCE = 60  # seconds


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def refusal(spec: str, **options: str) -> str:
    with pytest.raises(InputError) as caught:
        open_data(spec, **options).rows(0, 99)  # pyright: ignore[reportArgumentType]
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"1 1000000000000:1\n0 1:2\n", "no LIBSVM file"),
        (b"1 2000000000:1\n0 1:2\n", "is an index wrong?"),
        (b"1 -5:1\n", "Invalid index"),
        (b"\xff\xfe\x00", "no LIBSVM file"),
        (b"", "is empty"),
        (gzip.compress(b"1 1:2\n", mtime=0)[:-9], "no LIBSVM file"),
    ],
)
def test_libsvm(content: bytes, words: str, tmp_path: Path) -> None:
    """Line 29: an index of 1e12 neither fills the memory nor ends in a traceback."""
    path = put(tmp_path / ("a.gz" if content[:2] == b"\x1f\x8b" else "a.svm"), content)
    assert words in refusal(f"libsvm:{path}")


def test_idx_of_255_dimensions_and_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line 29: the header's word is checked before anything is made of it."""
    x = put(tmp_path / "x", bytes([0, 0, 8, 255]) + bytes([0, 0, 0, 1]) * 255 + b"\1")
    y = put(tmp_path / "y", bytes([0, 0, 8, 1, 0, 0, 0, 1, 1]))
    assert "declares 255 dimensions" in refusal(f"idx:{x},{y}")
    put(x, gzip.compress(bytes(3 << 20)))
    monkeypatch.setattr(idx, "HELD", 1 << 20)
    assert "holds more than" in refusal(f"idx:{x},{y}")


def test_bombs_are_refused_by_their_declared_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 29: a compressed array and a picture that say they are huge are not decoded."""
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros((9, 999), np.float32), y=np.zeros(9, int))
    monkeypatch.setattr(npz, "HELD", 9999)
    assert "x of" in (text := refusal(f"{tmp_path / 'a.npz'}"))
    assert "compressed and takes" in text
    (tmp_path / "b" / "c").mkdir(parents=True)
    Image.new("L", (50, 30)).save(tmp_path / "b" / "c" / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "declares 50 x 30 pixels" in refusal(f"{tmp_path / 'b'}")
    (tmp_path / "big.csv").write_text("a,y\n" + "1,0\n" * 400_000)
    monkeypatch.setattr(table, "HELD", 1 << 20)
    assert "or save it as Parquet" in refusal(f"{tmp_path / 'big.csv'}")


def test_a_pipe_never_hangs(tmp_path: Path) -> None:
    """Line 29: a FIFO named 1.png, or given as any file, is refused instead of waited for."""
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "1.png")
    pipe = tmp_path / "p.npz"
    os.mkfifo(pipe)
    signal.alarm(PATIENCE)  # a hang would last for ever
    try:
        for spec in (
            str(tmp_path),
            str(pipe),
            f"idx:{pipe},{pipe}",
            f"libsvm:{pipe}",
            f"mnist:{pipe}",
        ):
            refusal(spec)
        for ask in (lambda: texts.limits_of(pipe), lambda: texts.lines_of(pipe, "--groups")):
            with pytest.raises(SpecError, match="no file"):
                ask()
    finally:
        signal.alarm(0)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: put(path, b""), "is empty"),
        (np.savez, "holds none"),
        (lambda path: put(path, b"PK\x03\x04abc"), "cut short"),
        (lambda path: np.savez(path, low=np.array(["a"])), "cannot be read as an .npz of numbers"),
        (lambda path: np.savez(path, low=np.zeros(2)), "expected low and high"),
        (lambda path: None, "there is no file"),
        (lambda path: path.mkdir(), "there is no file"),
    ],
)
def test_limits(make: Callable[[Path], object], words: str, tmp_path: Path) -> None:
    """Line 29: an empty or broken --limits is one sentence."""
    make(tmp_path / "l.npz")
    with pytest.raises(SpecError) as caught:
        texts.limits_of(tmp_path / "l.npz")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_of_any_bytes_and_loops_of_links(tmp_path: Path) -> None:
    """Line 29: a folder whose name is no UTF-8 is a class, and links that lead in a circle are not
    followed."""
    home = os.fsencode(tmp_path) + b"/set/\xff\xfea"
    os.makedirs(home)
    with open(home + b"/0.png", "wb") as file:
        Image.new("L", (4, 4)).save(file, "PNG")
    os.symlink(b".", home + b"/again")
    found = open_data(str(tmp_path / "set"))
    assert len(found) == 1
    assert found.class_names is not None
    found.class_names[0].encode()
    os.symlink("loop.png", tmp_path / "set" / "loop.png")
    os.symlink(b"1.png", home + b"/1.png")
    assert "cannot be read as an image" in refusal(str(tmp_path / "set"))


def test_parquet_of_nested_columns(tmp_path: Path) -> None:
    """Line 29: columns within columns are named, not met by a traceback."""
    nested = {"a": [{"b": 1}, {"b": 2}], "y": [0, 1]}
    pq.write_table(pa.table(nested), tmp_path / "n.parquet")
    assert "column a of" in refusal(f"{tmp_path / 'n.parquet'}")
    pq.write_table(pa.table({"a": [1, 2], "y": [{"b": 1}, {"b": 2}]}), tmp_path / "m.parquet")
    assert "column y of" in refusal(f"{tmp_path / 'm.parquet'}")


KINDS = (
    "a.npz",
    "a.csv",
    "a.csv.gz",
    "a.parquet",
    "libsvm:a.svm",
    "idx:a.idx,b.idx",
    "images",
    "c.json",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("files")
    np.savez_compressed(home / "a.npz", x=np.ones((3, 2), np.float32), y=np.arange(3))
    text = b"a,b,y\n1,2,0\n3,4,1\n"
    put(home / "a.csv", text)
    put(home / "a.csv.gz", gzip.compress(text, mtime=0))
    pq.write_table(pa.table({"a": [1, 2], "b": [0.5, 1], "y": [0, 1]}), home / "a.parquet")
    put(home / "a.svm", b"1 1:0.5 3:1\n0 2:1\n")
    put(home / "a.idx", bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4]))
    put(home / "b.idx", bytes([0, 0, 8, 1, 0, 0, 0, 1, 1]))
    (home / "images" / "cat").mkdir(parents=True)
    Image.new("RGB", (4, 4), (9, 8, 7)).save(home / "images" / "cat" / "0.png")
    put(home / "c.json", b'{"cat": 1}')
    return home


def flipped(kind: str, at: int, value: int, home: Path) -> None:
    """Read the data of this kind with one byte of a file changed; whatever is wrong is one
    sentence."""
    said, name = (
        "",
        {"images": "images/cat/0.png"}.get(kind, kind.partition(":")[2].partition(",")[0] or kind),
    )
    content = (home / name).read_bytes()
    at %= len(content)
    try:
        put(home / name, content[:at] + bytes([value]) + content[at + 1 :])
        spec = (
            kind.replace(":", f":{home}/").replace(",", f",{home}/")
            if ":" in kind
            else str(home / kind)
        )
        given = {"classes": str(home / "c.json")} if kind == "c.json" else {}
        source = open_data(str(home / "images") if given else spec, **given)  # pyright: ignore[reportArgumentType]
        source.rows(0, len(source))
    except HoldfastError as error:
        said = str(error)
    finally:
        put(home / name, content)
    assert "\n" not in said


FUZZ = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
BYTE = {"kind": st.sampled_from(KINDS), "at": st.integers(0, 9999), "value": st.integers(0, 255)}


@settings(FUZZ, max_examples=60)
@given(**BYTE)
def test_any_byte_changed(files: Path, kind: str, at: int, value: int) -> None:
    """Line 29: one byte changed in a file of any kind: the rows, or one sentence."""
    flipped(kind, at, value, files)


@pytest.mark.slow
@settings(FUZZ, max_examples=3000)
@given(**BYTE)
def test_any_byte_changed_many_times(files: Path, kind: str, at: int, value: int) -> None:
    """Line 29: the same, 3,000 times."""
    flipped(kind, at, value, files)
