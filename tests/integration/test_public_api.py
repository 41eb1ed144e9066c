"""The names of `holdfast`: what they take, what they give back, and what a wrong argument says."""

from __future__ import annotations

import builtins
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import holdfast as hf

RNG = np.random.default_rng(0)
X = RNG.random((40, 6), dtype=np.float32)
Y = X[:, :3].argmax(1)


def net() -> nn.Module:
    """Answers with the largest of the first three features."""
    layer = nn.Linear(6, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3, 6))
    return layer


def measure(**asked: Any) -> hf.Run:
    return hf.evaluate(net(), (X, Y), "linf(0.1)", **{"attacks": ["fgsm"], **asked})


def test_every_public_name_is_there_and_the_import_needs_no_torch() -> None:
    code = "import sys, holdfast; dir(holdfast); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert dir(hf) == sorted(hf.__all__) == sorted(set(hf.__all__))
    assert all(getattr(hf, name) is not None for name in hf.__all__)
    assert all(getattr(hf, name).__doc__ for name in hf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fgsm'"):
        _ = hf.fgsm  # pyright: ignore


def test_an_interval_behaves_as_its_value() -> None:
    share = hf.Interval(value=0.512, low=0.498, high=0.526, n=1000)
    assert float(share) == share == 0.512
    assert str(share) == f"{share}" == "0.512 [0.498, 0.526]"
    assert f"{share:.1%}" == "51.2%"
    assert 0.5 < share <= 0.512 <= share < 1
    assert share == share.model_copy()
    assert share != share.model_copy(update={"n": 10})
    assert share < np.float64(0.6)
    assert (share + 1, 1 - share, share / 2, 2 * share) == (1.512, 1 - 0.512, 0.256, 1.024)
    assert max([share, 0.3, 0.6]) == 0.6
    assert np.mean([share, share]) == pytest.approx(0.512)
    with pytest.raises(TypeError):
        _ = share < "0.6"  # pyright: ignore
    none = hf.Interval(value=None, low=None, high=None, n=0)
    assert str(none) == "undefined"
    assert not none >= 0


def test_a_run_as_a_table_a_page_and_in_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = measure(out=tmp_path / "<b>run")
    frame = run.to_pandas()
    assert len(frame) == len(X)
    assert (frame["status"] == "broken").mean() == pytest.approx(1 - float(run.robust_accuracy))
    shown = run._repr_html_()
    assert str(run.robust_accuracy) in shown
    assert "&lt;b&gt;run" in shown
    assert "<b>" not in shown
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    page = run.report()
    assert page == run.folder / "report.html"
    assert not opened
    page.write_text("kept")
    assert run.report(open=True).read_text() == "kept"
    assert opened == [page.as_uri()]


def test_without_pandas_the_table_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, real = measure(), builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name="pandas")
        return real(name, *rest)

    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "pandas", None)
        patched.setattr(builtins, "__import__", without)
        with pytest.raises(hf.InputError, match="to_pandas needs pandas, which is not installed"):
            run.to_pandas()


def test_runs_are_compared_merged_and_verified_as_objects_or_folders(tmp_path: Path) -> None:
    parts = [measure(samples=rows, out=tmp_path / str(rows[0])) for rows in ((0, 20), (20, len(X)))]
    whole = hf.merge([parts[0], parts[1].folder], tmp_path / "whole")
    assert isinstance(whole, hf.Run)
    assert hf.verify(whole, net(), (X, Y)) == []
    assert hf.verify(str(whole.folder), hf.wrap(net()), (X, Y)) == []
    assert hf.verify(whole, net(), (X + 0.001, Y))
    found = hf.compare(whole, str(measure(attacks=["pgd"], out=tmp_path / "pgd").folder))
    assert f"robust accuracy: {whole.robust_accuracy:.3f} and " in str(found)
    assert f"{len(X)} rows under linf(0.1)" in str(found)


def test_train_gives_back_a_network_of_its_own() -> None:
    given = net()
    trained = hf.train(given, (X, Y), epochs=5, rate=0.1, on_epoch=(epochs := []).append)
    assert isinstance(trained, nn.Linear)
    assert torch.equal(given.weight, net().weight)
    assert not torch.equal(trained.weight, given.weight)
    assert [line.epoch for line in epochs] == [1, 2, 3, 4, 5]
