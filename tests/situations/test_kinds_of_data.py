"""Data as people hold them: every form gives the rows that arrays give, or one sentence that says
what is missing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import holdfast
from holdfast.data import as_source, objects, source
from holdfast.errors import InputError
from holdfast.targets import wrap

RNG = np.random.default_rng(0)
N = 24
BYTES = RNG.integers(0, 256, (N, 1, 6, 6), np.uint8)
X = (BYTES / np.float32(255)).astype(np.float32)
W = RNG.standard_normal((36, 3)).astype(np.float32)
Y = (X.reshape(N, -1) @ W).argmax(1)


class Rows(Dataset):
    """A map-style dataset; `end`: as many tutorials write it, without a length and with an
    IndexError at its end."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, row: int) -> Any:
        if row >= N:
            raise IndexError(row)
        return self.make(row)


class Long(Rows):
    def __len__(self) -> int:
        return N


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return zip(torch.from_numpy(X), Y, strict=True)


def pair(row: int) -> Any:
    return torch.from_numpy(X[row]), int(Y[row])


def picture(row: int) -> Image.Image:
    return Image.fromarray(BYTES[row, 0])


def batches(size: int = 5) -> Iterator[Any]:
    return ((X[i : i + size], Y[i : i + size]) for i in range(0, N, size))


FORMS: dict[str, Callable[[], Any]] = {
    "a tuple of arrays": lambda: (X, Y),
    "a list of both": lambda: [list(X), list(Y)],
    "tensors": lambda: (torch.from_numpy(X), torch.from_numpy(Y)),
    "bytes": lambda: (BYTES, Y),
    "labels in a column": lambda: (X, Y[:, None]),
    "a Series of labels": lambda: (X, pd.Series(Y, index=range(50, 50 + N))),
    "a dict of arrays": lambda: {"image": X, "label": Y},
    "a dataset of tensors": lambda: TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)),
    "a dataset": lambda: Long(pair),
    "a dataset without a length": lambda: Rows(pair),
    "a dataset of dicts": lambda: Long(lambda i: {"pixel_values": X[i], "labels": Y[i]}),
    "a dataset of pictures": lambda: Long(lambda i: (picture(i), Y[i])),
    "a dataset of dicts of pictures": lambda: Long(
        lambda i: {"img": picture(i), "label": int(Y[i])}
    ),
    "a subset": lambda: torch.utils.data.Subset(Long(pair), range(N)),
    "an iterable dataset": Stream,
    "a loader": lambda: DataLoader(Long(pair), batch_size=5),
    "a loader of dicts": lambda: DataLoader(
        Long(lambda i: {"image": X[i], "y": Y[i]}), batch_size=7
    ),
    "a loader of one at a time": lambda: DataLoader(Long(pair), batch_size=None),
    "a loader of a stream": lambda: DataLoader(Stream(), batch_size=7),
    "a list of pairs": lambda: [pair(i) for i in range(N)],
    "a list of dicts": lambda: [{"x": X[i], "y": Y[i]} for i in range(N)],
    "a generator of pairs": lambda: (pair(i) for i in range(N)),
    "a generator of batches": batches,
    "a zip": lambda: zip(X, Y, strict=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_rows(form: str) -> None:
    """Line 12: the same rows have the same fingerprint in every form, so that they are the same
    run."""
    assert as_source(FORMS[form]()).fingerprint() == as_source((X, Y)).fingerprint()


def test_every_form_is_the_same_run() -> None:
    """Line 12: a dataset, a loader, a file and arrays give equal samples through `evaluate`."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3, bias=False))
    net[1].weight.data = torch.from_numpy(W.T.copy())
    forms = (
        "a tuple of arrays",
        "a dataset",
        "a loader of dicts",
        "a dataset of pictures",
        "a generator of batches",
    )
    runs = [
        holdfast.evaluate(net, FORMS[form](), "linf(0.05)", attacks=["pgd(steps=2)"])
        for form in forms
    ]
    statuses = [run.samples.column("status").to_pylist() for run in runs]
    assert all(status == statuses[0] for status in statuses)
    assert {"robust", "broken"} <= set(statuses[0])


def test_a_shuffled_loader_is_held_in_its_own_order() -> None:
    """Line 12: of a shuffled loader all rows are kept in the order of one pass, and asked again
    they stay."""
    torch.manual_seed(3)
    held = as_source(DataLoader(Long(pair), batch_size=5, shuffle=True))
    x, y = held.rows(0, N)
    assert sorted(map(bytes, x)) == sorted(map(bytes, X))
    assert not np.array_equal(x, X)
    assert np.array_equal((x.reshape(N, -1) @ W).argmax(1), y)
    assert held.fingerprint() == held.fingerprint()


def test_what_would_not_fit_into_memory_is_refused_and_a_map_style_dataset_streams(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Line 12: beyond the stated size an iterator is refused in a sentence; a dataset is read piece
    by piece."""
    assert source.HELD == 2 << 30
    monkeypatch.setattr(objects, "HELD", 2000)
    endless = ((X[0], 1) for _ in itertools.count())
    for data in (endless, DataLoader(Long(pair), shuffle=True), Rows(pair)):
        with pytest.raises(
            InputError, match=r"more than .* of rows, and cannot be read piece by piece"
        ):
            as_source(data)
    asked: list[int] = []
    dataset = Long(lambda i: asked.append(i) or pair(i))
    for data in (dataset, DataLoader(dataset, batch_size=4)):
        streams = as_source(data)
        asked.clear()
        streams.rows(3, 5)
        assert asked == [3, 4]


def test_a_dataset_that_augments_at_random_is_read_once() -> None:
    """Line 12: rows that change when they are read again are held, so that attack and judge see the
    same, and said."""
    noise = np.random.default_rng(1)
    held = as_source(Long(lambda i: (X[i] * noise.random(dtype=np.float32), Y[i])))
    assert held.fingerprint() == held.fingerprint()
    assert "read once" in dict(held.remarks)["loading"]


class Endless:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, row: int) -> Any:
        raise RuntimeError("no disk")


WRONG = [
    (5, "data is 5 (int); expected (x, y)"),
    (None, "expected (x, y)"),
    ({"a": X, "b": Y}, "is a dict with a, b; expected inputs under one of x,"),
    ({}, "is a dict with nothing"),
    (X, "one array (ndarray) of shape (24, 1, 6, 6), without labels"),
    (torch.from_numpy(X), "one array (Tensor)"),
    ((X, Y, Y), "item 0 of tuple"),
    ((X,), "item 0 of tuple"),
    ([], "is empty"),
    (iter([]), "is empty"),
    ([3, 4, 5], "item 0 of list is a int; expected a pair"),
    ((X, Y[:3]), "24 inputs and 3 labels"),
    ((X, ["a", None] * 12), "y of arrays"),
    ((["a"], [0]), "x of arrays holds"),
    (([[1, 2], [3]], [0, 1]), "x of arrays"),
    (Endless(), "item 0 of Endless raised RuntimeError: no disk"),
    ((pair(i) if i < 3 else 1 / 0 for i in range(5)), "ZeroDivisionError"),
    (
        ((X[0, :, : 6 - i], 0) for i in range(3)),
        "item 1 of generator has inputs of shape (1, 5, 6)",
    ),
    (Long(lambda i: (X[i], Y[i], i)), "item 0 of Long is a tuple of 3"),
    (pd.Series([1, 2]), "Series without labels"),
    (pd.DataFrame({"a": [1.0]}), "has the columns a; expected"),
    (pd.DataFrame({"a": [pd.Timestamp(0)], "y": [1]}), "column a of DataFrame holds"),
    ("nothing.npz", "there is no file nothing.npz"),
    (Path("nothing"), "there is no data 'nothing'"),
    (b"bytes", "expected"),
    (wrap, "expected (x, y)"),
]


@pytest.mark.parametrize(("data", "words"), WRONG, ids=[words[:25] for _, words in WRONG])
def test_what_is_no_data_is_one_sentence(data: Any, words: str) -> None:
    """Line 12: no traceback for a wrong thing, but what was seen and what is expected."""
    with pytest.raises(InputError) as caught:
        as_source(data)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_of_pandas_and_arrow() -> None:
    """Line 12: a DataFrame with a column of labels, texts among them, and (DataFrame, Series)."""
    frame = pd.DataFrame(
        {"a": np.arange(4.0), "b": [True, False, True, False], "target": ["x", "y", "y", "x"]}
    )
    frame["group"] = ["m", "m", "f", "f"]
    for table in (frame, pa.Table.from_pandas(frame), frame.astype({"target": "category"})):
        found = as_source(table)
        x, y = found.rows(0, 4)
        assert x.tolist() == [[0, 1], [1, 0], [2, 1], [3, 0]]
        assert y.tolist() == [0, 1, 1, 0]
        assert found.class_names == ("x", "y")
        assert found.groups is not None
        assert found.groups.tolist() == ["m", "m", "f", "f"]
    found = as_source((frame[["a", "b"]], frame["target"]))
    assert found.rows(0, 4)[0].tolist() == [[0, 1], [1, 0], [2, 1], [3, 0]]
    assert found.class_names == ("x", "y")


def test_names_of_classes_come_along() -> None:
    """Line 12: `classes`, as torchvision has it, and through a loader."""
    named = Long(pair)
    named.classes = ["cat", "dog", "owl"]  # pyright: ignore[reportAttributeAccessIssue]
    for data in (named, DataLoader(named), torch.utils.data.Subset(named, range(5))):
        assert as_source(data).class_names == ("cat", "dog", "owl")


def test_the_command_line_takes_what_a_factory_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 12: data from path/file.py:factory pass the same way in."""
    (tmp_path / "own.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "def make():\n    return DataLoader(TensorDataset(torch.ones(5, 1, 2, 2), "
        "torch.arange(5)), batch_size=2)\ndef one():\n    return torch.ones(5)\n"
    )
    found = as_source(f"{tmp_path}/own.py:make")
    assert found.rows(0, 5)[1].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="without labels"):
        as_source(f"{tmp_path}/own.py:one")
