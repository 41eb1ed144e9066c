"""Trainings in several processes: the steps of one, and none that outlives another; precision and
event files."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.commands import holdfast as command
from helpers.commands import names, refused
from helpers.model_files import LAYERS
from helpers.training import SMALL, Normed, digits, training
from torch import Tensor, nn

import holdfast
from holdfast import memory
from holdfast.errors import InputError
from holdfast.hardening import objectives
from holdfast.targets import wrap
from holdfast.targets.batch import Batcher
from holdfast.targets.demo import demo_net
from holdfast.targets.loading import made
from holdfast.training import train, workers
from holdfast.training.distributed import ProcessGroup
from holdfast.training.loop import Training
from holdfast.training.state import STATE, Epoch, State, read_log

LINF = ("--threat", "linf(0.1)")
LAYERED = """
from neighbour import Head
from torch import nn

def build():
    from lazy_neighbour import Flat
    return nn.Sequential(Flat(), Head(64, 10))
"""


class Dying(nn.Sequential):
    """The second of two processes ends in its first step."""

    def forward(self, x: Tensor) -> Tensor:
        if os.environ.get("RANK") == "1" and self.training:
            print("the second gives up.", file=sys.stderr, flush=True)
            os._exit(3)
        return super().forward(x)


def dying() -> nn.Module:
    return Dying(nn.Flatten(), nn.Linear(64, 10))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("n", "size"), [(64, 2), (65, 2), (7, 3), (4, 2)])
def test_shares_are_all_rows_once(n: int, size: int) -> None:
    rows = [i for rank in range(size) for i in range(n)[ProcessGroup(rank, size).share(n)]]
    assert rows == list(range(n))
    assert min(len(range(n)[ProcessGroup(rank, size).share(n)]) for rank in range(size)) >= 2


def test_few_rows_are_everybodys() -> None:
    assert [ProcessGroup(rank, 2).share(3) for rank in (0, 1)] == [slice(0, 3)] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        "pgd(steps=2)",
        "trades(steps=2)",
        "ensemble",
        "eat(also='l2(1)', steps=2)",
        "free(batch_replays=2)",
    ],
)
def test_two_processes_take_the_steps_of_one(objective: str) -> None:
    """99 rows in steps of 32: the last has three, which both take. Weights are perturbed, noise is
    drawn."""
    how = 'fast(epochs=2, batch_size=32, ramp=0, rate=0.05, awp=0.01, judge="pgd(steps=2)", '
    how += f'objective="{objective}")'
    found, logs = [], []
    for devices in (1, 2):
        log: list[Epoch] = []
        done, net = training(how, rows=99, on_epoch=log.append)
        found.append(workers.train(replace(done, devices=devices), net))
        logs.append(log)
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=2e-5), name
    assert [line.passes for line in logs[0]] == [line.passes for line in logs[1]]
    assert [line.loss for line in logs[0]] == pytest.approx(
        [line.loss for line in logs[1]], rel=1e-4
    )


@pytest.mark.slow
def test_a_batch_norm_keeps_the_same_statistics_everywhere() -> None:
    done, net = training('fast(epochs=1, batch_size=32, judge="")', rows=96, make=Normed)
    best = workers.train(replace(done, devices=2), net)
    assert all(value.isfinite().all() for value in best.values())


@pytest.mark.slow
def test_one_process_that_dies_ends_all_with_one_sentence() -> None:
    done, net = training('fast(epochs=2, batch_size=32, judge="")', rows=96, make=dying)
    with pytest.raises(InputError, match=r"process 2 of 2\) died: the second gives up\."):
        workers.train(replace(done, devices=2), net)


@pytest.mark.slow
def test_the_command_shares_and_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network comes from a file; what one process began, two end."""
    (here / "models.py").write_text(
        f"{LAYERS}\ndef seeded():\n    torch.manual_seed(0)\n    return normed()\n"
    )
    asked = ("harden", "models.py:seeded", "digits", *LINF, *SMALL, "--out", "hard")
    close = Training._close

    def interrupted(self: Training, s: State) -> None:
        close(self, s)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_close", interrupted)
        assert command(*asked).exit_code == 130
    assert [line.epoch for line in read_log(here / "hard")] == [1]
    done = command(*asked, "--devices", 2, "--resume")
    assert done.exit_code == 0, done.output
    assert not (here / "hard" / "work").exists()
    assert [line.epoch for line in read_log(here / "hard")] == [1, 2, 3]
    assert "epoch 1:" not in done.stderr


def test_what_cannot_go_to_other_processes_is_refused_at_once(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = ("harden", "demo", "digits", *LINF, "--out", "hard", "--devices", 1000)
    names(refused(*many), "devices is 1000", "cores")
    names(
        refused("harden", "demo", "digits", *LINF, "--out", "hard", "--precision", "half"),
        "half",
        "bfloat16",
    )
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    learns = (
        "harden",
        "demo",
        "digits",
        *LINF,
        "--objective",
        "advgan",
        "--out",
        "hard",
        "--devices",
        2,
    )
    names(refused(*learns), "advgan", "one process")
    monkeypatch.setattr(Dying, "__module__", "__main__")
    with pytest.raises(InputError, match=r"Dying is defined in the script that runs"):
        holdfast.harden(dying(), digits(0, 200), "linf(0.1)", out="hard", devices=2)
    net = demo_net()
    net.forward = lambda x: x  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match=r"several processes: .*lambda"):
        workers.check(2, wrap(net), objectives.parse("pgd"))  # pyright: ignore[reportArgumentType]
    target = wrap(demo_net())
    target.batcher = Batcher(device=torch.device("mps"))
    with pytest.raises(InputError, match=r"not on mps"):
        workers.check(2, target, objectives.parse("pgd"))  # pyright: ignore[reportArgumentType]
    assert not (here / "hard").exists()


def test_a_worker_finds_what_the_file_of_the_model_imports(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "code").mkdir()
    (here / "code" / "neighbour.py").write_text(
        "from torch import nn\nclass Head(nn.Linear): pass\n"
    )
    (here / "code" / "lazy_neighbour.py").write_text(
        "from torch import nn\nclass Flat(nn.Flatten): pass\n"
    )
    (here / "code" / "layered.py").write_text(LAYERED)

    def run(module: str, work: Path, done: Training) -> None:
        # as if in a process of its own
        for name in ("holdfast_user_layered", "neighbour", "lazy_neighbour"):
            monkeypatch.delitem(sys.modules, name)
        workers._fit(work, ProcessGroup(), done.on_epoch)

    monkeypatch.setattr(workers, "run", run)
    done, net = training(
        'fast(epochs=1, judge="")', rows=64, make=lambda: made("code/layered.py:build"), devices=2
    )
    assert set(workers.train(done, net)) == {"1.weight", "1.bias"}


def test_a_death_tells_of_resuming_only_where_something_is_stored(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    done, _ = training("fast", folder=here)
    with pytest.raises(InputError, match=r"died: it ended with code 1\. Perhaps\.$"):
        workers.run("none", here, done, hint="Perhaps.")
    (here / STATE).write_bytes(b"")
    with pytest.raises(InputError, match=r"died: it ended with code 1\. What .* --resume\.$"):
        workers.run("none", here, done, hint="Perhaps.")


class Failing:
    """A network whose training ends early, and may leave what it reached."""

    file, kind, trains, normed, pickled = "model.keras", "Failing", True, False, False

    def __init__(self, leaves: bool) -> None:
        self.leaves = leaves

    def train(self, training: Training) -> None:
        assert training.folder is not None
        if self.leaves:
            (training.folder / self.file).write_bytes(b"")
        raise InputError("it diverged.")


@pytest.mark.parametrize("leaves", [False, True])
def test_plain_training_keeps_its_folder_only_with_a_model(
    leaves: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(here))
    monkeypatch.setattr(train, "network_of", lambda *_: Failing(leaves))
    target = wrap(demo_net())
    with pytest.raises(InputError, match="diverged"):
        train.train(target, digits(0, 60))  # pyright: ignore[reportArgumentType]
    assert len(list(here.iterdir())) == leaves


def test_the_evaluation_undoes_what_training_asks_of_the_allocator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: dict[int, int] = {}
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=kept.__setitem__))
    memory.keep_freed()
    assert not kept  # in a process of the user's
    monkeypatch.setattr(memory, "_own", True)
    memory.keep_freed()
    assert kept == {-1: 2**30, -3: 2**30}
    memory.give_back_freed()
    assert kept == {-1: 2**17, -3: 2**20}


def test_dropout_goes_on_apart_in_each_process(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, net = training(
        'fast(epochs=1, batch_size=16, judge="")', rows=64, make=Normed, folder=here
    )
    done.fit(net)
    # dropout is all that is left to differ
    monkeypatch.setattr(ProcessGroup, "share", lambda self, n: slice(0, n))
    found = []
    for rank in (1, 1, 0):
        again, net = training(
            'fast(epochs=2, batch_size=16, judge="")',
            rows=64,
            make=Normed,
            folder=here,
            group=ProcessGroup(rank),
        )
        found.append(again.fit(net, resume=True).net.state_dict()["head.weight"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_bfloat16_trains_otherwise_and_is_judged_alike() -> None:
    found = []
    for precision in ("float32", "bfloat16"):
        done, net = training(
            'fast(epochs=1, batch_size=64, judge="")', rows=128, precision=precision
        )
        found.append(done.fit(net).best_average())
    assert all(
        value.dtype == torch.float32 and value.isfinite().all() for value in found[1].values()
    )
    assert any(not torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert all(torch.allclose(found[0][name], found[1][name], atol=0.05) for name in found[0])


def test_event_files_hold_what_the_log_holds(here: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log: list[Epoch] = []
    holdfast.harden(
        demo_net(), digits(0, 200), "linf(0.1)", recipe='fast(epochs=2, judge="pgd(steps=2)")',
        protocol="quick",
        out="hard", tensorboard=True, on_epoch=log.append,
    )  # fmt: skip
    read = EventAccumulator(str(here / "hard")).Reload()
    assert set(read.Tags()["scalars"]) == set(vars(log[0])) - {"epoch", "objective", "note"}
    assert [(e.step, e.value) for e in read.Scalars("robust")] == [
        (line.epoch, pytest.approx(line.robust)) for line in log
    ]
