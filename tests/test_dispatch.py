"""The scheduler of shards, with workers that are made up."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable

import numpy as np
import pytest

from holdfast.cli.dispatch import LEAST, MOST, TRIES, Dispatch, Event, shards_for
from holdfast.errors import InputError
from holdfast.evaluation.chunk import Progress
from holdfast.evaluation.shards import Shard


class Simulated:
    """Workers in simulated time: one opens its model in 5 seconds, judges 20 rows a second, and
    begins a shard that another lost from its start."""

    def __init__(self, rows: int, dies: Callable[[Shard], float | None]) -> None:
        self.rows, self.dies = rows, dies  # at which share of an attempt; None: it comes to its end
        self.now = self.useful = self.wasted = 0.0
        self.order = itertools.count()
        self.coming: list[tuple[float, int, Event]] = []
        self.judged = np.zeros(rows, int)  # how often
        self.at: dict[int, Shard] = {}

    def start(self, worker: int) -> None:
        self._later(5, Event(worker, "ready", self.rows))

    def give(self, worker: int, shard: Shard, *, again: bool) -> None:
        assert worker not in self.at
        self.at[worker] = shard
        start, stop = shard.rows(0, self.rows)
        seconds, share = (stop - start) / 20, self.dies(shard)
        self._later(seconds / 2, Event(worker, "progress", Progress(0.5, "pgd", 1)))
        if share is None:
            self.useful += seconds
            self._later(seconds, Event(worker, "done"))
        else:
            self.wasted += seconds * share
            self._later(seconds * share, Event(worker, "died", "code -9: it said nothing"))

    def events(self) -> Iterable[Event]:
        self.now, _, event = heapq.heappop(self.coming)
        if event.what == "progress" and event.worker not in self.at:
            return []
        shard = self.at.pop(event.worker, None) if event.what in ("done", "died") else None
        if shard is not None and event.what == "done":
            self.judged[slice(*shard.rows(0, self.rows))] += 1
        return [event]

    def _later(self, seconds: float, event: Event) -> None:
        heapq.heappush(self.coming, (self.now + seconds, next(self.order), event))


def dispatched(engine: Simulated, workers: int, todo: list[Shard]) -> dict[Shard, str]:
    shown: list[float] = []

    def cut(rows: int) -> list[Shard]:
        assert rows == engine.rows
        return todo

    failed = Dispatch(engine, workers, cut, lambda p: shown.append(p.share)).run()
    assert all(0 <= share <= 1 for share in shown)
    return failed


@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_workers_of_which_one_in_twenty_dies_judge_every_row_once(seed: int) -> None:
    """Two million rows in four thousand shards; what failed is asked for again, as
    `--resume` does."""
    draw, rows, workers = random.Random(seed), 2_048_000, 1_000
    engine = Simulated(rows, lambda _: draw.random() if draw.random() < 0.05 else None)
    n = shards_for(rows, workers)
    assert n == MOST * workers
    todo = [Shard(i, n) for i in range(n)]
    while todo:
        failed = dispatched(engine, workers, todo)
        done = {shard for shard in todo if engine.judged[shard.rows(0, rows)[0]]}
        assert done == {*todo} - {*failed}
        engine.coming, engine.at, todo = [], {}, list(failed)
    assert (engine.judged == 1).all()
    assert 0.01 < engine.wasted / engine.useful < 0.1
    assert engine.now < 2 * rows / 20 / workers


def four(rows: int, dies: Callable[[Shard], float | None], workers: int = 2) -> dict[Shard, str]:
    engine = Simulated(rows, dies)
    failed = dispatched(engine, workers, [Shard(i, 4) for i in range(4)])
    missing = {shard for shard in failed if not engine.judged[shard.rows(0, rows)[0]]}
    assert missing == failed.keys()
    assert engine.judged.sum() == rows - sum(b - a for a, b in (s.rows(0, rows) for s in failed))
    return failed


def test_a_shard_that_ends_its_workers_is_named_and_the_others_are_done() -> None:
    tries: list[Shard] = []

    def dies(shard: Shard) -> float | None:
        tries.append(shard)
        return 0.5 if shard.i == 1 else None

    assert four(40, dies) == {Shard(1, 4): "code -9: it said nothing"}
    assert tries.count(Shard(1, 4)) == TRIES
    assert four(40, dies, workers=1) == {Shard(1, 4): "code -9: it said nothing"}
    assert not four(40, lambda _: None, workers=9)  # more workers than shards


class Scripted(Simulated):
    """Its workers begin as a script says."""

    def __init__(self, starts: list[Event]) -> None:
        super().__init__(40, lambda _: None)
        self.starts, self.begun = starts, 0

    def start(self, worker: int) -> None:
        self.begun += 1
        at = self.starts.pop(0) if self.starts else Event(worker, "ready", self.rows)
        self._later(1, at._replace(worker=worker))


def test_a_worker_that_never_gets_ready_is_given_up_and_the_others_go_on() -> None:
    dead = Event(0, "died", "code 1: no memory.")
    engine = Scripted([dead] * 4)  # one of two workers may die three times
    assert not dispatched(engine, 2, [Shard(0, 1)])
    engine = Scripted([dead] * 99)
    with pytest.raises(InputError, match=r"each worker died 3 times .* code 1: no memory\.$"):
        dispatched(engine, 2, [Shard(0, 1)])
    assert engine.begun == 2 * TRIES


def test_what_one_worker_refuses_ends_all_at_once() -> None:
    engine = Scripted([Event(0, "ready", 40), Event(0, "refused", "there is no file none.py.")])
    with pytest.raises(InputError, match=r"^there is no file none\.py\.$"):
        dispatched(engine, 2, [Shard(0, 1)])
    assert not engine.judged.any()


def test_one_that_dies_while_it_waits_is_replaced() -> None:
    engine = Scripted([])
    engine._later(1.5, Event(1, "died", "code -9"))
    assert not dispatched(engine, 2, [Shard(0, 1)])
    assert engine.begun == 3


def test_shards_are_several_a_worker_but_not_small() -> None:
    assert shards_for(40, 4) == 4
    assert shards_for(4 * LEAST * 2, 4) == 8
    assert shards_for(10**6, 4) == 4 * MOST
