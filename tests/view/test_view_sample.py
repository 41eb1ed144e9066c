"""The page of a sample: its inputs as far as they are known, and nothing that is not its own."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import holdfast
from helpers.made_up_runs import HOSTILE, make
from helpers.viewing import PORT, TOKEN, stranger, visitor
from starlette.testclient import TestClient

from holdfast.data import open_data
from holdfast.reporting import figures, scenes
from holdfast.runs import store
from holdfast.runs.manifest import ColumnInfo
from holdfast.view.index import Index
from holdfast.view.originals import Originals
from holdfast.view.server import application
from holdfast.view.site import Site

N = 40
EPS = np.float32(0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a with examples of all its broken rows, three of them in its gallery; run b of others."""
    folder = tmp_path_factory.mktemp("runs")
    x = np.random.default_rng(2).random((N, 1, 6, 6), dtype=np.float32)
    np.savez(folder / "data.npz", x=x, y=np.zeros(N, dtype=np.int64))
    np.savez(folder / "others.npz", x=x + 1e-3, y=np.zeros(N, dtype=np.int64))
    for name in ("a", "b"):
        manifest = make(folder / name, n=N, names=[HOSTILE, "b", "c", "d"])
        ids = np.array(broken(folder / name))
        shard = {"id": ids, "x": np.clip(x[ids] + EPS, 0, 1)}
        store.write_tensors(folder / name / "adversarial" / "0.safetensors", shard)
        kept = {"id": ids[:3], "x": x[ids[:3]], "x_adv": shard["x"][:3]}
        store.write_tensors(folder / name / "gallery.safetensors", kept)
        found = open_data(str(folder / "data.npz")).fingerprint()
        data = manifest.data.model_copy(update={"fingerprint": found})
        store.write_manifest(folder / name, manifest.model_copy(update={"data": data}))
    return folder


def broken(run: Path) -> list[int]:
    return [r["id"] for r in store.read_samples(run).to_pylist() if r["status"] == "broken"]


def with_data(folder: Path, name: str) -> TestClient:
    """A browser that looks at runs, and has their data."""
    site = Site(Index(folder, fresh=0), originals=Originals(str(folder / name)))
    client = TestClient(application(site, TOKEN, PORT), base_url=f"http://127.0.0.1:{PORT}")
    assert client.get(f"/?token={TOKEN}").status_code == 200
    return client


def pictures(page: str) -> dict[str, str]:
    return {
        alt.partition(" of")[0]: src
        for src, alt in re.findall(r'<img src="([^"]*)" alt="([^"]*)"', page)
    }


def picture(folder: Path, sample: int) -> str:
    """The original of a sample, as it is drawn."""
    return scenes.png(np.load(folder / "data.npz")["x"][sample].astype(float), "nchw")


def test_a_kept_example_is_shown_with_its_original_and_the_difference(folder: Path) -> None:
    sample = broken(folder / "a")[0]
    page = visitor(folder).get(f"/sample/a?id={sample}").text
    shown = pictures(page)
    assert list(shown) == ["original", "adversarial", "change × 2"]
    assert shown["original"] == picture(folder, sample)
    assert "<b>broke it</b>" in page
    assert "style=" not in page


def test_an_original_that_is_not_kept_comes_from_the_data(folder: Path) -> None:
    sample = broken(folder / "a")[5]
    page = visitor(folder).get(f"/sample/a?id={sample}").text
    assert list(pictures(page)) == ["adversarial"]
    assert "not its original" in page
    shown = pictures(with_data(folder, "data.npz").get(f"/sample/a?id={sample}").text)
    assert shown["original"] == picture(folder, sample)


def test_a_sample_without_an_example_shows_its_original_alone(folder: Path) -> None:
    sample = next(i for i in range(N) if i not in broken(folder / "a"))
    page = with_data(folder, "data.npz").get(f"/sample/a?id={sample}").text
    assert pictures(page) == {"original": picture(folder, sample)}
    assert "keeps neither" in visitor(folder).get(f"/sample/a?id={sample}").text


def test_data_of_another_hash_are_withheld(folder: Path) -> None:
    client = with_data(folder, "others.npz")
    for sample in broken(folder / "a")[3:6]:
        page = client.get(f"/sample/a?id={sample}").text
        assert "The original is withheld" in page
        assert list(pictures(page)) == ["adversarial"]


def test_data_that_are_not_there_are_refused(folder: Path) -> None:
    done = holdfast("view", str(folder), "--data", "nothing/here")
    assert (done.exit_code, "nothing/here" in done.stderr) == (2, True)


def test_previous_and_next_stay_within_the_filter(folder: Path) -> None:
    ids, client = broken(folder / "a"), visitor(folder)
    page = client.get(f"/sample/a?id={ids[1]}&status=broken&page=3&token=x&other=1").text
    assert f'rel="prev" href="/sample/a?id={ids[0]}&amp;status=broken"' in page
    assert f'rel="next" href="/sample/a?id={ids[2]}&amp;status=broken"' in page
    assert f"2 of {len(ids)} that fit the filter" in page
    assert 'rel="prev"' not in client.get("/sample/a?id=0").text
    assert 'rel="next"' not in client.get(f"/sample/a?id={N - 1}").text
    assert "does not fit" in client.get(f"/sample/a?id={ids[0]}&status=robust").text


@pytest.mark.parametrize("query", ["", "id=-1", "id=40", "id=x", "id=../0", "id=99999999999999999"])
def test_what_is_no_sample_is_not_there(folder: Path, query: str) -> None:
    assert visitor(folder).get(f"/sample/a?{query}").status_code == 404


def test_names_stay_text(folder: Path) -> None:
    client = visitor(folder)
    pages = [client.get(f"/sample/a?id={i}").text for i in range(N)]
    pages.append(client.get("/sample/a", params={"id": HOSTILE}).text)
    pages.append(client.get("/sample/a", params={"id": 0, "status": HOSTILE}).text)
    assert any("&lt;script&gt;alert" in page for page in pages)
    for page in pages:
        assert "<script>alert" not in page
        assert "\x1b" not in page
    assert stranger(folder).get("/sample/a?id=0").status_code == 403


def test_a_damaged_shard_is_said(folder: Path, tmp_path: Path) -> None:
    make(tmp_path / "a", n=N, shown=0)
    sample = broken(tmp_path / "a")[0]
    shard = tmp_path / "a" / "adversarial" / "0.safetensors"
    nan = np.full((1, 1, 6, 6), np.nan, dtype=np.float32)
    for content, said in (
        ({"id": np.array([sample]), "x": nan}, "not finite"),
        ({"id": np.array([sample]), "x": nan[0, 0, :0]}, "cannot read"),
        ({"id": np.array([sample]), "x": np.zeros((1, 3), np.float32)}, "run.json says"),
        ({"x": nan}, "cannot read"),
    ):
        store.write_tensors(shard, content)
        answer = visitor(tmp_path).get(f"/sample/a?id={sample}")
        assert answer.status_code == 422
        assert said in answer.text


def test_a_wave_is_drawn_with_its_highest_and_lowest_values(tmp_path: Path) -> None:
    make(tmp_path / "a", n=N, shape=(200,), shown=1)
    page = visitor(tmp_path).get(f"/sample/a?id={broken(tmp_path / 'a')[0]}").text
    assert "An input of 200 values; the most that one changed is " in page
    values = np.random.default_rng(0).normal(size=16_001)
    places, drawn = figures._outline(values)
    assert len(places) == figures.DRAWN
    assert (np.diff(places) > 0).all()
    assert (drawn == values[places]).all()
    assert (drawn.min(), drawn.max()) == (values.min(), values.max())


def test_a_row_of_a_table_shows_what_changed(tmp_path: Path) -> None:
    manifest = make(tmp_path / "a", n=N, shape=(3,), shown=1)
    columns = [
        ColumnInfo(name=HOSTILE, dtype="float64"),
        *(ColumnInfo(name=name, dtype="float64") for name in ("age", "rate")),
    ]
    data = manifest.data.model_copy(update={"columns": columns})
    store.write_manifest(tmp_path / "a", manifest.model_copy(update={"data": data}))
    page = visitor(tmp_path).get(f"/sample/a?id={broken(tmp_path / 'a')[0]}").text
    assert re.search(r'class="long">age</th><td class="n">0\.\d+</td><td class="n">0\.\d+', page)
    assert "<script>alert" not in page
