"""Names come from outside: in no form of a report are they markup, a link, a cell, or an order to
the terminal."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.made_up_runs import make
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console

from holdfast.intervals import interval
from holdfast.reporting import html, junit, markdown, sarif, terminal
from holdfast.runs import store
from holdfast.runs.gates import Outcome, parse
from holdfast.runs.manifest import GroupMetrics, Manifest, Provenance

NAMES = [
    "[click](https://evil.example)",
    "![x](http://evil.example/a.png)",
    "<img src=x onerror=alert(1)>",
    "a | b | c",
    "\\| b",
    "`code` ``",
    "# heading",
    "**bold** _it_ ~~gone~~ $x$",
    "line\nbreak\r\n\n# heading",
    "https://evil.example www.evil.example me@evil.example",
    "&lt;script&gt; &#124;",
    "[bold]red[/bold]\x1b[31m\u202e",
    "```\n# out",
    "</style></svg><script>alert(1)</script>",
    "]]>",
    "<!-- --> {{ 7 * 7 }} {% raw %}",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make(folder, n=40, names=list("abcd"), spec="mlp", target=0, shown=0)
    return folder


def named(folder: Path, name: str) -> Manifest:
    """A run in which everything that is text is this name."""
    m = store.read_manifest(folder)
    m.data.class_names = [f"{name}{i}" for i in range(4)]
    for i, part in enumerate(m.metrics.per_class):
        part.name = m.data.class_names[i]
    group = GroupMetrics(name=name, clean_accuracy=interval(1, 2), robust_accuracy=interval(1, 2))
    m.metrics.per_group, m.metrics.worst_group = [group], group
    m.model.spec = m.model.arch = m.model.layout = m.model.access = m.model.surrogate = (
        m.model.fingerprint
    ) = name
    m.data.spec = m.data.split = m.data.fingerprint = m.threat.text = m.protocol.name = m.trials[
        0
    ].spec = name
    m.model.preprocess, m.protocol.trials, m.settings = [name], [name], {name: name}
    m.verdict.findings[0].check = m.verdict.findings[0].text = m.verdict.reason = name
    m.provenance = Provenance(command=name, created=name, versions={name: name}, hardware=name)
    return m


def cells(token: Token) -> list[Token]:
    return [token, *(part for child in token.children or [] for part in cells(child))]


LIVE = {"link_open", "image", "html_inline", "html_block", "s_open", "strong_open", "hr"}
PARTS = (
    "heading_open",
    "td_open",
    "th_open",
    "tr_open",
    "table_open",
    "fence",
    "em_open",
    "bullet_list_open",
)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_not_live_in_markdown(folder: Path, name: str) -> None:
    """Line 30: in a summary and in a model card, a name is neither a link, HTML, a heading nor a
    further cell."""
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    forms = []
    for word in (name, "mlp"):
        m = named(folder, word)
        said = markdown.summary(m, [Outcome(parse("robust_accuracy>=0.5"), True, word)])
        said += markdown.card(m).split("\n---\n", 1)[1]  # without its head, which is JSON
        forms.append(said.replace("**Verdict: upper-bound.**", "Verdict"))
    tokens, usual = ([t for token in reader.parse(text) for t in cells(token)] for text in forms)
    assert not LIVE & {t.type for t in tokens}
    for kind in PARTS:
        assert sum(t.type == kind for t in tokens) == sum(t.type == kind for t in usual), kind
    bare = re.sub(r"^(```+)sh\n.*?\n\1$|`[^`\n]*`", "", forms[0], flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"https?://|(?<!\\)www\.|\w@\w", bare)  # which GitHub makes links of
    assert not re.search("[\x1b\u202e]", forms[0])


def test_names_are_not_live_on_the_page(folder: Path) -> None:
    """Line 30: in HTML a name is text, and turns no direction of writing."""
    store.write_manifest(folder, named(folder, " ".join(NAMES)))
    page = html.write(folder).read_text("utf-8")
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            seen.extend([tag, *(name for name, _ in attrs if name.startswith("on"))])

    Reader().feed(page)
    assert not {"script", "a", "iframe", "onerror", "strong"} & set(seen)
    assert not re.search("[\x1b\u202e]", page)


@pytest.mark.parametrize("name", NAMES)
def test_names_are_not_live_elsewhere(folder: Path, name: str) -> None:
    """Line 30: nor in JUnit, SARIF (whose messages know links in square brackets) and on the
    terminal."""
    m = named(folder, name)
    for result in json.loads(sarif.sarif(m))["runs"][0]["results"]:
        assert not re.search(r"(?<!\\)\[[^\]]*(?<!\\)\]\(", result["message"]["text"])
        assert ":" not in result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert len(ElementTree.fromstring(junit.junit(m)).findall(".//testcase")) == 2
    console = Console(
        width=200, force_terminal=True, color_system=None, record=True, file=io.StringIO()
    )
    console.print(terminal.summary(m))
    shown = console.export_text()
    assert not re.search("[\x1b\u202e]", shown)
    assert ("[bold]" in shown) == ("[bold]" in name)
