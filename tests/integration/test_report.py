"""The page and the terminal summary: true to run.json, harmless to the reader, and drawn for every
kind of run."""

from __future__ import annotations

import html as markup
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from helpers.made_up_runs import HOSTILE, make
from rich.console import Console

import holdfast
from holdfast.errors import InputError
from holdfast.intervals import interval
from holdfast.reporting import figures, html, markdown, scenes, terminal, words
from holdfast.runs import store
from holdfast.runs.compare import compare
from holdfast.runs.run import Run


def page(folder: Path) -> str:
    return html.write(folder).read_text("utf-8")


def text_of(source: str) -> str:
    return markup.unescape(re.sub(r"<[^>]*>", " ", source)).replace("\N{NO-BREAK SPACE}", " ")


class Elements(HTMLParser):
    """Every element and attribute of a page, as a browser sees them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def test_every_figure_is_on_the_page(tmp_path: Path) -> None:
    m = make(tmp_path)
    source = page(tmp_path)
    text = text_of(source)
    k = m.metrics
    shares = [
        k.clean_accuracy,
        k.robust_accuracy,
        k.attack_success_rate,
        *(p.robust_accuracy for p in k.curve),
    ]
    shares += [share for c in k.per_class for share in (c.clean_accuracy, c.robust_accuracy)]
    pairs = [
        k.precision,
        k.recall,
        k.f1,
        *(pair for c in k.per_class for pair in (c.precision, c.recall, c.f1)),
    ]
    said = [words.percent(s.value) for s in shares] + [words.span(s) for s in shares]
    said += [words.percent(v) for pair in pairs for v in (pair.clean, pair.attacked)]
    said += [str(n) for n in k.counts.values()] + [words.number(p.eps) for p in k.curve]
    said += [
        words.number(v)
        for v in (k.sizes.n, k.sizes.minimum, k.sizes.median, k.sizes.mean, k.sizes.maximum)
    ]
    said += [
        "123,456",
        "98,765",
        "123,457",
        "1,357",
        "2,468.5",
        "65,432",
        "43,210",
        "9.5",
        "170",
        "91",
        "0.0375",
    ]
    said += [
        m.model.fingerprint,
        m.data.fingerprint,
        m.provenance.command,
        *m.files,
        *m.files.values(),
        "4711",
    ]
    said += [words.headline(m), *words.notes(m), "not tested"]
    assert not [s for s in said if s not in text]
    counts = [
        n for table in (k.confusion.clean, k.confusion.attacked) for row in table for n in row if n
    ]
    assert sorted(re.findall(r">([\d,]+)</text>", source)) == sorted(
        [*map(str, counts), *"01230123" * 2]
    )


def test_the_headline_is_a_sentence_of_the_figures(tmp_path: Path) -> None:
    m = make(tmp_path, n=1000, status="trusted")
    clean, robust = m.metrics.clean_accuracy, m.metrics.robust_accuracy
    assert words.headline(m) == (
        f"Without an attack the model is right on {100 * clean.value:.1f} % of {clean.n} inputs. "
        "When an adversary may change every pixel by up to 0.25, it stays right on "
        f"{100 * robust.value:.1f} % of the same inputs (95 % interval {100 * robust.low:.1f} to "
        f"{100 * robust.high:.1f} %)."
    )
    m.metrics.certified_accuracy = interval(100, clean.n)
    bracket = "robust accuracy lies between 10.4 % (proved) and 32.3 % (not broken)."
    assert bracket in words.headline(m)
    m.metrics.certified_accuracy = interval(0, clean.n)
    nothing = "robust accuracy is at most 32.3 % (not broken); no input was proved to stay right."
    assert nothing in words.headline(m)
    m.metrics.robust_accuracy = interval(0, clean.n)
    assert "robust accuracy is 0 %: no input stayed right." in words.headline(m)
    aimed = make(tmp_path / "aimed", shape=(5,), target=1, names=["a", "cat", "c", "d"])
    assert "change every value" in words.headline(aimed)
    assert "wants the answer “cat”" in words.headline(aimed)
    assert "on at most" in words.headline(aimed)


def test_the_page_says_which_inputs_a_trial_leaves_out(tmp_path: Path) -> None:
    make(tmp_path, spec="pgd(max_margin=0.3) --out x")
    source = page(tmp_path)
    assert "attacks only inputs that were close to being broken" in text_of(source)
    assert '<span class="option">--out</span> x' in source  # no line ends within it
    make(tmp_path, spec="pgd()")
    assert "attacks only inputs" not in text_of(page(tmp_path))


def test_hostile_text_is_inert(tmp_path: Path) -> None:
    make(tmp_path, names=[HOSTILE, f"{HOSTILE}2", "' onload='x", "]]>"], spec=HOSTILE, target=0)
    source = page(tmp_path)
    seen = Elements(source)
    assert not seen.tags & {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "form",
        "a",
        "base",
        "foreignobject",
    }
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert "alert('x')" in text_of(source)
    assert (
        "default-src 'none'" in dict(seen.attributes)["content"]
        or "default-src 'none'" in source[:600]
    )


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    make(tmp_path)
    source = page(tmp_path)
    seen = Elements(source)
    assert not re.search(r"(?<!xmlns=\")(?<!xmlns:xlink=\")https?://", source)
    loads = [
        v for name, v in seen.attributes if name in ("src", "href", "xlink:href", "data", "srcset")
    ]
    assert loads
    assert all(v.startswith(("#", "data:image/png;base64,")) for v in loads)
    assert "@import" not in source
    assert all(v.startswith("url(#") for v in re.findall(r"url\([^)]*\)", source))


def test_ids_are_unique_and_every_reference_resolves(tmp_path: Path) -> None:
    make(tmp_path)
    source = page(tmp_path)
    ids = re.findall(r'\sid="([^"]*)"', source)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', source)) | set(
        re.findall(r"url\(#([^)]*)\)", source)
    ) <= set(ids)


@pytest.mark.parametrize(
    ("facts", "pictures"),
    [
        ({"shown": 0}, 0),
        ({"shape": (7,)}, 0),
        ({"shape": (3, 5, 4)}, 9),
        ({"shape": (5, 4, 3), "layout": "nhwc"}, 9),
        ({"shape": (5, 4, 3)}, 0),
        ({"classes": 2}, 9),
        ({"classes": 43, "shown": 30, "n": 400}, 72),
        ({"n": 0}, 0),
    ],
    ids=[
        "no gallery",
        "tabular",
        "colour",
        "nhwc",
        "no image",
        "two classes",
        "43 classes",
        "no samples",
    ],
)
def test_any_run_is_drawn(tmp_path: Path, facts: dict, pictures: int) -> None:
    m = make(tmp_path, **facts)
    source = page(tmp_path)
    assert source.count("<img ") == pictures
    assert source.count("<svg ") == source.count('role="img" aria-label="') - 1 == 3
    assert "None" not in re.findall(r"<td[^>]*>([^<]*)</td>", source)
    assert ("nan" in text_of(source).split()) is False
    console = Console(width=80, file=(tmp_path / "terminal").open("w"), color_system=None)
    console.print(terminal.summary(m))
    console.file.close()
    lines = (tmp_path / "terminal").read_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert words.headline(m)[:30] in lines[0]


def test_the_terminal_says_the_figures_and_obeys_no_name(tmp_path: Path) -> None:
    m = make(tmp_path, spec="apgd([bold]\x1b[2J)", names=["a\x1b]0;t\x07", "b", "c", "d"], target=0)
    console = Console(width=100, record=True, file=(tmp_path / "terminal").open("w"))
    console.print(terminal.summary(m))
    console.file.close()
    said = console.export_text()
    assert "\x1b" not in said
    assert "[bold]" in said
    for share in (
        m.metrics.clean_accuracy,
        m.metrics.robust_accuracy,
        m.metrics.attack_success_rate,
    ):
        assert words.percent(share.value) in said
        assert words.span(share) in said
    assert "upper-bound" in said
    assert "108,642" in said


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path)
    before = dict(matplotlib.rcParams)
    first = html.write(tmp_path).read_bytes()
    assert html.write(tmp_path).read_bytes() == first
    assert dict(matplotlib.rcParams) == before


def test_the_difference_is_magnified_as_stated(tmp_path: Path) -> None:
    m = make(tmp_path)
    x = np.full((1, 2, 2), 0.5)
    x_adv = x + np.array([[[0.25, -0.25], [0.0, 0.125]]])
    example = html._example({}, x, x_adv, m)
    assert example.changed == 3
    assert example.pictures[2] == (
        "change × 2",
        scenes.png(np.array([[[1.0, 0.0], [0.5, 0.75]]]), "nchw"),
    )


def test_a_gallery_of_another_run_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    x = np.zeros((1, 1, 6, 6), dtype=np.float32)
    store.write_tensors(
        tmp_path / "gallery.safetensors", {"id": np.array([10_000]), "x": x, "x_adv": x}
    )
    with pytest.raises(InputError, match="mixes two runs"):
        html.write(tmp_path)
    store.write_tensors(tmp_path / "gallery.safetensors", {"id": np.array([0]), "x": x})
    with pytest.raises(InputError, match="x_adv"):
        html.write(tmp_path)


def test_an_interval_band_and_upper_bounds_are_drawn(tmp_path: Path) -> None:
    m = make(tmp_path)
    svg = figures.curve(m.metrics.curve, m.threat.eps)
    assert "95 % interval" in svg
    assert "upper bound, from recorded sizes" in svg
    assert words.percent(m.metrics.robust_accuracy.value) in svg[: svg.index(">")]
    assert not re.search("#0[0-9a-f]0[0-9a-f]0[0-9a-f]", svg)


def test_the_report_needs_no_torch() -> None:
    """The package itself offers everything and so imports torch; an empty substitute shows what the
    report asks for."""
    path = list(holdfast.__path__)
    code = (
        "import sys, types\nroot = sys.modules['holdfast'] = types.ModuleType('holdfast')\n"
        f"root.__path__ = {path!r}\nimport holdfast.reporting.html, holdfast.reporting.terminal\n"
        "print({'torch', 'pandas', 'matplotlib.pyplot'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_a_movement_is_called_what_was_typed(tmp_path: Path) -> None:
    typed = "rotation(degrees=30, pixels=1)"
    m = make(tmp_path, movement=typed, threat="linf(0.5)")
    source = page(tmp_path)
    assert f"under {typed}</title>" in source
    assert f"<code>{typed}</code>, before" in source
    assert "linf" not in source[: source.index("Means")]
    assert "of that range" not in source
    assert f"under `{typed}`" in markdown.summary(m)
    assert f" under {typed}, n=" in repr(Run(tmp_path))
    less = make(tmp_path / "less", movement=typed, threat="linf(0.25, target=1)")
    assert less.asked == f"linf(0.25, target=1) of {typed}"
    make(tmp_path / "flow", movement="flow(pixels=2)", threat="linf(0.5)")
    with pytest.raises(InputError, match=r"threats differ, rotation.* and flow"):
        compare(tmp_path, tmp_path / "flow")


@pytest.mark.parametrize("access", ["gradients", "labels"])
def test_a_plain_function_is_told_by_its_name_alone(tmp_path: Path, access: str) -> None:
    make(tmp_path, access=access)
    said = compare(tmp_path, tmp_path).remarks
    assert "Both runs are of the same model, by its fingerprint." in said
    assert any("its name alone" in text for text in said) == (access == "labels")


def test_queries_of_a_run_in_which_nothing_was_broken(tmp_path: Path) -> None:
    manifest = make(tmp_path, n=0)
    store.write_manifest(
        tmp_path,
        manifest.model_copy(
            update={"model": manifest.model.model_copy(update={"access": "scores"})}
        ),
    )
    assert "The model gave scores only. No input was broken." in text_of(page(tmp_path))


def test_a_length_of_time_reads_as_a_person_says_it() -> None:
    said = [words.duration(s) for s in (0.2, 1.4, 2, 80, 120, 7200)]
    assert said == ["1 second", "1 second", "2 seconds", "80 seconds", "2.0 minutes", "2.0 hours"]


def test_the_matrices_of_many_classes_take_two_bytes_a_count(tmp_path: Path) -> None:
    written = make(tmp_path, classes=300, shown=0, spec="net [\n 1,\n 2]")
    assert (tmp_path / "run.json").stat().st_size < 2 * 2 * 300**2 + 200_000
    read = store.read_manifest(tmp_path)
    assert read.metrics.confusion == written.metrics.confusion
    assert read.trials == written.trials
