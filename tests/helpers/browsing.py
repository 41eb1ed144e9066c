"""A server of runs, and a real browser that looks at them."""

from __future__ import annotations

import resource
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        pytest.skip("Chromium does not start where the address space is limited (ulimit -v)")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[str]:
    """The address of a server that shows the folder."""
    import uvicorn

    from helpers.viewing import TOKEN
    from holdfast.view.index import Index
    from holdfast.view.server import application, bound
    from holdfast.view.site import Site

    held = bound(0)
    port = held.getsockname()[1]
    app = application(Site(Index(folder, fresh=0)), TOKEN, port)
    server = uvicorn.Server(
        uvicorn.Config(app, lifespan="off", log_level="error", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [held]})
    thread.start()
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    held.close()


@pytest.fixture
def page(browser: Any, served: str) -> Iterator[Any]:
    """A page that has shown the token; nothing may be refused or asked of another server."""
    from helpers.viewing import TOKEN

    context = browser.new_context(base_url=served, viewport={"width": 1280, "height": 900})
    shown, faults = context.new_page(), []
    shown.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    shown.on("pageerror", lambda error: faults.append(str(error)))
    shown.on("request", lambda asked: faults.append(asked.url) if elsewhere(asked.url) else None)
    shown.goto(f"/?token={TOKEN}")
    yield shown
    context.close()
    assert not faults


def elsewhere(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "data:", "blob:http://127.0.0.1:"))


WIDTHS = (400, 1280, 2560)


def check_pages(browser: Any, served: str, scheme: str, paths: Sequence[str]) -> None:
    """No page is wider than its window, or has a serious fault for users of a screen reader."""
    from helpers.viewing import TOKEN

    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe").Axe()
    context = browser.new_context(base_url=served, color_scheme=scheme, bypass_csp=True)
    shown = context.new_page()
    shown.goto(f"/?token={TOKEN}")
    for width in WIDTHS:
        shown.set_viewport_size({"width": width, "height": 900})
        for path in paths:
            shown.goto(path)
            wide = shown.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, (path, width)
            found = axe.run(shown).response["violations"]
            serious = [one for one in found if one["impact"] in ("serious", "critical")]
            where = [(one["id"], one["nodes"][0]["html"]) for one in serious]
            assert not where, (path, width)
    context.close()
