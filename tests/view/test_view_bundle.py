"""The static copy: relative links that lead to files, and nothing else."""

from __future__ import annotations

import html
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers.commands import holdfast
from helpers.made_up_runs import HOSTILE, make

ODD = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    make(folder / "digits", n=90, spec=HOSTILE, names=[HOSTILE, "b", "c", "d"])
    make(folder / ODD / "a'b\"&c", n=20)
    (folder / "going" / "journal").mkdir(parents=True)
    (folder / "going" / "journal" / "question.json").write_text('{"rows": "0:200"}')
    (folder / "cut").mkdir()
    (folder / "cut" / "run.json").write_bytes((folder / "digits" / "run.json").read_bytes()[:500])
    make(folder / "rowless", n=20)
    (folder / "rowless" / "samples.parquet").write_bytes(b"PAR1")
    return folder


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bundle"
    done = holdfast("view", str(folder), "--bundle", str(out))
    assert done.exit_code == 0, done.output
    assert str(out / "index.html") in done.stdout
    return out


def links(path: Path) -> list[str]:
    found = re.findall(r' (?:href|src)="([^"#]*)"', path.read_text("utf-8"))
    return [unquote(html.unescape(link)) for link in found if not link.startswith("data:")]


def test_every_link_leads_to_a_file_of_the_copy(bundle: Path) -> None:
    pages = sorted(bundle.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        assert links(page)
        for link in links(page):
            assert not re.match(r"/|[a-z]+:", link), (page, link)
            target = (page.parent / link).resolve()
            assert target.is_file(), (page, link)
            assert target.is_relative_to(bundle.resolve())


def test_every_page_is_reached_from_the_list(bundle: Path) -> None:
    reached, left = set(), [bundle / "index.html"]
    while left:
        page = left.pop().resolve()
        if page not in reached and page.suffix == ".html":
            reached.add(page)
            left += [page.parent / link for link in links(page)]
    assert reached == {page.resolve() for page in bundle.rglob("*.html")}


def test_what_a_copy_cannot_do_is_not_in_it(bundle: Path) -> None:
    for page in bundle.rglob("*.html"):
        text = page.read_text("utf-8")
        assert 'class="filters"' not in text
        assert "data-events" not in text
        assert ">Compare<" not in text
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "\x1b" not in text
    listed = (bundle / "index.html").read_text("utf-8")
    assert 'red">damaged<' in listed
    assert "not finished" in listed


@pytest.mark.parametrize("inside", ["a file", "a folder"])
def test_a_folder_that_is_not_empty_is_refused(folder: Path, tmp_path: Path, inside: str) -> None:
    (tmp_path / "kept").mkdir() if inside == "a folder" else (tmp_path / "kept").touch()
    done = holdfast("view", str(folder), "--bundle", str(tmp_path))
    assert done.exit_code == 2
    assert "is not an empty folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_folder_within_a_run_is_refused(folder: Path) -> None:
    run = next(folder.rglob("run.json")).parent
    before = sorted(run.iterdir())
    done = holdfast("view", str(folder), "--bundle", str(run / "pages"))
    assert done.exit_code == 2
    assert "lies in the folder of a run" in done.stderr
    assert sorted(run.iterdir()) == before
