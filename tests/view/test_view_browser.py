"""The pages of the viewer in a real browser, as people use them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.browsing import check_pages
from helpers.made_up_runs import make
from helpers.viewing import TOKEN, three_runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_runs(tmp_path_factory.mktemp("shown"))


def first_cells(page: Any) -> list[str]:
    return page.locator("[data-row]").all_inner_texts()


def test_sort_filter_and_drill_down(page: Any) -> None:
    assert "token" not in page.url
    page.get_by_role("link", name="inputs").click()
    page.wait_for_url("**/?sort=inputs")
    assert first_cells(page) == ["first", "second", "digits"]
    page.get_by_role("link", name="inputs").click()
    page.wait_for_url("**/?sort=-inputs")
    assert first_cells(page) == ["digits", "second", "first"]
    page.get_by_label("Verdict").select_option("trusted")
    page.get_by_role("button", name="Show").click()
    page.wait_for_url("**/?verdict=trusted&sort=-inputs")  # what was not asked is left out
    assert first_cells(page) == ["first"]
    page.get_by_role("link", name="first").click()
    page.locator("table.status").get_by_role("link", name="broken").click()
    page.wait_for_url("**/samples/team/first?status=broken")
    broken = first_cells(page)
    page.get_by_role("link", name="size").click()
    page.wait_for_url("**sort=size*")
    assert sorted(broken) == sorted(first_cells(page)) != first_cells(page)


@pytest.mark.slow
def test_keys(page: Any) -> None:
    focused = "document.activeElement.innerText"
    page.keyboard.press("j")
    assert page.evaluate(focused) == "digits"
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate(focused) == "second"
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    page.wait_for_url("**/run/team/first")
    page.keyboard.press("u")
    page.wait_for_url(lambda url: url.endswith("/"))
    page.keyboard.press("/")
    page.keyboard.type("dig?j")  # no key of the page while one types
    assert page.get_by_label("Find").input_value() == "dig?j"
    page.keyboard.press("Escape")
    page.locator("h1").click()
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0
    page.goto("/samples/digits")
    page.keyboard.press("n")
    page.wait_for_url("**page=2")
    page.keyboard.press("p")
    page.wait_for_url("**page=1")


@pytest.mark.slow
def test_it_works_without_a_script(browser: Any, served: str) -> None:
    context = browser.new_context(base_url=served, java_script_enabled=False)
    shown = context.new_page()
    shown.goto(f"/samples/digits?token={TOKEN}")
    shown.get_by_role("link", name="Next", exact=True).click()
    assert first_cells(shown)[0] == "100"
    shown.get_by_label("Status").select_option("broken")
    shown.get_by_role("button", name="Show").click()
    assert "status=broken" in shown.url
    assert shown.locator("tbody .mark.broken").count() == len(first_cells(shown)) > 5
    context.close()


@pytest.mark.slow
def test_figures_and_commands_are_copied(page: Any) -> None:
    page.goto("/run/digits")
    for form, start in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with page.expect_download() as waited:
            page.locator("figure", has=page.locator("svg.curve")).get_by_role(
                "button", name=form
            ).click()
        assert waited.value.suggested_filename == f"curve.{form.lower()}"
        content = Path(waited.value.path()).read_bytes()
        assert content.startswith(start)
        assert b"var(--" not in content
        assert b"currentColor" not in content
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.locator("code.block").inner_text() != ""


@pytest.mark.slow
def test_a_run_that_is_going_is_followed(page: Any, folder: Path) -> None:
    """Started while its page is open, by the command itself; nobody reloads."""
    code = "from holdfast.cli.main import main; main()"
    asked = ["evaluate", "demo", "digits", "--threat", "linf(0.1)", "--protocol", "quick"]
    asked += ["--samples", "20", "--out", str(folder / "new")]
    with subprocess.Popen(
        [sys.executable, "-c", code, *asked], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as going:
        row = page.locator("tr", has=page.get_by_role("link", name="new", exact=True))
        row.locator("progress").wait_for(timeout=120_000)
        row.locator(".mark:not(.amber)").wait_for(timeout=120_000)
    assert going.returncode == 0
    shutil.rmtree(folder / "new")


def test_a_page_of_an_unfinished_run_moves_on(page: Any, folder: Path, tmp_path: Path) -> None:
    journal = folder / "going" / "journal"
    journal.mkdir(parents=True)
    said = {"rows": "0:200", "threat": "linf(0.25)", "eps": "1/4", "protocol": "quick version 3: a"}
    (journal / "question.json").write_text(json.dumps(said))
    page.goto("/run/going")
    assert page.locator("progress").get_attribute("value") == "0"
    (journal / "000000000-clean.safetensors").write_bytes(header(100))
    (journal / "000000000-done.safetensors").write_bytes(b"")
    page.locator("progress[value='50']").wait_for()
    make(folder / "going")
    page.get_by_role("heading", name="Key figures").wait_for()
    shutil.rmtree(folder / "going")


def header(rows: int) -> bytes:
    said = json.dumps({"label": {"dtype": "I64", "shape": [rows], "data_offsets": [0, 0]}}).encode()
    return len(said).to_bytes(8, "little") + said


PAGES = ("/", "/run/digits", "/samples/digits", "/run/none")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_every_width_and_serve_everyone(browser: Any, served: str, scheme: str) -> None:
    check_pages(browser, served, scheme, PAGES)
