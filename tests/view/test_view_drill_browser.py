"""Samples, comparisons, the plot and the static copy in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.browsing import check_pages
from helpers.made_up_runs import make

from holdfast.runs import store
from holdfast.view.bundle import write
from holdfast.view.index import Index
from holdfast.view.site import Site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown")
    for name in ("team/first", "team/second", "alone"):
        make(folder / name, n=30 if name == "alone" else 60)
    ids = np.array([r["id"] for r in table(folder / "alone") if r["status"] == "broken"])
    x = np.random.default_rng(0).random((len(ids), 1, 6, 6), dtype=np.float32)
    store.write_tensors(folder / "alone" / "adversarial" / "0.safetensors", {"id": ids, "x": x})
    return folder


def table(run: Path) -> list[dict[str, Any]]:
    return store.read_samples(run).to_pylist()


def test_from_the_table_to_a_sample_and_on(page: Any) -> None:
    page.goto("/samples/alone?status=broken&sort=-size")
    ids = page.locator("[data-row]").all_inner_texts()
    page.locator("[data-row]").first.click()
    assert page.get_by_role("heading", level=1).inner_text().startswith(f"Sample {ids[0]} ")
    page.wait_for_load_state()  # keys are the script's
    page.keyboard.press("j")
    page.wait_for_url(f"**id={ids[1]}&**")
    assert page.url.endswith("status=broken&sort=-size")
    page.get_by_role("link", name="Previous").click()
    page.wait_for_url(f"**id={ids[0]}&**")
    drawn = "Array.from(document.images).every(i => i.complete && i.naturalWidth == 6)"
    assert page.evaluate(drawn)
    assert page.locator("main img").count() >= 1
    page.keyboard.press("u")
    page.wait_for_url("**/samples/alone**")


def test_a_slider_magnifies_the_change(page: Any) -> None:
    page.goto("/samples/team/first?status=broken")
    page.locator("[data-row]").first.click()
    caption = page.locator("figure small").nth(2)
    drawn = float(caption.inner_text().split("×")[1])
    slider = page.get_by_label("How much the change is magnified")
    slider.fill("2")
    assert float(caption.inner_text().split("×")[1]) == pytest.approx(4 * drawn, rel=0.05)
    filtered = "getComputedStyle(document.querySelector('img[data-change]')).filter"
    assert page.evaluate(filtered) == "contrast(4)"


def test_runs_are_chosen_and_compared(page: Any) -> None:
    page.goto("/run/team/first")
    page.get_by_role("link", name="Compare").click()
    page.get_by_label("team/second").check()
    page.get_by_label("alone").check()
    page.get_by_role("button", name="Compare").click()
    assert "their rows differ" in page.locator(".fault").inner_text()
    assert page.get_by_role("cell", name="1.000").count() == 2
    assert page.get_by_text("No sample has another status.").is_visible()
    page.locator("svg.points circle").nth(1).click()
    page.wait_for_url("**/run/team/second")


def test_the_plot_leads_to_runs(page: Any) -> None:
    page.get_by_role("link", name="Trade-off plot").click()
    assert page.locator("svg.points circle").count() == 3
    page.locator("svg.points a", has_text="alone").locator("circle").click()
    page.wait_for_url("**/run/alone")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_every_width_and_serve_everyone(browser: Any, served: str, scheme: str) -> None:
    pages = ("/sample/alone?id=1", "/compare/team/first?with=team/second&with=alone", "/tradeoff/")
    check_pages(browser, served, scheme, pages)


@pytest.mark.parametrize("scripts", [True, False])
def test_a_copy_is_opened_from_the_disk(
    browser: Any, folder: Path, tmp_path: Path, scripts: bool
) -> None:
    write(Site(Index(folder)), tmp_path / "copy")
    context = browser.new_context(java_script_enabled=scripts)
    shown, faults = context.new_page(), []
    shown.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    shown.on("requestfailed", lambda asked: faults.append(asked.url))
    shown.goto((tmp_path / "copy" / "index.html").as_uri())
    shown.get_by_role("link", name="alone").click()
    shown.locator("table.status").get_by_role("link", name="broken").click()
    shown.locator("[data-row]").nth(1).click()
    assert shown.get_by_role("heading", level=1).inner_text().startswith("Sample ")
    shown.get_by_role("link", name="Next").click()
    assert shown.url.startswith("file://")
    tone = "getComputedStyle(document.querySelector('.mark')).borderRadius"
    if scripts:
        assert shown.evaluate(tone) == "99px"  # the style sheets are there
    context.close()
    assert not faults
