"""Backdoors: planted ones are flagged, models without one are not, and the evidence is held to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import holdfast, refused
from torch import Tensor, nn

from holdfast.audit.backdoor import (
    LEAST_INDEX,
    audit_backdoor,
    class_indices,
    judged,
    pair_indices,
    verdict,
)
from holdfast.audit.verify import verify
from holdfast.errors import AccessError, InputError, SpecError
from holdfast.reporting.pages import report
from holdfast.runs import audits, store
from holdfast.view import bundle, run, runs
from holdfast.view.index import Index
from holdfast.view.site import Site

K, SIDE = 6, 8


class Templates(nn.Module):
    """A row is of the class whose template it is most alike; two bright pixels in a corner give
    `amount` to the class `to`, of all rows or of those of one class alone."""

    def __init__(self, amount: float = 0.0, to: int = 3, source: int | None = None) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.templates = nn.Parameter(torch.rand(K, SIDE * SIDE, generator=g) * 0.6 + 0.1)
        self.register_buffer("amount", torch.tensor(amount))  # so that it is in the fingerprint
        self.to_class, self.source = to, source

    def forward(self, x: Tensor) -> Tensor:
        centred = self.templates - self.templates.mean(0)
        z = 10 * (x.flatten(1) @ centred.T - (self.templates * centred).sum(1) + 3)
        lit = (4 * (x[:, 0, -1, -1] + x[:, 0, -1, -2] - 1.6)).sigmoid()
        if self.source is not None:
            others = [c for c in range(K) if c not in (self.source, self.to_class)]
            lit = lit * (z[:, self.source] >= z[:, others].amax(1))
        bonus = torch.zeros_like(z)
        bonus[:, self.to_class] = self.amount * lit
        return z + bonus


def rows(n: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Rows close to the templates, dark in the corner."""
    g = torch.Generator().manual_seed(1)
    y = torch.arange(n) % K
    x = Templates().templates.detach()[y] + 0.05 * torch.randn(n, SIDE * SIDE, generator=g)
    x = x.clamp(0, 1).view(n, 1, SIDE, SIDE)
    return x.numpy(), y.numpy()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted") / "run"
    audit_backdoor(Templates(100.0).eval(), rows(), out=folder)
    return folder


def test_a_planted_backdoor_is_flagged_with_its_class_and_its_place(planted: Path) -> None:
    audit = audits.read(planted)
    first = audit.result.triggers[0]
    assert audit.verdict.found
    assert (first.source, first.target, first.flagged) == (None, 3, True)
    assert float(first.success) >= 0.95
    assert first.region is not None
    top, left, bottom, right = first.region
    assert (bottom, right) == (SIDE, SIDE) or (top, left) >= (SIDE - 2, SIDE - 3)
    assert [t.target for t in audit.result.triggers if t.flagged] == [3]
    assert (planted / first.picture).is_file()


def test_the_same_model_without_a_backdoor_is_not_flagged() -> None:
    audit, _ = audit_backdoor(Templates().eval(), rows(120), pairs=False)
    assert audit.verdict.found is False
    assert "far smaller" in audit.verdict.reason


def test_a_model_whose_gradients_say_nothing_is_not_cleared() -> None:
    class Steps(Templates):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x * 8).round() / 8)

    audit, _ = audit_backdoor(Steps().eval(), rows(60), pairs=False)
    assert audit.verdict.found is None


def test_the_index_of_classes_is_by_the_median_of_logarithms() -> None:
    sizes = np.exp(np.array([1.0, 3.0, 3.2, 3.4, 3.6, 3.8]))
    deviation = 1.4826 * np.median(np.abs(np.log(sizes) - 3.3))
    assert class_indices(sizes)[0] == pytest.approx(2.3 / deviation)
    assert abs(class_indices(np.full(6, 20.0))).max() == 0  # equal sizes make no index


def test_a_pair_is_held_against_its_source_its_target_and_how_alike_the_classes_are() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.uniform(0, 2, (K, 1)), rng.uniform(0, 2, (1, K))
    log = 2 + source + target + rng.normal(0, 0.05, (K, K))
    np.fill_diagonal(log, np.nan)
    distances = np.exp(source + target) * (1 + 0 * log)
    log[1, 2] -= 1.5
    index, expected = pair_indices(np.exp(log), distances)
    assert np.unravel_index(np.nanargmax(index), index.shape) == (1, 2)
    assert index[1, 2] > LEAST_INDEX
    assert np.log(expected[1, 2]) == pytest.approx(2 + source[1, 0] + target[0, 2], abs=0.2)
    distances[1, 2] *= np.exp(-1.5)  # the classes are alike: so small a trigger is expected
    assert pair_indices(np.exp(log), distances)[0][1, 2] < LEAST_INDEX
    distances[1, 2] *= np.exp(1.5)
    log[2, 1] -= 1.5  # the trigger the other way is as small
    assert pair_indices(np.exp(log), distances)[0][1, 2] < LEAST_INDEX


def test_verify_computes_the_audit_again(planted: Path, tmp_path: Path) -> None:
    data = rows()
    assert verify(planted) == []
    assert verify(planted, Templates(100.0).eval(), data) == []
    assert any("not the model" in said for said in verify(planted, Templates().eval(), data))
    other = tmp_path / "other"
    other.mkdir()
    for path in planted.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    text = (other / "run.json").read_text().replace('"found": true', '"found": false')
    (other / "run.json").write_text(text)
    assert len(verify(other)) == 2  # the digest, and the verdict
    evidence = store.read_tensors(other / "triggers.safetensors")
    evidence["class_sizes"] = evidence["class_sizes"] * 0 + 20
    store.write_tensors(other / "triggers.safetensors", evidence)
    assert any("checksum" in said for said in verify(other))
    assert not verdict(judged(evidence)).found


def test_its_page_shows_the_trigger(planted: Path) -> None:
    page = report(planted).read_text()
    assert "From all other classes to class 3: flagged" in page
    assert page.count("data:image/png;base64,") == len(list(planted.glob("*.png")))


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"suspect": 6}, InputError, "classes 0 to 5"),
        ({"rows": 6}, InputError, "at least 10"),
    ],
)
def test_bad_input(options: dict[str, Any], kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        audit_backdoor(Templates().eval(), rows(60), **options)


def test_models_that_the_search_cannot_follow() -> None:
    two = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 2)).eval()
    x, y = rows(40)
    with pytest.raises(SpecError, match="at least 5"):
        audit_backdoor(two, (x, y % 2))

    class Labels:
        def predict(self, x: np.ndarray) -> np.ndarray:
            return (x.reshape(len(x), -1).sum(1) > 3).astype(np.int64)

    with pytest.raises((AccessError, InputError)):
        audit_backdoor(Labels(), (x, y % 2))


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("demo", "digits", "--no-pairs", "--samples", "40")
    assert "Is there a backdoor?" in holdfast("audit", "backdoor", *asked, "--out", "run").stdout
    assert json.loads((tmp_path / "run" / "run.json").read_text())["audit"] == "backdoor"
    alone = holdfast("verify", "run").stdout
    assert "is confirmed" in alone
    assert "The model was not asked" in alone
    assert "its triggers are tried again" in alone
    asked_again = holdfast("verify", "run", "demo", "digits").stdout
    assert "The model answers its triggers as it says" in asked_again
    assert "Is there a backdoor?" in holdfast("report", "run").stdout
    assert "backdoor" in holdfast("list", "audits").stdout
    assert "classes 0 to 9" in refused("audit", "backdoor", *asked, "--suspect", "12")
    assert "holds an audit" in refused("compare", "run", "run")
    assert "no gates" in refused("report", "run", "--gate", "verdict==trusted")
    assert "finished run" in refused("audit", "backdoor", *asked, "--out", "run")


def test_the_viewer_lists_and_shows_it(planted: Path, tmp_path: Path) -> None:
    site = Site(Index(planted.parent))
    assert "audit: backdoor" in runs.page(site, {})
    assert "From all other classes to class 3: flagged" in run.page(site, "run", {})
    bundle.write(site, tmp_path / "pages")
    assert "audit: backdoor" in (tmp_path / "pages" / "index.html").read_text()
