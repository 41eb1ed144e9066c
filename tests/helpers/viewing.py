"""A browser's questions to the server of `holdfast view`, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.made_up_runs import make

pytest.importorskip("starlette", reason="the extra view is not installed")
from starlette.testclient import TestClient

from holdfast.view.index import Index
from holdfast.view.server import application
from holdfast.view.site import Site

PORT, TOKEN = 8713, "a-token"


def stranger(folder: Path) -> TestClient:
    """A browser that has not shown the token to the server of a folder."""
    app = application(Site(Index(folder, fresh=0)), TOKEN, PORT)
    return TestClient(app, base_url=f"http://127.0.0.1:{PORT}")


def visitor(folder: Path) -> TestClient:
    """A browser that has."""
    client = stranger(folder)
    assert client.get(f"/?token={TOKEN}").status_code == 200
    return client


def three_runs(folder: Path) -> Path:
    """Made-up runs, two of them in a folder."""
    make(folder / "digits")
    make(folder / "team" / "first", n=30, status="trusted", threat="linf(8/255)")
    make(folder / "team" / "second", n=60, status="unreliable", shown=0)
    return folder
