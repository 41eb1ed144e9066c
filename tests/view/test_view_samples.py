"""The table of a run's samples: its rows are those of samples.parquet that a question asks for."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.made_up_runs import HOSTILE, make, samples
from helpers.viewing import visitor

from holdfast.errors import InputError
from holdfast.runs import store
from holdfast.runs.samples import Samples

N = 250


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make(folder / "a", n=N, names=[HOSTILE, "b", "c", "d"])
    return folder


def shown(page: str) -> list[int]:
    """The samples of a page, in its order."""
    return [int(i) for i in re.findall(r'id=(\d+)[^"]*" data-row', page)]


def rows(folder: Path) -> list[dict]:
    return store.read_samples(folder / "a").to_pylist()


def test_every_row_is_on_one_page(runs: Path) -> None:
    client = visitor(runs)
    pages = [shown(client.get(f"/samples/a?page={i}").text) for i in (1, 2, 3)]
    assert [len(page) for page in pages] == [100, 100, 50]
    assert [*pages[0], *pages[1], *pages[2]] == list(range(N))
    assert shown(client.get("/samples/a?page=99").text) == pages[2]


@pytest.mark.parametrize(
    ("query", "fits"),
    [
        ("status=broken", lambda row: row["status"] == "broken"),
        ("label=2", lambda row: row["label"] == 2),
        (
            "attacked_prediction=1&status=wrong",
            lambda r: r["attacked_prediction"] == 1 and r["status"] == "wrong",
        ),
        ("broken_by=0", lambda row: row["broken_by"] == 0),
        ("size_from=1/10", lambda row: (row["size"] or 0) >= 0.1),
        ("size_to=0.1", lambda row: row["size"] is not None and row["size"] <= 0.1),
        ("id_from=20&id_to=30", lambda row: 20 <= row["id"] <= 30),
        ("status=none", lambda row: False),
        ("label=0.5", lambda row: False),
        ("margin_from=nan", lambda row: False),
    ],
)
def test_rows_are_filtered(runs: Path, query: str, fits) -> None:
    expected = [row["id"] for row in rows(runs) if fits(row)]
    assert shown(visitor(runs).get(f"/samples/a?{query}").text) == expected[:100]


@pytest.mark.parametrize("column", ["id", "status", "label", "size", "broken_by"])
@pytest.mark.parametrize("sign", ["", "-"])
def test_rows_are_sorted(runs: Path, column: str, sign: str) -> None:
    known = [row for row in rows(runs) if row[column] is not None]
    known.sort(key=lambda row: row[column], reverse=bool(sign))
    page = visitor(runs).get(f"/samples/a?sort={sign}{column}").text
    assert shown(page) == [row["id"] for row in known][:100] + shown(page)[len(known) :]
    assert f'aria-sort="{"descending" if sign else "ascending"}"' in page


def test_links_keep_the_filter_and_forms_its_order(runs: Path) -> None:
    page = visitor(runs).get("/samples/a?status=broken&sort=-size&nonsense=1").text
    assert 'href="/sample/a?id=' in page
    assert "status=broken&amp;sort=-size" in page
    assert '<input type="hidden" name="sort" value="-size">' in page
    assert '<option value="broken" selected>' in page
    assert "nonsense" not in page


def test_what_is_no_number_is_said(runs: Path) -> None:
    client = visitor(runs)
    for query in ("size_from=small", "size_from=1/0", "label=<b>", "group=a", "size_to=1/2/3"):
        answer = client.get(f"/samples/a?{query}")
        assert answer.status_code == 422
        assert "<b>" not in answer.text


def test_names_of_classes_stay_text(runs: Path) -> None:
    page = visitor(runs).get("/samples/a").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def test_the_rows_that_are_asked_for_come_as_csv(runs: Path) -> None:
    answer = visitor(runs).get("/csv/a?status=broken&sort=-size")
    assert answer.headers["content-type"].startswith("text/csv")
    read = list(csv.DictReader(io.StringIO(answer.text)))
    broken = [row for row in rows(runs) if row["status"] == "broken"]
    assert len(read) == len(broken) > 100
    assert {int(row["id"]) for row in read} == {row["id"] for row in broken}
    sizes = [float(row["size"]) for row in read]
    assert sizes == sorted(sizes, reverse=True)
    assert visitor(runs).get("/csv/a?size_from=x").status_code == 422


def test_row_groups_give_the_same_rows(tmp_path: Path) -> None:
    table = samples(1000, 4, 0.25)
    pq.write_table(table, tmp_path / "samples.parquet", row_group_size=64)
    stored = Samples(tmp_path)
    at = np.random.default_rng(0).permutation(1000)[:300]
    names = ["id", "status", "size", "finished"]
    assert stored.rows(at, names).to_pylist() == table.select(names).take(pa.array(at)).to_pylist()
    assert stored.rows([], names).num_rows == 0
    assert stored.column("status").to_pylist() == table.column("status").to_pylist()
    assert stored.column("size").to_pylist() == table.column("size").to_pylist()


def test_a_damaged_table_is_said(tmp_path: Path) -> None:
    make(tmp_path / "a", n=20)
    path = tmp_path / "a" / "samples.parquet"
    whole = path.read_bytes()
    client = visitor(tmp_path)
    for content in (b"", whole[:100], whole[:-100], b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"cannot read .*samples\.parquet"):
            Samples(tmp_path / "a")
    assert client.get("/samples/a").status_code == 422
    path.unlink()
    assert "holds no samples.parquet" in client.get("/samples/a").text
