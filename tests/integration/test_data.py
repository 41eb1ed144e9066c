"""Every form of data gives the rows that were written, streams them, and refuses what it should by
name."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from PIL import Image
from sklearn.datasets import load_digits

from holdfast import errors
from holdfast.data import KINDS, Source, from_arrays, open_data
from holdfast.errors import InputError

N = 7
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 3, 32, 32), np.uint8)
GREY = PIXELS[:, :1]
LABELS = np.array([0, 0, 1, 1, 1, 2, 2], np.uint8)
SQUARE = np.eye(3, dtype=np.uint8)
HTML = b"<!DOCTYPE html>\n<html><body>Not found</body></html>"


def idx_bytes(x: np.ndarray) -> bytes:
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    head = bytes([0, 0, codes[x.dtype.str[1:]], x.ndim]) + b"".join(
        size.to_bytes(4, "big") for size in x.shape
    )
    return head + x.astype(x.dtype.newbyteorder(">")).tobytes()


def cifar_bytes(x: np.ndarray = PIXELS, y: np.ndarray = LABELS) -> bytes:
    return np.concatenate([y[:, None], x.reshape(len(x), -1)], axis=1).tobytes()


def make_npz(at: Path) -> str:
    np.savez(at / "set.npz", x=PIXELS, y=LABELS, names=np.array(["more"]))
    return str(at / "set.npz")


def make_packed_npz(at: Path) -> str:
    np.savez_compressed(at / "set.npz", x=PIXELS, y=LABELS)
    return str(at / "set.npz")


def make_idx(at: Path) -> str:
    (at / "x").write_bytes(idx_bytes(GREY[:, 0]))
    (at / "y").write_bytes(idx_bytes(LABELS))
    return f"idx:{at / 'x'},{at / 'y'}"


def make_mnist(at: Path, part: str = "t10k", rows: slice = slice(None)) -> str:
    (at / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(GREY[rows, 0])))
    (at / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS[rows])))
    return f"mnist:{at}"


def make_cifar(at: Path) -> str:
    (at / "cifar-10-batches-bin").mkdir()
    (at / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(cifar_bytes())
    return f"cifar10:{at}"


def make_folder(at: Path, x: np.ndarray) -> str:
    for row, (image, label) in enumerate(zip(x, LABELS, strict=True)):
        home = at / "images" / "abc"[label]
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)).save(
            home / f"{row}.png"
        )
    (at / "images" / "a" / "notes.txt").write_text("no image")
    return str(at / "images")


def make_parquet(at: Path) -> str:
    kind = pa.list_(pa.uint8(), 3 * 32 * 32)
    x = pa.array(list(PIXELS.reshape(N, -1)), kind)
    table = pa.table({"x": x, "y": LABELS}).replace_schema_metadata({"shape": "[3, 32, 32]"})
    pq.write_table(table, at / "set.parquet", row_group_size=3)
    return str(at / "set.parquet")


def png(pixels: np.ndarray) -> bytes:
    """An image [h, w] or [h, w, 3] of bytes as a file's content."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_parquet_of_pictures(at: Path) -> str:
    content = [png(np.moveaxis(image, 0, -1)) for image in PIXELS]
    table = pa.table({"image": content, "label": LABELS})
    pq.write_table(table, at / "pictures.parquet", row_group_size=3)
    return str(at / "pictures.parquet")


def make_code(at: Path, body: str) -> str:
    np.save(at / "x.npy", PIXELS)
    np.save(at / "y.npy", LABELS)
    text = (
        f"import numpy as np\nX, Y = np.load({str(at / 'x.npy')!r}), "
        f"np.load({str(at / 'y.npy')!r})\n"
    )
    (at / "mine.py").write_text(text + body)
    return f"{at / 'mine.py'}:make"


def make_dataset(at: Path) -> str:
    body = "class Pairs(list):\n    pass\ndef make():\n    return Pairs(zip(X, Y))\n"
    return make_code(at, body)


FORMS: dict[str, tuple[Callable[[Path], str], np.ndarray]] = {
    "npz": (make_npz, PIXELS),
    "packed npz": (make_packed_npz, PIXELS),
    "idx": (make_idx, GREY),
    "mnist": (make_mnist, GREY),
    "cifar10": (make_cifar, PIXELS),
    "colour folder": (lambda at: make_folder(at, PIXELS), PIXELS),
    "grey folder": (lambda at: make_folder(at, GREY), GREY),
    "parquet": (make_parquet, PIXELS),
    "parquet of pictures": (make_parquet_of_pictures, PIXELS),
    "factory of arrays": (lambda at: make_code(at, "def make():\n    return X, Y\n"), PIXELS),
    "factory of a dataset": (make_dataset, PIXELS),
}


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, np.ndarray]:
    make, pixels = FORMS[request.param]
    return make(tmp_path), pixels


def whole(source: Source) -> tuple[np.ndarray, np.ndarray]:
    return source.rows(0, len(source))


def refusal(spec: str, split: str = "test", **how: str) -> str:
    with pytest.raises(InputError) as caught:
        whole(open_data(spec, split=split, **how))
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    return text


def test_rows_are_those_written_as_floats_in_0_1(form: tuple[str, np.ndarray]) -> None:
    source = open_data(form[0])
    x, y = whole(source)
    assert (source.name, source.shape, len(source)) == (form[0], form[1].shape[1:], N)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, form[1].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(y, LABELS)


def test_pieces_are_the_whole_and_are_clipped_to_the_end(form: tuple[str, np.ndarray]) -> None:
    source = open_data(form[0])
    pieces = [source.rows(start, start + 2) for start in range(0, N, 2)]
    assert [len(y) for _, y in pieces] == [2, 2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in pieces]), whole(source)[0])
    np.testing.assert_array_equal(np.concatenate([y for _, y in pieces]), LABELS)
    np.testing.assert_array_equal(source.labels(1, 99), LABELS[1:])
    assert source.rows(3, 3)[0].shape == (0, *source.shape)


def test_unscaled_bytes_stay_in_0_255(form: tuple[str, np.ndarray]) -> None:
    x, _ = whole(open_data(form[0], scale=False))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, form[1])


def test_what_the_caller_does_to_rows_stays_with_the_caller(form: tuple[str, np.ndarray]) -> None:
    source = open_data(form[0])
    x, y = whole(source)
    x += 1
    y += 1
    source.rows(0, 1)[1].fill(9)
    np.testing.assert_array_equal(whole(source)[0], form[1].astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(whole(source)[1], LABELS)


def test_fingerprint_follows_the_content_and_not_the_file(form: tuple[str, np.ndarray]) -> None:
    prints = open_data(form[0]).fingerprint()
    assert prints == from_arrays(form[1], LABELS.astype(np.int64)).fingerprint()
    assert len(bytes.fromhex(prints)) == 32
    other = form[1].copy()
    other[-1, 0, 0, 0] ^= 1
    seen = {
        prints,
        from_arrays(other, LABELS).fingerprint(),
        from_arrays(form[1], LABELS[::-1]).fingerprint(),
    }
    seen |= {
        open_data(form[0], scale=False).fingerprint(),
        from_arrays(form[1][:-1], LABELS[:-1]).fingerprint(),
    }
    assert len(seen) == 5


def test_fingerprint_over_many_pieces_sees_the_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    prints = from_arrays(PIXELS, LABELS).fingerprint()
    monkeypatch.setattr("holdfast.data.source._VALUES_AT_ONCE", 1)
    assert from_arrays(PIXELS, LABELS).fingerprint() == prints
    assert from_arrays(PIXELS, [*LABELS[:-1], 0]).fingerprint() != prints


def test_an_npz_with_splits(tmp_path: Path) -> None:
    """As Keras has MNIST; where there are x and y, they are meant."""
    parts = {"x_train": PIXELS, "y_train": LABELS, "x_test": PIXELS[:2], "y_test": LABELS[:2]}
    np.savez(tmp_path / "a.npz", **parts)
    np.savez(tmp_path / "b.npz", x=PIXELS[:1], y=LABELS[:1], **parts)
    found = [
        len(open_data(str(tmp_path / name), split=split))
        for name in ("a.npz", "b.npz")
        for split in ("train", "test")
    ]
    assert found == [len(PIXELS), 2, 1, 1]
    np.savez(tmp_path / "c.npz", x_train=PIXELS, y_train=LABELS)
    with pytest.raises(InputError, match="or x_test and y_test"):
        open_data(str(tmp_path / "c.npz"))


@pytest.mark.parametrize("make", [make_npz, make_idx, make_cifar])
def test_plain_files_are_mapped_and_not_held(make: Callable[[Path], str], tmp_path: Path) -> None:
    source = open_data(make(tmp_path))
    before = whole(source)[0]
    path = next(
        path for path in tmp_path.rglob("*") if path.name in ("set.npz", "x", "test_batch.bin")
    )
    data = path.read_bytes()
    at = data.index(PIXELS[2, 0, 0].tobytes())
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 255]))
    assert (whole(source)[0] != before).sum() == 1


@settings(deadline=None)
@given(
    st.sampled_from(["u1", "i4", ">i8", "f2", ">f4", "f8", "?"]).flatmap(
        lambda kind: arrays_of.arrays(
            np.dtype(kind), arrays_of.array_shapes(min_dims=2, max_dims=4)
        )
    ),
    st.sampled_from(["C", "F"]),
    st.sampled_from([np.savez, np.savez_compressed]),
)
def test_npz_of_any_type_order_and_packing(
    tmp_path_factory: pytest.TempPathFactory,
    x: np.ndarray,
    order: Literal["C", "F"],
    save: Callable[..., None],
) -> None:
    path = tmp_path_factory.mktemp("any") / "set.npz"
    save(path, x=np.asarray(x, order=order), y=np.arange(len(x), dtype=">i4"))
    got, y = whole(open_data(str(path), scale=False))
    assert got.dtype == (np.float64 if x.dtype == np.float64 else np.float32)
    assert got.flags.c_contiguous
    assert y.dtype == np.int32
    np.testing.assert_array_equal(got, x.astype(got.dtype))


def test_floats_are_never_rescaled_and_nan_passes() -> None:
    x = np.array([[300.0, np.nan], [np.inf, -2.0]])
    for kind in (np.float32, np.float64):
        got, _ = whole(from_arrays(x.astype(kind), [0, 1]))
        assert got.dtype == kind
        np.testing.assert_array_equal(got, x)
    assert whole(from_arrays(np.array([[255], [7]], np.int64), [0, 1]))[0].tolist() == [[255], [7]]


def test_tensors_become_rows_and_odd_ones_are_refused() -> None:
    source = from_arrays(
        torch.ones(2, 3, requires_grad=True), torch.tensor([[0, 1], [1, 0]]), "mine"
    )
    x, y = whole(source)
    assert (source.name, x.tolist(), y.tolist()) == (
        "mine",
        [[1, 1, 1], [1, 1, 1]],
        [[0, 1], [1, 0]],
    )
    for bad in (
        torch.ones(2, 3, dtype=torch.bfloat16),
        [[1], [2, 3]],
        [["a"], ["b"]],
        np.array([[{}], [{}]]),
        [1, 2],
    ):
        with pytest.raises(InputError, match=r"x of arrays|arrays has x of shape"):
            from_arrays(bad, [0, 1])


def test_digits_are_split_by_writer() -> None:
    images, labels = load_digits(return_X_y=True)
    for split, rows in (("test", slice(-360, None)), ("train", slice(1437))):
        x, y = whole(open_data("digits", split=split))
        assert x.shape[1:] == (1, 8, 8)
        assert x.max() == 1
        np.testing.assert_array_equal(x.reshape(-1, 64) * 16, images[rows])
        np.testing.assert_array_equal(y, labels[rows])


def test_splits_choose_files(tmp_path: Path) -> None:
    make_mnist(tmp_path, "train", slice(3))
    make_mnist(tmp_path, "t10k", slice(4))
    assert [
        len(open_data(f"fashion-mnist:{tmp_path}", split=split)) for split in ("train", "test")
    ] == [3, 4]
    (tmp_path / "test_batch.bin").write_bytes(cifar_bytes(PIXELS[:2], LABELS[:2]))
    for part, rows in ((2, slice(4, 6)), (1, slice(1))):
        (tmp_path / f"data_batch_{part}.bin").write_bytes(cifar_bytes(PIXELS[rows], LABELS[rows]))
    assert whole(open_data(f"cifar10:{tmp_path}", split="train"))[1].tolist() == [0, 1, 2]
    assert len(open_data(f"cifar10:{tmp_path}")) == 2
    assert "no split 'val'; known: test, train." in refusal(f"mnist:{tmp_path}", split="val")


def test_folder_splits_number_classes_over_both(tmp_path: Path) -> None:
    for name, shade in (("train/a", 1), ("train/b", 2), ("test/b", 3)):
        (tmp_path / name).mkdir(parents=True)
        Image.new("L", (2, 2), shade).save(tmp_path / name / "one.png")
    test, train = (
        open_data(str(tmp_path), split=split, scale=False) for split in ("test", "train")
    )
    assert (test.class_names, whole(test)[1].tolist(), test.rows(0, 1)[0].max()) == (
        ("a", "b"),
        [1],
        3,
    )
    assert whole(train)[1].tolist() == [0, 1]
    assert "no split 'tset'; did you mean test?" in refusal(str(tmp_path), split="tset")
    (tmp_path / "test").rename(tmp_path / "bus")
    assert open_data(str(tmp_path)).class_names == ("bus", "train")


def test_folder_decodes_only_the_rows_asked_for(tmp_path: Path) -> None:
    source = open_data(make_folder(tmp_path, PIXELS))
    assert source.class_names == ("a", "b", "c")
    last = tmp_path / "images" / "c" / "6.png"
    last.write_bytes(last.read_bytes()[:60])
    assert len(source.rows(0, 6)[1]) == 6
    with pytest.raises(InputError, match=r"6\.png cannot be read as an image"):
        source.rows(5, 7)


def test_parquet_of_columns_is_tabular_and_empty_cells_are_nan(tmp_path: Path) -> None:
    columns = {
        "b": [1, 2, None],
        "label": [0, 1, 1],
        "a": [0.5, 1.5, 2.5],
        "__index_level_0__": [7, 8, 9],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)
    source = open_data(str(tmp_path / "t.parquet"))
    x, y = whole(source)
    assert (source.shape, x.dtype, y.tolist()) == ((2,), np.float64, [0, 1, 1])
    np.testing.assert_array_equal(x, [[1, 0.5], [2, 1.5], [np.nan, 2.5]])


def test_parquet_may_begin_with_an_empty_row_group(tmp_path: Path) -> None:
    table = pa.table({"x": [[1, 2]], "y": [3]})
    with pq.ParquetWriter(tmp_path / "t.parquet", table.schema) as writer:
        writer.write_table(table[:0])
        writer.write_table(table)
    assert pq.ParquetFile(tmp_path / "t.parquet").metadata.num_row_groups == 2
    assert whole(open_data(str(tmp_path / "t.parquet")))[0].tolist() == [[1, 2]]


def test_parquet_reads_each_row_group_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, read = make_parquet(tmp_path), []
    real = pq.ParquetFile.iter_batches

    def counted(file: pq.ParquetFile, *args: Any, **kwargs: Any) -> Any:
        read.extend(kwargs["row_groups"])
        return real(file, *args, **kwargs)

    source = open_data(spec)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    for row in range(N):
        source.rows(row, row + 1)
    assert read == [0, 1, 2]


def test_a_row_group_is_never_held_as_a_whole(tmp_path: Path) -> None:
    pixels = np.arange(784 * 20_000, dtype=np.uint8).reshape(-1, 784)
    x = pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), 784)
    pq.write_table(pa.table({"x": x, "y": np.arange(20_000)}), tmp_path / "t.parquet")
    before, most = pa.total_allocated_bytes(), 0
    source = open_data(str(tmp_path / "t.parquet"), scale=False)
    for start in (*range(0, 20_000, 1000), 19_999, 10_300, 10_000, 10_300):
        rows, y = source.rows(start, start + 1000)
        most = max(most, pa.total_allocated_bytes() - before)
        np.testing.assert_array_equal(rows, pixels[start : start + 1000])
        assert y[0] == start
    assert most < pixels.nbytes


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    home = tmp_path / "parts"
    for name, (start, stop) in {"test-0": (0, 3), "test-1": (3, 5), "train-0": (5, 9)}.items():
        (home / "data").mkdir(parents=True, exist_ok=True)
        labels = pa.array([f"c{i % 4}" for i in range(start, stop)])
        table = pa.table({"a": range(start, stop), "b": labels, "y": labels})
        pq.write_table(table, home / "data" / f"{name}.parquet")
    store = fsspec.filesystem("memory")
    store.put(str(home), "/parts", recursive=True)
    for spec in (str(home), "memory://parts"):
        source = open_data(spec)
        assert source.rows(1, 5)[0].tolist() == [[1, 1], [2, 2], [3, 3], [4, 0]]
        assert source.class_names == ("c0", "c1", "c2", "c3")
        assert source.labels(2, 9).tolist() == [2, 3, 0]
        assert open_data(spec, split="train").rows(0, 9)[0][:, 0].tolist() == [5, 6, 7, 8]
        assert "has no split 'other'" in refusal(spec, split="other")
    file = "memory://parts/data/test-1.parquet"
    assert open_data(file).rows(0, 9)[0][:, 0].tolist() == [3, 4]
    pq.write_table(pa.table({"a": [0.5], "y": ["c0"]}), home / "data" / "test-2.parquet")
    assert "test-2.parquet has other columns than" in refusal(str(home))
    store.pipe_file("/parts/data/test-1.parquet", b"PAR1" + bytes(40) + b"PAR1")
    assert "cannot read memory:///parts/data/test-1.parquet" in refusal("memory://parts")
    assert "cannot read memory:///none: there is no such" in refusal("memory://none")
    store.pipe_file("/others/notes.txt", b"")
    assert "memory://others holds no Parquet files" in refusal("memory://others")


def test_pictures_in_parquet_are_those_that_hugging_face_stores(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), np.uint8)
    features = datasets.Features(
        img=datasets.Image(),
        fine_label=datasets.Value("int64"),
        label=datasets.ClassLabel(names=["a", "b"]),
        note=datasets.Value("string"),
    )
    rows = {
        "img": [Image.fromarray(image) for image in pixels],
        "fine_label": range(7),
        "label": [0, 1, 0, 1, 0, 1, 0],
        "note": ["by hand"] * 7,
    }
    file = tmp_path / "test-00000-of-00001.parquet"
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(file), batch_size=3)
    store = fsspec.filesystem("memory")
    store.pipe_file("/pictures/one.parquet", file.read_bytes())
    for spec in (str(tmp_path), "memory://pictures/one.parquet"):
        source = open_data(spec, scale=False)
        assert (source.shape, source.class_names, len(source)) == ((3, 5, 4), ("a", "b"), 7)
        x, y = source.rows(2, 99)
        np.testing.assert_array_equal(x, pixels[2:].transpose(0, 3, 1, 2))
        assert y.tolist() == [0, 1, 0, 1, 0]
        np.testing.assert_array_equal(source.rows(0, 1)[0][0], pixels[0].transpose(2, 0, 1))
        assert source.rows(7, 9)[0].shape == (0, 3, 5, 4)
        assert source.fitted(channels=1).shape == (1, 5, 4)
    assert open_data(str(file), label="fine_label").labels(0, 7).tolist() == [*range(7)]
    assert open_data(str(file), resize="8,6").shape == (3, 8, 6)


def test_pictures_in_parquet_are_never_held_as_a_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content = [png(rng.integers(0, 256, (96, 96, 3), np.uint8)) for _ in range(60)]
    table = pa.table({"x": content * 20, "y": np.arange(1200)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=100)  # as Hugging Face's library
    before, most = pa.total_allocated_bytes(), 0
    source = open_data(str(tmp_path / "t.parquet"), scale=False)
    for start in (*range(0, 1200, 50), 30, 1100):
        assert source.rows(start, start + 10)[1].tolist() == [*range(start, start + 10)]
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < table.nbytes / 3


@pytest.mark.parametrize(
    ("columns", "seen"),
    [
        ({"x": [png(SQUARE), None]}, "row 1 of column x of {} has no picture"),
        ({"x": [png(SQUARE), b"PNG"]}, "row 1 of column x of {} cannot be read as an image"),
        ({"x": [png(SQUARE)] * 2, "z": [png(SQUARE)] * 2}, "the columns x, z of pictures"),
        ({"x": [png(SQUARE), png(SQUARE[1:])]}, "row 1 of column x of {} is 3 x 2 and most"),
        (
            {"x": [{"bytes": None, "path": "a"}, {"bytes": png(SQUARE), "path": "b"}]},
            "row 0 of column x of {} has no picture",
        ),
    ],
)
def test_unfit_pictures_in_parquet(columns: dict, seen: str, tmp_path: Path) -> None:
    file = tmp_path / "t.parquet"
    pq.write_table(pa.table({**columns, "y": [0, 1]}), file)
    assert seen.format(file) in refusal(str(file))
    pq.write_table(pa.table({"a": [0.5], "y": [0]}), file)
    assert "--resize is for pictures" in refusal(str(file), resize="8")


def test_a_dataset_that_was_saved_is_data(tmp_path: Path) -> None:
    rows = {"image": [[[i, 0], [0, i]] for i in range(6)], "label": [0, 1, 2, 0, 1, 2]}
    features = datasets.Features(
        image=datasets.Array2D((2, 2), "uint8"), label=datasets.ClassLabel(names=["a", "b", "c"])
    )
    one = datasets.Dataset.from_dict(rows, features)
    one.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=one, validation=one.select([4, 5])).save_to_disk(
        str(tmp_path / "both")
    )
    source = open_data(str(tmp_path / "one"))
    assert (source.shape, source.class_names, len(source)) == ((2, 2), ("a", "b", "c"), 6)
    assert source.rows(2, 4)[0][:, 0, 0].tolist() == [2, 3]
    assert open_data(str(tmp_path / "both")).labels(0, 9).tolist() == [1, 2]
    assert "has no split 'other', but train, validation" in refusal(
        str(tmp_path / "both"), split="other"
    )
    (tmp_path / "one" / "state.json").write_text("{}")
    assert "cannot be read as a dataset that was saved" in refusal(str(tmp_path / "one"))


def test_package_modules_come_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "holdfast_case").mkdir()
    (tmp_path / "holdfast_case" / "sets.py").write_text(
        "from holdfast.data import from_arrays\ndef make():\n    return from_arrays([[1.0]], [0], "
        "'own')\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert open_data("holdfast_case.sets:make").name == "own"
    assert sys.path == path
    assert "did you mean make" in refusal("holdfast_case.sets:mkae")


def test_a_factory_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "holdfast_neighbour.py").write_text("VALUE = 4.0\n")
    body = (
        "from dataclasses import dataclass\n@dataclass\nclass Size:\n    n: 'int' = 1\n"
        "def make():\n    from holdfast_neighbour import VALUE\n    return [[VALUE]], [Size().n]\n"
    )
    assert open_data(make_code(tmp_path, body)).rows(0, 1)[0].item() == 4


@pytest.mark.parametrize(
    ("body", "seen"),
    [
        ("def make():\n    return 5\n", "returned int; expected (x, y)"),
        ("def make():\n    return []\n", "is empty"),
        ("def make():\n    return [3]\n", "item 0 of"),
        ("def make():\n    return [(X[0], 1), (X[0, :1], 1)]\n", "item 1 of"),
        ("def make():\n    raise OSError('no disk')\n", "raised OSError: no disk"),
        ("raise SystemExit(3)\n", "raised SystemExit: 3"),
        ("def make(:\n", "raised SyntaxError"),
        (
            "import holdfast_absent\n",
            "raised ModuleNotFoundError: No module named 'holdfast_absent'",
        ),
        ("make = 3\n", "has no callable 'make'"),
        ("def make():\n    return X, Y[1:]\n", "7 inputs and 6 labels"),
        ("def make():\n    return X, ['a', None, 1, 2, 3, 4, {}]\n", "y of"),
    ],
)
def test_a_failing_factory_is_one_sentence(body: str, seen: str, tmp_path: Path) -> None:
    assert seen in refusal(make_code(tmp_path, body))


@pytest.mark.parametrize(
    ("spec", "seen"),
    [
        ("mnist", "mnist needs the place of its files; write mnist:DIR."),
        ("idx:one", "write idx:IMAGES,LABELS."),
        ("digits:here", "digits is embedded"),
        ("mnits", "did you mean mnist"),
        ("", "there is no data ''"),
        ("holdfast_absent.module:make", "there is no module"),
        ("absent.py:make", "there is no file absent.py"),
        ("absent.npz", "there is no file absent.npz"),
        ("absent.parquet", "there is no file absent.parquet"),
        ("mnist:absent", "there is no absent/t10k-images-idx3-ubyte"),
        ("cifar10:absent", "there is no absent/test_batch.bin"),
        ("idx:absent,absent", "there is no file absent"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_spec_that_names_nothing(
    spec: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert seen in refusal(spec)


def npz_bytes(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **arrays)
    return file.getvalue()


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


def packed_with_a_flaw() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, x=PIXELS, y=LABELS)
    return flipped(file.getvalue(), 5000)


def parquet_with_a_flaw() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"a": range(999), "y": range(999)}), file)
    return b"PAR1" + bytes(100) + file.getvalue()[104:]


@pytest.mark.parametrize(
    ("name", "data", "seen"),
    [
        ("a.npz", HTML, "a web page (HTML)"),
        ("a.npz", b"", "is empty; expected an .npz"),
        ("a.npz", npz_bytes(x=PIXELS, y=LABELS)[:-50], "a zip archive that is cut short"),
        ("a.npz", packed_with_a_flaw(), "probably damaged"),
        ("a.npz", b"\x80\x04\x95abc", "a pickle"),
        (
            "a.npz",
            npz_bytes(images=PIXELS, labels=LABELS),
            "holds the arrays images, labels; expected x",
        ),
        ("a.npz", npz_bytes(x=PIXELS, y=LABELS[:-1]), "7 inputs and 6 labels"),
        ("a.npz", npz_bytes(x=PIXELS[:0], y=LABELS[:0]), "is empty"),
        ("a.npz", npz_bytes(x=np.array([["a"]]), y=LABELS[:1]), "holds <U1; expected numbers"),
        (
            "a.npz",
            npz_bytes(x=np.zeros((1, 1), [(f"field{n}", "i4") for n in range(999)]), y=LABELS[:1]),
            "Header info",
        ),
        ("a.parquet", HTML, "a web page (HTML)"),
        ("a.parquet", b"PAR1" + bytes(40) + b"PAR1", "damaged or cut short"),
        ("a.parquet", parquet_with_a_flaw(), "is damaged"),
        ("a.csv", b"1,2,3\n", "the names of the columns are expected"),
        ("a.txt", b"1,2,3\n", "is not a kind of data"),
    ],
)
def test_a_damaged_file_is_named_with_its_cause(
    name: str, data: bytes, seen: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    text = refusal(str(tmp_path / name))
    assert seen in text
    assert name in text


@pytest.mark.parametrize(
    ("images", "labels", "seen"),
    [
        (
            HTML,
            idx_bytes(LABELS),
            "a web page (HTML): the download probably failed, with the magic number 3c 21 44 4f",
        ),
        (b"", idx_bytes(LABELS), "is empty, with the magic number missing"),
        (b"\1" + idx_bytes(GREY[:, 0])[1:], idx_bytes(LABELS), "magic number 01 00 08 03"),
        (gzip.compress(idx_bytes(GREY[:, 0]))[:-3000], idx_bytes(LABELS), "damaged gzip file"),
        (idx_bytes(GREY[:, 0])[:-1], idx_bytes(LABELS), "7 x 32 x 32: it is probably cut short"),
        (idx_bytes(GREY[:, 0])[:9], idx_bytes(LABELS), "probably cut short"),
        (idx_bytes(LABELS), idx_bytes(GREY[:, 0]), "probably swapped"),
        (idx_bytes(GREY[:, 0]), idx_bytes(LABELS[1:]), "7 inputs and 6 labels"),
        (idx_bytes(GREY[:0, 0]), idx_bytes(LABELS[:0]), "is empty"),
    ],
)
def test_damaged_idx(images: bytes, labels: bytes, seen: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(images)
    (tmp_path / "y").write_bytes(labels)
    assert seen in refusal(f"idx:{tmp_path / 'x'},{tmp_path / 'y'}")


@pytest.mark.parametrize("data", [b"", HTML, cifar_bytes()[:-1]])
def test_damaged_cifar10(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "test_batch.bin").write_bytes(data)
    assert f"has {len(data)} bytes; expected records of 3073 bytes" in refusal(
        f"cifar10:{tmp_path}"
    )


@pytest.mark.parametrize(
    ("table", "seen"),
    [
        ({"a": [1], "b": [2]}, "has the columns a, b; expected features"),
        ({"y": [1], "label": [2], "a": [0]}, "one column of labels"),
        ({"y": [1]}, "expected features"),
        ({"a": [b"red"], "y": [1]}, "column a of"),
        ({"a": [1], "y": [b"red"]}, "column y of"),
        ({"x": [[1, 2], [1]], "y": [0, 1]}, "expected one length"),
        ({"a": pa.array([], pa.int8()), "y": pa.array([], pa.int8())}, "is empty"),
    ],
)
def test_unfit_parquet(table: dict, seen: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(table), tmp_path / "t.parquet")
    assert seen in refusal(str(tmp_path / "t.parquet"))


@pytest.mark.parametrize("shape", ["[3, 3]", "nonsense", "4", "[-2, -2]", '["4"]'])
def test_parquet_with_a_shape_that_does_not_fit(shape: str, tmp_path: Path) -> None:
    table = pa.table({"x": [[1, 2, 3, 4]], "y": [0]}).replace_schema_metadata({"shape": shape})
    pq.write_table(table, tmp_path / "t.parquet")
    assert f"gives the shape {shape} for rows of 4 values" in refusal(str(tmp_path / "t.parquet"))


def test_unfit_folders_name_the_image(tmp_path: Path) -> None:
    assert "has no images" in refusal(str(tmp_path))
    root = Path(make_folder(tmp_path, PIXELS))
    odd = root / "a" / "0.png"
    for image, seen in (
        (
            Image.new("RGB", (8, 32)),
            "8 x 32 and most images are 32 x 32 (width, height); expected one size",
        ),
        (Image.new("F", (32, 32)), "has the mode F"),
    ):
        image.save(odd, "TIFF")
        text = refusal(str(root))
        assert seen in text
        assert str(odd) in text
    postscript = io.BytesIO()  # Pillow would hand it to Ghostscript
    Image.new("RGB", (32, 32)).save(postscript, "EPS")
    for data in (HTML, b"", postscript.getvalue()):
        odd.write_bytes(data)
        assert f"{odd} cannot be read as an image (UnidentifiedImageError" in refusal(str(root))
    odd.unlink()
    (root / "a" / "1.png").unlink()
    assert f"{root / 'a'} has no images" in refusal(str(root))


def test_an_image_beyond_pillows_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_folder(tmp_path, GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "DecompressionBombError" in refusal(spec)


class Trap:
    """Its pickle creates the file `mark` where it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_pickle_inside_an_npz_never_runs(save: Callable[..., None], tmp_path: Path) -> None:
    save(tmp_path / "a.npz", x=np.array([[Trap(tmp_path / "mark")]]), y=LABELS[:1])
    with np.load(tmp_path / "a.npz", allow_pickle=True) as archive:
        assert archive["x"].shape == (1, 1)
    assert (tmp_path / "mark").exists()
    (tmp_path / "mark").unlink()
    assert "could run code" in refusal(str(tmp_path / "a.npz"))
    assert not (tmp_path / "mark").exists()


def test_raw_addresses_are_never_taken_for_objects(tmp_path: Path) -> None:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|O", "fortran_order": False, "shape": (1, 1)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for key in "xy":
            archive.writestr(f"{key}.npy", head.getvalue() + bytes(8))
    assert "could run code" in refusal(str(tmp_path / "a.npz"))


def test_an_npz_member_that_is_no_array_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x", b"plain")
        archive.writestr("y", b"plain")
    assert "expected numbers" in refusal(str(tmp_path / "a.npz"))


def test_heavy_libraries_are_imported_only_on_use() -> None:
    code = (  # a bare parent, since this asks only what holdfast.data itself imports
        "import sys, types; home = types.ModuleType('holdfast'); home.__path__ = [sys.argv[1]]\n"
        "sys.modules['holdfast'] = home; import holdfast.data\n"
        "print({'torch', 'pyarrow', 'PIL', 'sklearn'} & sys.modules.keys())"
    )
    home = Path(errors.__file__).parent
    shown = subprocess.run(
        [sys.executable, "-c", code, str(home)], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "set()"


def test_kinds_tell_how_each_is_written() -> None:
    assert set(KINDS) == {"digits", "mnist", "fashion-mnist", "cifar10", "idx", "libsvm"} | {
        "npz",
        "csv",
        "folder",
        "coco",
        "yolo",
        "masks",
        "waves",
        "parquet",
        "saved",
        "factory",
    }
    assert all(": " in line and "\n" not in line for line in KINDS.values())


def test_libsvm_files(tmp_path: Path) -> None:
    (tmp_path / "two.svm").write_text("1 1:0.5 3:0.25\n-1 2:1\n")
    source = open_data(f"libsvm:{tmp_path}/two.svm")
    x, y = source.rows(0, 2)
    assert x.tolist() == [[0, 0.5, 0, 0.25], [0, 0, 1, 0]]
    assert x.dtype == np.float32
    assert y.tolist() == [1, 0]
    (tmp_path / "bad.svm").write_text("1 a:b\n")
    with pytest.raises(InputError, match="LIBSVM"):
        open_data(f"libsvm:{tmp_path}/bad.svm")
    (tmp_path / "half.svm").write_text("0.5 1:1\n")
    with pytest.raises(InputError, match=r"0\.5"):
        open_data(f"libsvm:{tmp_path}/half.svm")
    with pytest.raises(InputError, match="there is no file"):
        open_data(f"libsvm:{tmp_path}/none.svm")
