"""Nobody but the one who started the viewer sees a page, and no page shows more than the folder."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from helpers.made_up_runs import HOSTILE, make
from helpers.viewing import PORT, TOKEN, stranger, three_runs, visitor
from starlette.requests import Request

from holdfast.view.server import Guard


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_runs(tmp_path_factory.mktemp("runs"))


COOKIE = f"holdfast-view-{PORT}"


def test_without_the_token_there_is_nothing(runs: Path) -> None:
    client = stranger(runs)
    for path in ("/", "/run/digits", "/static/view.js", "/nothing", "/?token=another", "/?token=é"):
        answer = client.get(path)
        assert answer.status_code == 403
        assert "digits" not in answer.text
    client.cookies.set(COOKIE, "another")
    assert client.get("/").status_code == 403


def test_the_token_becomes_a_cookie_and_leaves_the_address(runs: Path) -> None:
    client = stranger(runs)
    answer = client.get(f"/run/team/first?a=1&token={TOKEN}&b=%3Cx%3E", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        "/run/team/first?a=1&b=%3Cx%3E",
    )
    assert answer.headers["set-cookie"] == f"{COOKIE}={TOKEN}; HttpOnly; Path=/; SameSite=strict"
    assert client.get("/").status_code == 200


def test_no_redirect_leads_to_another_host(runs: Path) -> None:
    for path in ("//evil.example/a", "/\\evil.example", "/%2Fevil.example", "/a?b\r\nc"):
        client = stranger(runs)
        scope = {"type": "http", "method": "GET", "path": path, "query_string": b"token=a-token"}
        scope["headers"] = [(b"host", f"127.0.0.1:{PORT}".encode())]
        answer = client.app._refusal(Request(scope))  # pyright: ignore
        assert answer is not None
        assert re.match(r"/[^/\\]", answer.headers["location"])
        assert "\r" not in answer.headers["location"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"])
def test_it_only_reads(runs: Path, method: str) -> None:
    answer = visitor(runs).request(method, "/")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize(
    "host",
    ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:80", "", "0.0.0.0:8713"],
)
def test_another_host_is_refused(runs: Path, host: str) -> None:
    answer = visitor(runs).get("/", headers={"host": host})
    assert answer.status_code == 421
    assert visitor(runs).get("/", headers={"host": f"localhost:{PORT}"}).status_code == 200


def test_every_answer_says_what_the_browser_may_do(runs: Path) -> None:
    client = visitor(runs)
    for path in ("/", "/run/digits", "/run/none", "/static/view.css", "/none"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    assert client.get("/none").status_code == client.get("/run/none").status_code == 404


TRAVERSALS = (
    "../secret",
    "..%2fsecret",
    "%2e%2e/secret",
    "%2e%2e%2fsecret",
    "....//secret",
    "..\\secret",
    "/etc/passwd",
    "%00",
    "digits/../../secret",
    "digits/run.json",
    "~root",
)


@pytest.mark.parametrize("path", TRAVERSALS)
@pytest.mark.parametrize("kind", ["run", "static", "sample", "compare", "tradeoff"])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, kind: str, path: str) -> None:
    make(tmp_path / "shown" / "digits", n=5, shown=0)
    make(tmp_path / "secret", n=7, shown=0)
    answer = visitor(tmp_path / "shown").get(f"/{kind}/{path}")
    assert answer.status_code in (404, 400)
    assert "apgd" not in answer.text


def test_links_that_lead_out_are_refused(tmp_path: Path) -> None:
    shown, secret = tmp_path / "shown", tmp_path / "secret"
    make(secret, n=7, spec="the secret")
    make(shown / "digits", n=5, shown=0)
    (shown / "linked").symlink_to(secret)
    (shown / "manifest").mkdir()
    (shown / "manifest" / "run.json").symlink_to(secret / "run.json")
    make(shown / "rows", n=5, shown=0)
    (shown / "rows" / "gallery.safetensors").symlink_to(secret / "gallery.safetensors")
    (shown / "going").mkdir()
    (shown / "going" / "journal").symlink_to(secret)
    (shown / "asked" / "journal").mkdir(parents=True)
    (secret / "question.json").write_text('{"rows": "0:9", "threat": "the secret"}')
    (shown / "asked" / "journal" / "question.json").symlink_to(secret / "question.json")
    client = visitor(shown)
    page = client.get("/").text
    assert "the secret" not in page
    assert 'href="/run/linked"' not in page
    for name in ("manifest", "rows", "going", "asked"):
        answer = client.get(f"/run/{name}")
        assert answer.status_code == 422
        assert "leads out of the folder" in answer.text
        assert "the secret" not in answer.text


def test_names_from_files_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>" / "a'b\"&c"
    make(folder, spec=HOSTILE, names=[HOSTILE, "b", "c", "d"], target=0)
    client = visitor(tmp_path)
    listed = client.get("/").text
    (name,) = re.findall(r'href="/run/([^"]*)" data-row', listed)
    pages = [listed, client.get(f"/run/{name}").text]
    pages.append(client.get("/", params={"text": HOSTILE, "sort": HOSTILE, "folder": HOSTILE}).text)
    pages.append(client.get(f"/run/{quote(HOSTILE)}").text)
    for page in pages:
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "onerror=alert" not in re.sub(r"&lt;.*?&gt;", "", page)
        assert "\x1b" not in page
    assert len(pages[1]) > 10_000


def test_damaged_and_half_written_runs_are_shown_as_such(tmp_path: Path) -> None:
    make(tmp_path / "whole", n=5, shown=0)
    for name, content in {
        "empty": b"",
        "cut": (tmp_path / "whole" / "run.json").read_bytes()[:500],
        "list": b"[1]",
        "deep": b"[" * 100_000,
        "later": b'{"schema_version": 99}',
        "binary": bytes(range(256)),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_bytes(content)
    (tmp_path / "begun" / "journal").mkdir(parents=True)
    (tmp_path / "begun" / "journal" / "question.json").write_bytes(b"")
    (tmp_path / "folder" / "run.json").mkdir(parents=True)
    (tmp_path / "circle").mkdir()
    (tmp_path / "circle" / "run.json").symlink_to("run.json")
    made = json.loads((tmp_path / "whole" / "run.json").read_bytes())
    made["costs"]["seconds"] = math.nan
    (tmp_path / "nan").mkdir()
    (tmp_path / "nan" / "run.json").write_text(json.dumps(made))
    client = visitor(tmp_path)
    page = client.get("/").text
    damaged = ["empty", "cut", "list", "deep", "later", "binary", "begun", "folder"]
    damaged += ["circle", "nan"]
    assert page.count('red">damaged<') == len(damaged)
    for name in damaged:
        answer = client.get(f"/run/{name}")
        assert answer.status_code == 422
        assert "Traceback" not in answer.text
    assert client.get("/run/whole").status_code == 200


def test_links_in_a_circle_within_a_run_are_said(tmp_path: Path) -> None:
    make(tmp_path / "a", n=5, shown=0)
    (tmp_path / "a" / "gallery.safetensors").unlink(missing_ok=True)
    (tmp_path / "a" / "gallery.safetensors").symlink_to("gallery.safetensors")
    answer = visitor(tmp_path).get("/run/a")
    assert answer.status_code == 422
    assert "leads out of the folder" in answer.text


def test_a_name_with_a_line_break_has_pages(tmp_path: Path) -> None:
    make(tmp_path / "new\nline", n=5, shown=0)
    client = visitor(tmp_path)
    (link,) = re.findall(r'href="(/run/[^"]*line)"', client.get("/").text)
    assert client.get(link).status_code == 200


def test_the_usual_port_need_not_be_named() -> None:
    assert "127.0.0.1" in Guard(None, TOKEN, 80).hosts  # pyright: ignore[reportArgumentType]
    assert "127.0.0.1" not in Guard(None, TOKEN, 8080).hosts  # pyright: ignore[reportArgumentType]


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    journal = tmp_path / "a" / "journal"
    journal.mkdir(parents=True)
    (journal / "question.json").write_text('{"rows": "0:9"}')
    os.mkfifo(journal / "000000000-clean.safetensors")
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "run.json")
    client = visitor(tmp_path)
    assert [client.get(f"/run/{name}").status_code for name in "ab"] == [200, 422]


def test_another_folder_called_journal_hides_no_run(tmp_path: Path) -> None:
    make(tmp_path / "whole", n=5, shown=0)
    (tmp_path / "journal").mkdir()
    assert "1 of 1 run." in visitor(tmp_path).get("/").text
