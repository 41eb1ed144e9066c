"""The commands, end to end: exit codes, what is printed where, and runs made, checked and
merged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from helpers.commands import holdfast, names, refused, same_run
from helpers.model_files import MEANS
from safetensors.numpy import load_file, save_file

from holdfast.data import open_data
from holdfast.runs import store
from holdfast.runs.run import Run

PGD = ("--attack", "pgd(steps=3)")
LINF = ("--threat", "linf(0.1)")
ASKED = ("models.py:means", "digits", *LINF, *PGD, "--samples", "0:40")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models and one finished run."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "models.py").write_text(MEANS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert holdfast("evaluate", *ASKED, "--out", "run").exit_code == 0
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, for each test its own, as the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_demo_leaves_a_run_folder() -> None:
    done = holdfast("evaluate", "demo", "digits", *LINF, *PGD, "--samples", 40, "--out", "runs/a")
    assert done.exit_code == 0
    names(done.stdout, "robust accuracy", "clean accuracy", "40")
    run = Run("runs/a")
    assert {"adversarial", "report.html", "run.json", "samples.parquet"} <= set(
        os.listdir(run.folder)
    )
    assert run.samples.num_rows == run.robust_accuracy.n == 40
    assert 0 < run.metrics.counts["broken"] == sum(len(ids) for ids, _ in run.examples())
    assert run.manifest.model.spec == "demo"


def test_a_folder_is_named_where_none_is_given() -> None:
    for _ in range(2):
        assert holdfast("evaluate", *ASKED).exit_code == 0
    assert sorted(os.listdir("runs")) == ["models-linf-0.1--custom", "models-linf-0.1--custom-2"]


def test_json_is_run_json_alone() -> None:
    done = holdfast("evaluate", *ASKED, "--out", "run", "--resume", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout) == json.loads(Path("run/run.json").read_text(encoding="utf-8"))
    names(done.stderr, "report.html")


@pytest.mark.parametrize(
    ("gates", "code"),
    [
        (["robust_accuracy<=1", "clean_accuracy.low>0.5"], 0),
        (["clean_accuracy>=0", "robust_accuracy>=0.999"], 1),
        (["attack_success_rate<1e-3"], 1),
        (["f1.attacked>=2"], 1),
    ],
)
def test_gates(gates: list[str], code: int) -> None:
    done = holdfast(
        "evaluate",
        *ASKED,
        "--out",
        "run",
        "--resume",
        *(part for g in gates for part in ("--gate", g)),
    )
    assert done.exit_code == code
    assert ("gate not held" in done.stderr) == bool(code)
    assert code == 0 or gates[-1].split("<")[0].split(">")[0] in done.stderr


def test_strict_refuses_an_unreliable_verdict() -> None:
    spotty = ("models.py:spotty", *ASKED[1:], "--out", "nan")
    assert holdfast("evaluate", *spotty).exit_code == 0
    assert Run("nan").verdict.status == "unreliable"
    done = holdfast("evaluate", *spotty, "--resume", "--strict")
    assert done.exit_code == 3
    names(done.stderr, "unreliable", "--strict")
    assert Run("nan").robust_accuracy.value == 0


def test_attack_writes_what_evaluate_reads() -> None:
    x, y = open_data("digits").rows(0, 30)
    np.savez("set.npz", x=x, y=y)
    done = holdfast("attack", "models.py:means", "set.npz", *LINF, *PGD, "--out", "adversarial.npz")
    assert done.exit_code == 0
    with np.load("adversarial.npz") as made:
        assert np.array_equal(made["y"], y)
        assert np.abs(made["x"] - x).max() <= 0.1 + 1e-6
        broken, wrong = int(made["broken"].sum()), int(made["wrong"].sum())
    assert broken > 0
    names(done.stdout, f"broke {broken} of {30 - wrong} rows", "adversarial.npz")
    again = holdfast(
        "evaluate", "models.py:means", "adversarial.npz", *LINF, *PGD, "--out", "again"
    )
    assert again.exit_code == 0
    assert Run("again").metrics.counts["wrong"] == broken + wrong


def test_train_writes_what_evaluate_reads() -> None:
    net = "holdfast.targets.demo:demo_net"
    done = holdfast(
        "train", net, "digits", "--epochs", 2, "--rate", 0.01, "--out", "net.safetensors"
    )
    assert done.exit_code == 0
    assert done.stdout == "weights: net.safetensors\n"
    names(done.stderr, "epoch 2/2", "training accuracy")
    done = holdfast(
        "evaluate", "net.safetensors", "digits", "--arch", net, *LINF, *PGD, "--out", "trained"
    )
    assert done.exit_code == 0
    assert (Run("trained").clean_accuracy.value or 0) > 0.3
    assert Run("trained").manifest.model.arch == net


def test_verify_confirms_an_unchanged_run() -> None:
    done = holdfast("verify", "run", "models.py:means", "digits")
    assert done.exit_code == 0
    names(done.stdout, "run is confirmed", "40 inputs")


def shard() -> Path:
    return next(Path("run/adversarial").iterdir())


def put_back_an_original() -> None:
    tensors = load_file(shard())
    tensors["x"][0] = open_data("digits").rows(int(tensors["id"][0]), int(tensors["id"][0]) + 1)[0][
        0
    ]
    save_file(tensors, shard())


def push_an_example_out() -> None:
    tensors = load_file(shard())
    tensors["x"][0] = 1 - tensors["x"][0]
    save_file(tensors, shard())


def change_a_status() -> None:
    table = store.read_samples(Path("run"))
    status = table.column("status").to_pylist()
    status[status.index("broken")] = "robust"
    at = table.schema.get_field_index("status")
    store.write_samples(Path("run"), table.set_column(at, "status", pa.array(status)))


def change_a_figure() -> None:
    manifest = store.read_manifest(Path("run"))
    manifest.metrics.robust_accuracy.value = 0.875
    store.write_manifest(Path("run"), manifest)


@pytest.mark.parametrize(
    ("tamper", "seen", "sealed"),
    [
        (put_back_an_original, "adversarial/000000000.safetensors", "do not fool the model"),
        (push_an_example_out, "adversarial/000000000.safetensors", "are outside the threat"),
        (change_a_status, "samples.parquet", "metrics.robust_accuracy.value"),
        (
            change_a_figure,
            "metrics.robust_accuracy.value: run.json says 0.875",
            "run.json says 0.875",
        ),
        (
            lambda: shard().unlink(),
            "adversarial/000000000.safetensors: missing",
            "no stored example for broken rows",
        ),
    ],
    ids=["original", "outside", "status", "figure", "shard"],
)
def test_verify_names_what_was_tampered_with(
    tamper: Callable[[], None], seen: str, sealed: str
) -> None:
    tamper()
    done = holdfast("verify", "run", "models.py:means", "digits")
    assert done.exit_code == 1
    names(done.stdout, seen)
    names(done.stderr, "run is not confirmed")
    manifest = store.read_manifest(Path("run"))  # and once more, with the checksums made to fit
    manifest.files = store.checksums(Path("run"))
    store.write_manifest(Path("run"), manifest)
    done = holdfast("verify", "run", "models.py:means", "digits")
    assert done.exit_code == 1
    names(done.stdout, sealed)
    assert "checksum" not in done.stdout


def test_verify_names_another_model_and_other_data() -> None:
    done = holdfast("verify", "run", "models.py:other", "digits")
    assert done.exit_code == 1
    names(done.stdout, "model: this is not the model that was measured")
    x, y = open_data("digits").rows(0, 360)
    np.savez("set.npz", x=x * 0.5, y=y)
    done = holdfast("verify", "run", "models.py:means", "set.npz")
    assert done.exit_code == 1
    names(done.stdout, "data: these are not the data that were measured")


def test_shards_merge_into_the_run_of_one_process() -> None:
    for i in (2, 0):
        assert holdfast("evaluate", *ASKED, "--shard", f"{i}/3", "--out", "all").exit_code == 0
    assert sorted(os.listdir("all")) == ["shard-0-of-3", "shard-2-of-3"]
    names(refused("merge", "all"), "all: shard 1/3 is missing", "--shard", "--resume")
    Path("all/shard-1-of-3/journal").mkdir(parents=True)  # a process that died at once
    names(refused("merge", "all"), "all: shard 1/3 is not finished")
    # a job that is put back into the queue gives the same command
    one = ("evaluate", *ASKED, "--shard", "1/3", "--out", "all", "--resume")
    assert holdfast(*one).exit_code == 0
    assert holdfast("merge", "all").exit_code == 0
    same_run("all/merged", "run")
    names(refused("merge", "all"), "all/merged holds a finished run")
    assert holdfast("merge", "all", "--out", "elsewhere").exit_code == 0
    same_run("elsewhere", "run")


def test_shards_are_refused_in_a_sentence() -> None:
    def refusal(shard: str, *more: str) -> str:
        return refused("evaluate", *ASKED, "--shard", shard, *more)

    names(refusal("1/3"), "--shard needs the folder that holds all shards", "--out")
    for text in ("3/3", "0/0", "7/2"):
        names(refusal(text, "--out", "all"), f"there is no shard {text}")
    for text in ("1", "a/b", "-1/3", "1/3/4", "\u0661/\u0663"):
        names(refusal(text, "--out", "all"), "expected i/n with i from 0", "0/4")
    names(refusal("0/41", "--out", "all"), "40 rows were asked for in 41 shards")
    assert not Path("all").exists()
    for shard, samples in (("0/2", "0:20"), ("1/2", "0:41")):
        asked = (*ASKED[:-1], samples)
        assert holdfast("evaluate", *asked, "--shard", shard, "--out", "gap").exit_code == 0
    names(refused("merge", "gap"), "different --samples")
    assert holdfast("evaluate", *ASKED, "--shard", "0/4", "--out", "gap").exit_code == 0
    names(refused("merge", "gap"), "gap holds shards of 2, 4")
    names(refused("merge", "run"), "--out is not given")


def test_verify_names_data_with_fewer_rows() -> None:
    x, y = open_data("digits").rows(0, 10)
    np.savez("set.npz", x=x, y=y)
    done = holdfast("verify", "run", "models.py:means", "set.npz")
    assert done.exit_code == 1
    names(done.stdout, "data: these are not the data that were measured")


def test_merge_is_the_run_of_one_process() -> None:
    halves = {"a": "20:40", "b": "0:20", "overlap": "15:25"}
    for name, samples in halves.items():
        assert holdfast("evaluate", *ASKED[:-1], samples, "--out", name).exit_code == 0
    done = holdfast("merge", "a", "b", "--out", "merged")
    assert done.exit_code == 0
    names(done.stdout, "robust accuracy")
    same_run("merged", "run")
    assert Path("merged/report.html").exists()
    assert holdfast("verify", "merged", "models.py:means", "digits").exit_code == 0
    names(refused("merge", "a", "overlap", "--out", "m"), "rows 20 to 25", "overlap")
    names(refused("merge", "a", "b", "--out", "run"), "run holds a finished run", "--out")
    wider = (
        "models.py:means",
        "digits",
        "--threat",
        "linf(0.2)",
        *PGD,
        "--samples",
        "20:40",
        "--out",
        "wide",
    )
    assert holdfast("evaluate", *wider).exit_code == 0
    names(refused("merge", "b", "wide", "--out", "m"), "cannot merge wide", "eps is 0.2", "0.1")
    assert not Path("m").exists()


def test_report_writes_the_page_again() -> None:
    page = Path("run/report.html")
    before = page.read_bytes()
    page.unlink()
    done = holdfast("report", "run")
    assert done.exit_code == 0
    names(done.stdout, "robust accuracy")
    assert page.read_bytes() == before


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("attacks", ("pgd(steps=40", "apgd(steps=100")),
        ("protocols", ("quick", "standard")),
        (
            "defences",
            (
                "jpeg(quality=75)",
                "quality: a whole number at least 1 and at most 95 (the lower, the coarser)",
                "randomresizepad(low, high)",
                "net: a module, a .pt2 program, or path/file.py:factory",
                "limit: a number above 0",
            ),
        ),
        ("data", ("digits", ".npz")),
        ("poisons", ("badnets(share=0.1, target=0", "size: a whole number at least 1")),
    ],
)
def test_list(what: str, words: tuple[str, ...]) -> None:
    done = holdfast("list", what)
    assert done.exit_code == 0
    names(done.stdout, *words)


def test_startup_imports_no_framework() -> None:
    script = (
        "import sys, holdfast.cli.main as m\ntry: m.main()\nexcept SystemExit as e: assert not "
        "e.code\n"
    )
    script += (
        "print(sorted({'torch', 'scipy', 'sklearn', 'matplotlib', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
    names(done.stdout, "evaluate", "verify", "merge")


def test_the_installed_command_says_one_sentence() -> None:
    command = Path(sys.executable).with_name("holdfast")
    done = subprocess.run([command, "list", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "error: cannot list 'x'; known: attacks, audits, data, defences, objectives, protocols, "
        "recipes, regularizers.\n"
    )


def test_a_misspelt_option_is_named_with_the_nearest() -> None:
    done = holdfast("evaluate", *ASKED, "--protocl", "quick")
    assert done.exit_code == 2
    names(done.stderr, "--protocl", "--protocol")


def test_a_run_with_borrowed_gradients_holds_for_the_model_alone() -> None:
    asked = ("models.py:means", "digits", *LINF, "--samples", "0:40", "--out", "substitute")
    done = holdfast(
        "evaluate", *asked, "--surrogate", "models.py:other", "--attack", "mifgsm(steps=4)"
    )
    assert done.exit_code == 0
    assert store.read_manifest(Path("substitute")).metrics.counts["broken"] > 0
    assert holdfast("verify", "substitute", "models.py:means", "digits").exit_code == 0
    assert holdfast("verify", "substitute", "models.py:other", "digits").exit_code == 1
