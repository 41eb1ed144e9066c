"""CSV and Parquet as people have them, and limits of features as arrays of any library."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import holdfast
from holdfast import Threat
from holdfast.data import as_source, open_data
from holdfast.errors import InputError, SpecError
from holdfast.targets import Bounds, wrap
from holdfast.threats.threat import Targeted

ROWS = "a,b,y\n0.5,1,0\n0.25,2,1\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", ROWS),
        ("t.csv", "\ufeff" + ROWS),
        ("t.csv", ROWS.replace(",", ";").replace("0.", "0,")),
        ("t.tsv", ROWS.replace(",", "\t")),
        ("t.csv", '"a","b","label"\r\n0.5,1,"0"\r\n0.25,2,"1"\r\n'),
        ("t.csv", "a, b, target\n0.5, 1, 0\n0.25, 2, 1\n"),
        ("t.csv", ",a,b,class\n7,0.5,1,0.0\n8,0.25,2,1.0\n"),
    ],
    ids="plain bom semicolon tab quotes spaces index".split(),
)
def test_a_csv_file_is_data(name: str, text: str, tmp_path: Path) -> None:
    """Line 17: a header, numeric columns, and a column of labels under one of its usual names; also
    compressed."""
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    for path in [tmp_path / name, *([tmp_path / f"{name}.gz"] if name == "t.csv" else [])]:
        x, y = open_data(path).rows(0, 2)
        assert x.tolist() == [[0.5, 1], [0.25, 2]]
        assert y.tolist() == [0, 1]
        assert y.dtype == np.int64


def test_labels_of_any_name_and_texts_become_classes(tmp_path: Path) -> None:
    """Line 17: --label names the column; texts are classes in their sorted order; CSV and Parquet
    are alike."""
    frame = pd.DataFrame(
        {"a": [1.0, 2, 3], "income": ["high", "low", "high"], "group": ["m", "f", "f"]}
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=2)
    for name in ("t.csv", "t.parquet"):
        source = open_data(tmp_path / name, label="income")
        assert source.rows(0, 3)[1].tolist() == [0, 1, 0]
        assert source.class_names == ("high", "low")
        assert source.groups is not None
        assert source.groups.tolist() == ["m", "f", "f"]
        assert source.shape == (1,)
        with pytest.raises(InputError, match="what --label names"):
            open_data(tmp_path / name)
        with pytest.raises(InputError, match=r"no column 'incme' of labels .* did you mean income"):
            open_data(tmp_path / name, label="incme")


def test_python_says_how_data_are_read_as_the_command_line_does(tmp_path: Path) -> None:
    """`as_source(data, label=...)` takes tables in memory and files, and every function takes what
    it gives; what does not fit the data is refused."""
    frame = pd.DataFrame({"a": [0.1, 0.2, 0.3], "b": [0.5, 0.6, 0.7], "outcome": [0, 1, 0]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = pa.Table.from_pandas(frame)
    net = nn.Linear(2, 2)
    runs = [
        holdfast.evaluate(
            net, holdfast.as_source(d, label="outcome"), "linf(0.1)", attacks=["fgsm"]
        )
        for d in (frame, table, tmp_path / "t.csv", str(tmp_path / "t.csv"))
    ]
    assert len({run.manifest.data.fingerprint for run in runs}) == 1
    assert not holdfast.verify(runs[3], net, tmp_path / "t.csv")  # read as the run says it was
    with pytest.raises(InputError, match=r"no column 'outcom' of labels .* did you mean outcome"):
        as_source(frame, label="outcom")
    with pytest.raises(
        InputError, match=r"resize is for DIR .*, but the data are of type DataFrame"
    ):
        as_source(frame, resize=256)
    with pytest.raises(InputError, match=r"label is for .*, but the data are of type tuple"):
        as_source((np.zeros((2, 2)), [0, 1]), label="outcome")
    with pytest.raises(InputError, match=r"t.csv is a source.*; give label with the text"):
        as_source(as_source(tmp_path / "t.csv", label="outcome"), label="a")


def test_a_frame_without_a_column_of_labels_is_refused_in_words_of_python() -> None:
    frame = pd.DataFrame({f"width {i}": [1.0, 2] for i in range(12)} | {"kind": ["a", "b"]})
    with pytest.raises(InputError, match=r"width 9 and 3 more; .* or class \(rename yours\)"):
        as_source(frame)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Empty CSV file"),
        ("a,b,y\n", "has no rows"),
        ("a,b,y\n1,2\n", "Expected 3 columns, got 2"),
        ("1,2,0\n3,4,1\n", "the first line"),
        ("a,y\n2026-01-01,0\n", "column a of"),
        ("a,y\n1,\n2,1\n", "row 0 of"),
        ("a,a,y\n1,2,0\n", "under different names"),
        ("a,y,label\n1,2,0\n", "one column of labels"),
        ("<!DOCTYPE html>\n<html></html>\n", "a web page"),
    ],
)
def test_a_csv_file_that_is_no_table_is_one_sentence(text: str, words: str, tmp_path: Path) -> None:
    """Line 29: ragged rows, no header, texts as features, no labels."""
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        open_data(tmp_path / "t.csv")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_number_is_nan_and_refused_by_row(tmp_path: Path) -> None:
    """Line 29: an empty cell, or the text nan, is not a number, and evaluate says in which row."""
    (tmp_path / "t.csv").write_text("a,b,y\n1,nan,0\n1,,1\n")
    assert np.isnan(open_data(tmp_path / "t.csv").rows(0, 2)[0][:, 1]).all()
    with pytest.raises(InputError, match=r"row 0 of .* holds NaN"):
        holdfast.evaluate(nn.Linear(2, 2), tmp_path / "t.csv", "linf(0.1)", attacks=["fgsm"])


def test_the_same_table_is_the_same_run_in_every_form(tmp_path: Path) -> None:
    """Line 17: CSV, Parquet, a DataFrame, a table of arrow and arrays have one fingerprint."""
    frame = pd.DataFrame({"a": [0.5, 0.25, 1.0], "b": [1.0, 0.0, 0.5], "y": [0, 1, 1]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    pq.write_table(table := pa.Table.from_pandas(frame), tmp_path / "t.parquet")
    arrays = frame[["a", "b"]].to_numpy(), frame["y"].to_numpy()
    forms = (
        tmp_path / "t.csv",
        str(tmp_path / "t.parquet"),
        frame,
        table,
        (frame[["a", "b"]], frame["y"]),
        arrays,
    )
    assert len({as_source(form).fingerprint() for form in forms}) == 1


def test_sizes_masks_goals_and_bounds_are_arrays_of_any_library() -> None:
    """Line 20: NumPy arrays, lists and Series are what tensors are, in a threat and as bounds."""
    x, y = np.random.default_rng(0).random((9, 3), np.float32), np.arange(9) % 2
    sizes, mask, low, high = [0.1, 0.2, 0.3], [True, False, True], [0.0, 0.0, -1.0], [1.0, 2.0, 1.0]
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    figures = []
    for form in (torch.tensor, np.array, pd.Series, list):
        threat = Threat.linf(1.0, scale=form(sizes), mask=form(mask))
        target = wrap(net, bounds=(form(low), form(high)))
        run = holdfast.evaluate(target, (x, y), threat, attacks=["pgd(steps=2)"])
        figures.append(run.samples.column("status").to_pylist())
    assert figures.count(figures[0]) == 4
    assert "broken" in figures[0]


def test_one_eps_or_goal_a_row() -> None:
    """Line 20: eps and targets one a row, as arrays; and what is none is one sentence."""
    for form in (np.array, pd.Series, list, tuple):
        assert torch.equal(
            Threat.l2(form([0.1, 0.2])).eps, torch.tensor([0.1, 0.2], dtype=torch.float64)
        )
        assert torch.equal(Targeted(form([1, 2])).t, torch.tensor([1, 2]))
    assert Targeted(np.int64(3)).t == 3
    assert Threat.linf(np.float64(0.5)).eps == 0.5
    assert Bounds.of((np.zeros(2), 1)).each is not None
    for wrong in (
        lambda: Threat.linf(["a"]),
        lambda: Threat.linf(np.array([0.1, -1])),
        lambda: Threat.linf(0.1, scale=[[1, 2], [3]]),
        lambda: Targeted([0.5]),
        lambda: Bounds.of((["a"], [1])),
    ):
        with pytest.raises(SpecError):
            wrong()
    with pytest.raises(InputError, match="two numbers, or two arrays"):
        Bounds.of(3)  # pyright: ignore[reportArgumentType]
