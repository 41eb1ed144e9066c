"""Robustness by group: given by the data or with it, in every figure's place, and checked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.commands import holdfast, names, refused

from holdfast.cli.texts import lines_of
from holdfast.data import open_data
from holdfast.data.part import Part
from holdfast.errors import InputError
from holdfast.intervals import interval
from holdfast.runs import store

ROWS = 24
GROUPS = np.array(["night", "day", "<b>dusk"])[np.arange(ROWS) % 3]


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    x, y = open_data("digits").rows(0, ROWS)
    np.savez(tmp_path / "set.npz", x=x, y=y, group=GROUPS)
    np.savez(tmp_path / "bare.npz", x=x, y=y)
    (tmp_path / "groups.txt").write_text("\n".join(GROUPS))
    return tmp_path


def run(data: str, out: str, *more: str) -> None:
    asked = (
        "evaluate",
        "demo",
        data,
        "--threat",
        "linf(0.1)",
        "--attack",
        "fgsm()",
        "--out",
        out,
        *more,
    )
    assert holdfast(*asked).exit_code == 0


def test_the_figures_of_groups(at: Path) -> None:
    run("set.npz", "whole")
    table, found = store.read_samples(Path("whole")), store.read_manifest(Path("whole")).metrics
    held = np.array(table.column("status").to_pylist()) == "robust"
    right = table.column("label").to_numpy() == table.column("clean_prediction").to_numpy()
    assert [g.name for g in found.per_group] == ["<b>dusk", "day", "night"]
    for g in found.per_group:
        mine = g.name == GROUPS
        assert g.robust_accuracy == interval(int(held[mine].sum()), 8)
        assert g.clean_accuracy == interval(int(right[mine].sum()), 8)
    worst = min(found.per_group, key=lambda g: g.robust_accuracy.value or 0)
    assert found.worst_group == worst
    page = Path("whole/report.html").read_text(encoding="utf-8")
    names(page, "By group", "The least robust of 3 groups")
    assert "<b>dusk" not in page
    names(" ".join(holdfast("report", "whole").stdout.split()), f"groups is “{worst.name}”")
    done = holdfast(
        "report",
        "whole",
        "--gate",
        "worst_group.robust_accuracy.low>=0.99",
        "--model-card",
        "card.md",
    )
    assert done.exit_code == 1
    names(done.stderr, "worst_group.robust_accuracy.low is ")
    names(Path("card.md").read_text(encoding="utf-8"), "## By group", "| night | 8 |")


def test_groups_given_with_the_data_are_checked_merged_and_compared(at: Path) -> None:
    for rows, out in (("0:24", "whole"), ("0:10", "a"), ("10:24", "b")):
        run("bare.npz", out, "--groups", "groups.txt", "--samples", rows)
    assert holdfast("merge", "a", "b", "--out", "both").exit_code == 0
    assert (
        store.read_manifest(Path("both")).metrics.per_group
        == store.read_manifest(Path("whole")).metrics.per_group
    )
    (at / "other.txt").write_text("\n".join(GROUPS[::-1]))
    run("bare.npz", "c", "--groups", "other.txt", "--samples", "10:24")
    names(refused("merge", "a", "c", "--out", "x"), "cannot merge", "groups")
    messages = json.loads(holdfast("compare", "whole", "both", "--json").stdout)
    assert [(g["name"], g["n"]) for g in messages["per_group"]] == [
        ("<b>dusk", 8),
        ("day", 8),
        ("night", 8),
    ]
    names(holdfast("compare", "whole", "both").stdout, "group", "night")


def test_verify_holds_groups_against_the_data(at: Path) -> None:
    run("set.npz", "r")
    assert holdfast("verify", "r", "demo", "set.npz").exit_code == 0
    table = store.read_samples(Path("r"))
    place = table.schema.get_field_index("group")
    store.write_samples(Path("r"), table.set_column(place, "group", pa.array(["day", *GROUPS[1:]])))
    done = holdfast("verify", "r", "demo", "set.npz")
    assert done.exit_code == 1
    names(done.stdout, "the groups of rows 0 are not those of the data", "metrics.per_group")


def test_a_parquet_column_of_text_or_whole_numbers_is_the_group(tmp_path: Path) -> None:
    columns = {"a": [0.0, 1.0], "b": [1.0, 0.0], "y": [0, 1]}
    pq.write_table(pa.table(columns | {"group": ["north", "south"]}), tmp_path / "t.parquet")
    source = open_data(str(tmp_path / "t.parquet"))
    assert source.groups is not None
    assert source.groups.tolist() == ["north", "south"]
    assert source.shape == (2,)
    for values, seen in (
        (pa.array([7, 3]), ["7", "3"]),
        (pa.array(["e", "w"]).dictionary_encode(), ["e", "w"]),
    ):
        pq.write_table(pa.table(columns | {"group": values}), tmp_path / "c.parquet")
        other = open_data(str(tmp_path / "c.parquet"))
        assert other.groups is not None
        assert (other.groups.tolist(), other.shape) == (seen, (2,))
    pq.write_table(pa.table(columns | {"group": [3.0, 4.0]}), tmp_path / "n.parquet")
    numbers = open_data(str(tmp_path / "n.parquet"))
    assert numbers.groups is None  # a number stays a feature
    assert numbers.shape == (3,)
    pq.write_table(pa.table(columns | {"group": ["north", None]}), tmp_path / "e.parquet")
    with pytest.raises(InputError, match="row 1 no group"):
        open_data(str(tmp_path / "e.parquet"))


def test_a_part_of_the_data_keeps_its_groups(at: Path) -> None:
    part = Part(open_data("set.npz"), np.array([4, 0, 5]), "some")
    assert part.groups is not None
    assert part.groups.tolist() == ["day", "night", "<b>dusk"]


def test_names_are_read_as_they_are_in_a_text(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes("\ufeffone\u2028line\r\n\r\ntwo\r\n".encode())
    assert lines_of(tmp_path / "names.txt", "--groups") == ["one\u2028line", "", "two"]
    (tmp_path / "names.txt").write_bytes(b"")
    assert lines_of(tmp_path / "names.txt", "--groups") == []


def test_groups_of_other_rows_are_refused(at: Path) -> None:
    (at / "short.txt").write_text("a\nb\n")
    asked = ("evaluate", "demo", "set.npz", "--threat", "linf(0.1)", "--out", "x", "--groups")
    names(refused(*asked, "short.txt"), "shape (2,)", "24 rows")
    names(refused(*asked, "missing.txt"), "cannot be read as text")
    x, y = open_data("digits").rows(0, 2)
    np.savez(at / "odd.npz", x=x, y=y, group=np.array([0.5, np.nan]))
    names(refused("evaluate", "demo", "odd.npz", "--threat", "linf(0.1)", "--out", "x"), "float64")
