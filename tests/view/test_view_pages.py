"""What the pages of the viewer say, sort, filter and link to."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import holdfast
from helpers.made_up_runs import make
from helpers.viewing import three_runs, visitor

from holdfast.view import server

OLD = Path(__file__).parents[1] / "situations" / "version1"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_runs(tmp_path_factory.mktemp("runs"))


def names(page: str) -> list[str]:
    """The runs that a list shows, in its order."""
    return re.findall(r'href="/run/([^"]*)" data-row', page)


def test_the_list_has_every_run_with_its_figures(runs: Path) -> None:
    page = visitor(runs).get("/").text
    assert names(page) == ["digits", "team/first", "team/second"]
    assert "apgd(steps=100" in page
    assert "linf(8/255)" in page
    assert "3 of 3 runs" in page


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        ("sort=inputs", ["team/first", "team/second", "digits"]),
        ("sort=-inputs", ["digits", "team/second", "team/first"]),
        ("sort=nothing", ["digits", "team/first", "team/second"]),
        ("verdict=trusted", ["team/first"]),
        ("threat=linf(0.25)&sort=-run", ["team/second", "digits"]),
        ("folder=team", ["team/first", "team/second"]),
        ("text=SECOND", ["team/second"]),
        ("text=no+such+run", []),
        ("page=99999999999", ["digits", "team/first", "team/second"]),
    ],
)
def test_the_list_is_sorted_and_filtered(runs: Path, query: str, shown: list[str]) -> None:
    assert names(visitor(runs).get(f"/?{query}").text) == shown


def test_a_run_shows_the_sections_of_its_report(runs: Path) -> None:
    page = visitor(runs).get("/run/team/first").text
    for heading in (
        "Key figures",
        "Robust accuracy over eps",
        "Confusion",
        "Attacks",
        "Provenance",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert "Sign-off" not in page
    assert 'href="/samples/team/first?status=broken"' in page
    assert "style=" not in page


def test_a_single_run_is_shown(runs: Path) -> None:
    assert names(visitor(runs / "digits").get("/").text) == ["digits"]
    assert visitor(runs / "digits").get("/run/digits").status_code == 200


def test_runs_of_the_first_schema_are_shown() -> None:
    client = visitor(OLD)
    assert names(client.get("/").text) == ["rounded", "targeted"]
    assert "non_smooth" in client.get("/run/rounded").text


def test_a_run_that_was_changed_says_so(tmp_path: Path) -> None:
    make(tmp_path / "a")
    path = tmp_path / "a" / "run.json"
    path.write_text(path.read_text("utf-8").replace("4711", "4712"), "utf-8")
    assert "its digest differs" in visitor(tmp_path).get("/run/a").text


def test_runs_appear_change_and_go_while_the_server_runs(tmp_path: Path) -> None:
    make(tmp_path / "a", n=10)
    client = visitor(tmp_path)
    make(tmp_path / "b", n=20)
    shutil.rmtree(tmp_path / "a")
    assert names(client.get("/").text) == ["b"]


def test_no_pages_need_torch() -> None:
    code = "import sys; import holdfast.view.server; sys.exit(any(n in sys.modules for n in NAMES))"
    names = "('torch', 'scipy', 'sklearn')"
    asked = [sys.executable, "-c", code.replace("NAMES", names)]
    assert not subprocess.run(asked, check=False).returncode


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    done = holdfast("view", str(tmp_path))
    assert done.exit_code == 2
    assert "holds no run" in done.stderr
    done = holdfast("view", str(tmp_path / "nothing"))
    assert (done.exit_code, "is no folder" in done.stderr) == (2, True)


def test_a_port_that_is_taken_is_said(runs: Path) -> None:
    with server.bound(0) as held:
        port = held.getsockname()[1]
        done = holdfast("view", str(runs), "--port", port)
    assert done.exit_code == 2
    assert f"error: port {port} is taken by another program; give another one" in done.stderr


def test_without_its_extra_it_says_what_to_install(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.delitem(sys.modules, "holdfast.view.server")
    monkeypatch.delattr("holdfast.view.server")
    for name in [name for name in sys.modules if name.startswith("starlette.")]:
        monkeypatch.delitem(sys.modules, name)
    done = holdfast("view", str(runs))
    assert done.exit_code == 2
    assert "pip install 'holdfast[view]'" in done.stderr
