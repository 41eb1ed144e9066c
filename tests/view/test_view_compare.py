"""Runs held against one another, and the plot of all of them."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
from helpers.made_up_runs import HOSTILE, make
from helpers.viewing import visitor

from holdfast.runs import store
from holdfast.runs.compare import changed
from holdfast.runs.compare import compare as pair
from holdfast.runs.metrics import measure
from holdfast.view.compare import _apart

ODD = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs a and b, of which the second held more; c of other rows, d of another threat."""
    folder = tmp_path_factory.mktemp("runs")
    make(folder / "a", names=[HOSTILE, "b", "c", "d"])
    harder(make(folder / "b", names=[HOSTILE, "b", "c", "d"]), folder / "b")
    make(folder / ODD)
    make(folder / "c", n=60)
    make(folder / "d", threat="linf(8/255)")
    return folder


def harder(manifest, folder: Path) -> None:
    """Every third broken row of a run becomes a robust one."""
    table = store.read_samples(folder)
    status = table.column("status").to_pylist()
    turned = ["robust" if s == "broken" and i % 3 == 0 else s for i, s in enumerate(status)]
    at = table.column_names.index("status")
    table = table.set_column(at, "status", pa.array(turned))
    store.write_samples(folder, table)
    metrics = measure(table, 4, [(0.25, 0.25)], manifest.data.class_names)
    store.write_manifest(folder, manifest.model_copy(update={"metrics": metrics}))


def shown(page: str) -> list[int]:
    """The samples of the table of those that changed."""
    return [int(i) for i in re.findall(r'id=(\d+)" data-row', page)]


def test_two_runs_have_the_figures_of_the_command(runs: Path) -> None:
    page, found = visitor(runs).get("/compare/a?with=b").text, pair(runs / "a", runs / "b")
    clean, robust = found.figures
    assert robust.gained > 20
    assert f'data-label="gained">{robust.gained}</td>' in page
    assert f"{100 * robust.change:+.1f} points" in page
    assert "&lt; 0.001" in page
    assert page.count('data-label="McNemar p"') == 2
    assert clean.change == 0


def test_the_samples_that_changed_lead_to_their_pages(runs: Path) -> None:
    client, table = visitor(runs), changed(runs / "a", runs / "b")
    page = client.get("/compare/a?with=b").text
    ids = table.column("id").to_pylist()
    assert shown(page) == ids[:50]
    assert set(table.column("first").to_pylist()) == {"broken"}
    assert f'href="/sample/b?id={ids[0]}"' in page
    assert client.get(f"/sample/b?id={ids[0]}").status_code == 200
    assert shown(client.get("/compare/a?with=b&from=broken&to=robust").text) == ids[:50]
    assert shown(client.get("/compare/a?with=b&from=robust").text) == []


def test_runs_of_another_question_are_refused_with_the_reason(runs: Path) -> None:
    page = visitor(runs).get("/compare/a?with=b&with=c&with=d").text
    assert page.count('class="fault"') == 2
    assert "their rows differ, 0:200 and 0:60" in page
    assert "linf(0.25) and linf(8/255)" in page
    assert '<a href="/compare/a?with=b">b</a>' in page


@pytest.mark.parametrize("path", ["/compare/none", "/compare/a?with=../a", "/compare/a?with=%00"])
def test_what_is_no_run_is_not_there(runs: Path, path: str) -> None:
    assert visitor(runs).get(path).status_code == 404


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "a", n=10)
    (tmp_path / "b" / "journal").mkdir(parents=True)
    (tmp_path / "b" / "journal" / "question.json").write_text('{"rows": "0:200"}')
    assert "unfinished run" in visitor(tmp_path).get("/compare/a?with=b").text


def test_the_plot_has_every_run_of_a_threat(runs: Path) -> None:
    client = visitor(runs)
    page = client.get("/tradeoff/").text
    assert page.count("<title>") == 1 + 4
    assert re.search(r'<a href="/run/b"><title>b: [\d.]+ % clean, [\d.]+ % robust</title>', page)
    page = client.get("/tradeoff/", params={"threat": "linf(8/255)"}).text
    assert re.findall(r'<a href="([^"]*)"><title>', page) == ["/run/d"]
    assert "No finished run" in client.get("/tradeoff/", params={"threat": HOSTILE}).text


def test_names_stay_text(runs: Path) -> None:
    client = visitor(runs)
    pages = [
        client.get("/tradeoff/").text,
        client.get("/tradeoff/", params={"threat": HOSTILE}).text,
        client.get("/compare/a", params={"with": ["b", ODD], "from": HOSTILE}).text,
        client.get("/compare/a", params={"with": ODD}).text,
        client.get("/compare/a", params={"with": "b", "from": HOSTILE}).text,
        client.get("/compare/a", params={"with": HOSTILE}).text,
    ]
    for page in pages:
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "style=" not in page
        assert "\x1b" not in page
    assert client.post("/compare/a").status_code == 405


def test_names_of_runs_with_the_same_figures_stand_apart() -> None:
    heights = _apart([(500.0, 40.0), (500.0, 40.0), (480.0, 42.0), (100.0, 40.0)])
    assert heights[0] == heights[3] == 31
    first = sorted(heights[:3])
    assert first[1] - first[0] >= 16
    assert first[2] - first[1] >= 16


LOG = "epoch,loss,clean,robust\n1,2.3,0.1,0.05\n2,1.1,0.6,nan\n3,0.9,0.7,0.4\n"


def test_the_runs_of_a_hardening_show_its_training(tmp_path: Path) -> None:
    for name in ("before", "after"):
        make(tmp_path / "hard" / name, n=30)
    log, client = tmp_path / "hard" / "log.csv", visitor(tmp_path)
    asked = "/compare/hard/before?with=hard/after"
    assert "after each epoch" not in client.get(asked).text
    log.write_text(LOG)
    page = client.get(asked).text
    assert page.count("after each epoch") == 3
    assert "loss over epoch: from 2.3 to 0.9" in page
    assert "after each epoch" not in client.get("/compare/hard/after?with=hard/before").text
    for damaged in (
        "",
        LOG + "3,0.9,0.7,0.4\n" * 20_000,
        "epoch,loss\n1,high\n",
        LOG.replace("clean", "<b>"),
    ):
        log.write_text(damaged)
        assert client.get(asked).status_code == 200
        assert "after each epoch" not in client.get(asked).text
    (tmp_path / "elsewhere.csv").write_text(LOG)
    log.unlink()
    log.symlink_to(tmp_path / "elsewhere.csv")
    assert "after each epoch" not in client.get(asked).text
