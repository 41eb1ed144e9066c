"""The names of `holdfast`: what they take, what they give back, and what a wrong argument says."""

from __future__ import annotations

import builtins
import json
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeClassifier
from torch import nn

import holdfast as hf
from holdfast.evaluation.protocols import PROTOCOLS

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


def test_an_attack_is_called_what_the_user_called_it() -> None:
    for asked in ("fgsm", "FGSM()".lower(), hf.attacks.FGSM()):
        assert hf.attack(net(), X, Y, "linf(0.1)", asked).attack == "fgsm()"
    assert repr(hf.attacks.BIM(steps=10)) == "bim(steps=10)"
    assert repr(hf.attacks.parse("fgsm(loss='margin')")) == "fgsm(loss='margin')"
    assert repr(hf.attacks.PGD(steps=1, step_size=1, start_at="zero")).startswith("pgd(steps=1")
    assert hf.attacks.parse("bim(steps=10)") == hf.attacks.BIM(steps=10)
    assert hf.attack(net(), X, Y, "linf(0.1)", "pgd(restarts=2)").attack == "pgd(restarts=2)"


def test_a_result_has_the_accuracies_of_a_run_of_the_same_attack() -> None:
    y = np.where(np.arange(40) < 5, (Y + 1) % 3, Y)  # 5 rows are wrong before
    for threat in ("linf(0.1)", "linf(0.1, target=0)"):
        made = hf.attack(net(), torch.from_numpy(X), torch.from_numpy(y), threat, "fgsm")
        run = hf.evaluate(net(), (X, y), threat, attacks=["fgsm"])
        assert made.clean_accuracy == run.clean_accuracy
        assert made.robust_accuracy == run.robust_accuracy
        assert 0 < made.robust_accuracy < made.clean_accuracy < 1


def test_a_model_goes_by_its_own_name() -> None:
    tree = DecisionTreeClassifier(max_depth=2).fit(X, Y)
    assert repr(hf.wrap(tree)) == "Target(DecisionTreeClassifier of scikit-learn)"
    assert repr(hf.wrap(net())) == "Target(Linear)"
    assert "(Target(Linear))" in repr(hf.wrap(net(), draws=3))
    assert hf.evaluate(
        tree, (X, Y), "linf(0.1)", attacks=["square(steps=2)"]
    ).manifest.model.spec == ("DecisionTreeClassifier")
    regression = hf.wrap(nn.Linear(6, 1), task="regression(tolerance=0.1)")
    run = hf.evaluate(regression, (X, X[:, 0]), "linf(0.1)", attacks=["pgd(steps=2)"])
    assert run.manifest.model.spec == "Linear"
    proved = hf.certify(net(), (X, Y), "linf(0.01)")
    assert f", proved {proved.certified_accuracy:.4f} under" in repr(proved)


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
    assert (-share, abs(share), share**2, 2**share) == (-0.512, 0.512, 0.512**2, 2**0.512)
    assert (round(share), round(share, 1), round(share, ndigits=2)) == (1, 0.5, 0.51)
    assert isinstance(round(share), int)
    with pytest.raises(ValueError, match="three numbers, or none where n is 0"):
        hf.Interval(value=0.5, low=None, high=0.6, n=3)
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
    page.write_text("<h1 title='a'>found</h1>")
    below = run._repr_html_().removeprefix(shown)
    assert below.startswith("<iframe sandbox ")
    assert "srcdoc='&lt;h1 title=&#x27;a&#x27;&gt;found&lt;/h1&gt;'" in below


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
    assert repr(hf.verify(whole, net(), (X, Y))) == (
        f"{whole.folder} is confirmed: robust accuracy {whole.robust_accuracy:.3f} on 40 inputs; "
        f"{whole.metrics.counts['broken']} stored examples were checked again on the model."
    )
    wrong = hf.verify(whole, net(), (X + 0.001, Y))
    assert wrong
    assert str(wrong).splitlines() == [
        f"{whole.folder} is not confirmed: {len(wrong)} contradictions.",
        *(f"- {sentence}" for sentence in wrong),
    ]
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


def same(one: hf.AttackResult, other: hf.AttackResult) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name == "size")
        for name in ("x_adv", "success", "size", "queries", "forwards", "backwards")
    )


@pytest.mark.parametrize("attack", ["pgd", hf.attacks.FMN(steps=20), "quick"])
def test_several_epsilons_are_as_many_attacks(attack: Any) -> None:
    epsilons = np.array([0.2, 0.05])
    found = hf.attack(net(), X, Y, "linf(9)", attack, epsilons=epsilons, seed=3)
    for eps, one in zip(epsilons, found, strict=True):
        assert same(one, hf.attack(net(), X, Y, f"linf({eps})", attack, seed=3))
        assert one.threat == f"linf({eps})"
    again = hf.attacks.PGD()(net(), X, Y, "linf(9)", epsilons=[0.2, 0.05], seed=3)
    assert attack != "pgd" or all(map(same, found, again))
    with pytest.raises(hf.SpecError, match=r"the threat is the movement rotation\(30, 3\)"):
        hf.attack(net(), X, Y, "rotation(30, 3)", epsilons=[1])


@pytest.mark.parametrize("protocol", ["quick", pytest.param("autoattack", marks=pytest.mark.slow)])
def test_an_attack_by_the_name_of_a_protocol_runs_its_trials_in_turn(protocol: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 12)).eval()
    x = torch.rand(60, 6)
    y = model(x).argmax(1)
    made = hf.attack(model, x, y, "linf(0.12)", protocol)
    trials = PROTOCOLS[protocol][2]
    trials = [hf.attacks.parse_trial(text) for text in trials.get("linf", trials["other"])]
    run = hf.evaluate(model, (x, y), "linf(0.12)", attacks=trials)
    statuses = np.array(run.samples.column("status").to_pylist())
    assert np.array_equal(made.success, statuses == "broken")
    assert 0 < made.success.sum() < len(x)
    first = hf.attack(model, x, y, "linf(0.12)", trials[0])
    assert made.attack == protocol
    assert torch.equal(made.x_adv[first.success], first.x_adv[first.success])
    assert int(made.success.sum()) >= int(first.success.sum())
    more = made.forwards - first.forwards
    assert int(more.min()) >= 0
    assert int(more.max()) > 0


def test_autoattack_is_called_as_an_attack_is() -> None:
    attack = hf.attacks.AutoAttack()
    asked = net(), X[:4], Y[:4], "linf(0.1)"
    found = attack(*asked, seed=1)
    assert same(found, hf.attack(*asked, "autoattack", seed=1))
    assert same(found, hf.attack(*asked, attack, seed=1))
    assert repr(hf.attacks.AutoAttack("rand")) == "autoattack(version='rand')"
    with pytest.raises(hf.SpecError, match=r"unknown version 'rnd'.*did you mean rand"):
        hf.attacks.AutoAttack("rnd")


def test_names_that_set_options_say_what_they_are() -> None:
    assert hf.attacks.FGSM() == hf.attacks.PGD(steps=1, step_size=1.0, start_at="zero")
    assert hf.attacks.FGSM.__doc__ == "FGSM, which is pgd(steps=1, step_size=1, start_at='zero')."
    assert hf.attacks.FGSM(loss="margin").loss == "margin"


SHOWN = """
import holdfast as hf
reveal_type(hf.attacks.PGD.__init__)
reveal_type(hf.attacks.FGSM)
reveal_type(hf.wrap)
"""


@pytest.mark.slow
def test_an_editor_sees_the_options_of_an_attack(tmp_path: Path) -> None:
    """Must show: what completion shows is the signature that the type checker reads."""
    (tmp_path / "shown.py").write_text(SHOWN)
    root = Path(hf.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable,
         str(tmp_path / "shown.py")],
        capture_output=True, text=True, check=False, cwd=root,
    )  # fmt: skip
    said = [line["message"] for line in json.loads(done.stdout)["generalDiagnostics"]]
    options = "steps: int, step_size: float, loss: str, start_at: str, momentum: float"
    assert len(said) == 3, said
    assert all(f"{option} = " in said[0] for option in options.split(", "))
    assert all(f"{option} = " in said[1] for option in options.split(", "))
    assert "layout: str | None = None" in said[2]
    assert "Unknown" not in "".join(said)


def test_the_examples_of_a_run_that_nothing_else_holds() -> None:
    held = measure()
    expected = [len(ids) for ids, _ in held.examples()]
    assert expected
    assert [len(ids) for ids, _ in measure().examples()] == expected
