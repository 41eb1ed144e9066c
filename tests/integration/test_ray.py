"""Rows shared by a cluster of Ray: the run of one process, whatever befalls the cluster."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.commands import holdfast, names, refused, same_run
from helpers.model_files import MEANS
from helpers.training import SMALL

ASKED = ("models.py:means", "digits", "--threat", "linf(0.1)", "--attack", "pgd(steps=3)")
ASKED = (*ASKED, "--samples", "40")
# Each worker of a cluster that finds a file `death*` takes it, and dies in the midst of its shard;
# all are slow while there is a file `slow`. The 26th call is in the midst of the first shard.
DYING = """
import os, time
from pathlib import Path

_means, _calls, _here = means, [], Path(__file__).parent

def means():
    net = _means()
    def count(*_):
        _calls.append(1)
        while len(_calls) >= 26 and (_here / "slow").exists():
            time.sleep(0.1)
        if len(_calls) == 26 and os.environ["TESTED_BY"] != str(os.getpid()):
            for death in _here.glob("death*"):
                try:
                    death.unlink()
                except FileNotFoundError:
                    continue
                os.kill(os.getpid(), 9)
    net.register_forward_hook(count)
    return net
"""
# In the second of two processes that train it, with a state stored, a file `death` ends the actor.
TRAINED = """
import os, time
from pathlib import Path
import torch
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        death = Path(__file__).with_name("death")
        stored = any(Path(__file__).parent.glob("*/training.safetensors"))
        if self.training and os.environ.get("RANK") == "1" and stored and death.exists():
            death.unlink()
            os.kill(os.getppid(), 9)
            time.sleep(600)
        return super().forward(x)

def net():
    torch.manual_seed(0)
    return Net(nn.Flatten(), nn.Linear(64, 10))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(tmp_path, "models.py").write_text(MEANS + DYING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TESTED_BY", str(os.getpid()))


def until(happened: Callable[[], object], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.1)


@contextmanager
def started(*args: object) -> Iterator[subprocess.Popen[bytes]]:
    """A command at work in a process of its own, until two shards are begun."""
    command = [sys.executable, "-m", "holdfast", *map(str, args)]
    Path("slow").touch()
    with subprocess.Popen(command) as process:
        try:
            begun = "out.shards/shard-*/journal/*.safetensors"
            until(lambda: len({path.parent for path in Path().glob(begun)}) == 2)
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_four_workers_of_which_two_are_killed_make_the_run_of_one_process() -> None:
    assert holdfast("evaluate", *ASKED, "--out", "one").exit_code == 0
    for name in ("death1", "death2"):
        Path(name).touch()
    done = holdfast("evaluate", *ASKED, "--out", "out", "--ray", "local", "--workers", 4, "--json")
    assert done.exit_code == 0, done.output
    assert done.stdout == Path("out/run.json").read_text() + "\n"
    assert not list(Path().glob("death*"))
    same_run("one", "out")
    assert not Path("out.shards").exists()


@pytest.mark.slow
def test_a_machine_that_is_lost_in_mid_run_changes_nothing() -> None:
    from ray.cluster_utils import Cluster

    assert holdfast("evaluate", *ASKED, "--out", "one").exit_code == 0
    small = {"object_store_memory": 80_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **small})
    try:
        lost = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        shared = ("--ray", cluster.address, "--workers", 2, "--out", "out")
        with started("evaluate", *ASKED, *shared) as process:
            cluster.remove_node(lost, allow_graceful=False)
            Path("slow").unlink()
            assert process.wait(600) == 0
        same_run("one", "out")
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on() -> None:
    assert holdfast("evaluate", *ASKED, "--out", "one").exit_code == 0
    with started("evaluate", *ASKED, "--out", "out", "--ray", "local", "--workers", 2) as process:
        process.kill()
        process.wait()
    for left in Path(tempfile.gettempdir()).glob(f"ray-{process.pid}-*"):
        shutil.rmtree(left, ignore_errors=True)
    Path("slow").unlink()
    again = ("--out", "out", "--ray", "local", "--resume")
    done = holdfast("evaluate", *ASKED, *again)
    assert done.exit_code == 0, done.output
    same_run("one", "out")


@pytest.mark.slow
def test_a_training_on_a_cluster_is_that_of_two_processes_here_also_after_a_death() -> None:
    Path("trained.py").write_text(TRAINED)
    asked = ("harden", "trained.py:net", "digits", "--threat", "linf(0.1)", *SMALL)
    asked = (*asked, "--train-samples", 200, "--devices", 2)
    assert holdfast(*asked, "--out", "one").exit_code == 0
    Path("death").touch()
    ray = (*asked, "--ray", "local", "--out", "two")
    lost = holdfast(*ray)
    assert lost.exit_code == 2, lost.output
    names(lost.stderr, "epoch 1:", "process 2 of 2) died", "--resume")
    assert not Path("death").exists()
    done = holdfast(*ray, "--resume")
    assert done.exit_code == 0, done.output
    one, two = (next(Path(folder).glob("*.safetensors")).read_bytes() for folder in ("one", "two"))
    assert one == two


@pytest.mark.slow
def test_what_a_cluster_lacks_is_refused() -> None:
    ray = ("evaluate", *ASKED, "--out", "out", "--ray", "local")
    names(refused(*ray, "--gpus-per-worker", "0.5"), "0.5", "has 0 GPUs")
    names(refused("evaluate", "none.py:net", *ray[2:]), "none.py")
    assert not list(Path().glob("out*"))


def test_what_ray_cannot_be_asked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = ("evaluate", *ASKED, "--out", "out", "--ray")
    names(refused(*ray, "auto", "--shard", "0/2"), "--shard 0/2", "--ray auto", "one of both")
    names(refused(*ray[:-1], "--gpus-per-worker", 1), "--gpus-per-worker", "--ray too")
    names(refused(*ray, "local", "--gpus-per-worker", 1.5), "1.5", "whole number")
    names(refused(*ray, "somewhere"), "'somewhere'", "host:port")
    names(refused(*ray, "127.0.0.1:1"), "no cluster answers at 127.0.0.1:1", "ray start")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    names(refused(*ray, "auto"), "--ray auto", "127.0.0.1:1")
    monkeypatch.delitem(sys.modules, "holdfast.cli.ray")
    monkeypatch.setitem(sys.modules, "ray", None)
    names(refused(*ray, "auto"), "holdfast[ray]")
    hard = ("harden", "demo", "digits", "--threat", "linf(0.1)", "--ray", "local", "--out", "out")
    names(refused(*hard, "--devices", 2), "holdfast[ray]")
    names(refused(*hard), "--ray local", "--devices too")
    names(refused(*hard[:-1], "memory://out", "--devices", 2), "memory://out", "all machines see")
    assert not list(Path().glob("out*"))


def test_machines_that_are_not_alike_are_told_apart() -> None:
    from holdfast.cli.ray import differing

    ours = {"torch": "2.9.0", "the model": "0f3a"}
    assert differing(ours, dict(ours), "node7") is None
    names(str(differing(ours, {"torch": "2.8.0"}, "node7")), "on node7 torch is 2.8.0, and here")
    other = str(differing(ours, ours | {"the model": "1234"}, "node7"))
    names(other, "node7", "the model", "1234", "0f3a", "same files")


@pytest.mark.slow
def test_what_answers_but_is_no_cluster_is_no_hang() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        names(refused("evaluate", *ASKED, "--ray", place), place, "no answer of Ray's")
        assert time.monotonic() - began < 60
    assert os.listdir() == ["models.py"]
