"""Which worker measures which shard, also where workers die.

It knows nothing of what a worker is: an engine starts workers, hands them shards and says what
became of them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from holdfast.errors import InputError

if TYPE_CHECKING:
    from holdfast.evaluation.chunk import Progress
    from holdfast.evaluation.estimate import Forecast
    from holdfast.evaluation.shards import Shard

TRIES = 3  # workers that a shard may end; and deaths in succession of a worker that is not ready
MOST, LEAST = 4, 512  # shards of a worker, and rows of each where there are several


class Event(NamedTuple):
    """What a worker did."""

    worker: int
    # ready for its first shard; has estimated it; at work on it; done with it; will not measure
    # what is asked; died, or failed its shard otherwise; and to its engine alone: asks for what one
    # of the workers finds for all, or found it
    what: Literal["ready", "estimate", "progress", "done", "refused", "died", "asks", "found"]
    # ready: what it opened; estimate: `Forecast`; progress: `Progress`; refused and died: why
    said: Any = None


class Engine(Protocol):
    """What runs workers, numbered from 0."""

    def start(self, worker: int) -> None:
        """Begin a worker, or another in the place of one that died."""

    def give(self, worker: int, shard: Shard, *, again: bool) -> None:
        """Have a worker measure a shard, which may have been begun."""

    def events(self) -> Iterable[Event]:
        """What happened since the last call; waits for a moment where nothing did."""
        ...


def shards_for(rows: int, workers: int) -> int:
    """How many shards so many workers share: several each, so that one that is slow or dies costs
    little, but none so small that what each begins with would cost more."""
    return workers * max(1, min(MOST, rows // (workers * LEAST)))


class Dispatch:
    """The shards of a run, on their way through workers.

    Args:
        cut: the shards that are to be measured, from what the first worker that is ready opened.
        show: called with the progress of all.
        estimated: called with the estimate of one shard, where there is one, and the number of all.
    """

    def __init__(
        self,
        engine: Engine,
        workers: int,
        cut: Callable[[Any], Sequence[Shard]],
        show: Callable[[Progress], None],
        estimated: Callable[[Forecast, int], None] = lambda *_: None,
    ) -> None:
        self.engine, self.workers, self.cut, self.show = engine, workers, cut, show
        self.estimated = estimated
        self.total = 0
        self.left: deque[Shard] | None = None  # known once a worker is ready
        self.ready: deque[int] = deque()
        self.at: dict[int, Shard] = {}  # of each worker that has one
        self.progress: dict[int, Progress] = {}
        self.deaths: Counter[Shard] = Counter()
        self.early_deaths: Counter[int] = Counter()  # of each worker since it was last ready
        self.failed: dict[Shard, str] = {}

    def run(self) -> dict[Shard, str]:
        """Have every shard measured; those that ended `TRIES` workers, and how the last one died.

        Raises:
            InputError: a worker refused what is asked, or none became ready.
        """
        for worker in range(self.workers):
            self.engine.start(worker)
        while self.left is None or self.left or self.at:
            for event in self.engine.events():
                self._note(*event)
            while self.left and self.ready:
                worker, shard = self.ready.popleft(), self.left.popleft()
                self.at[worker] = shard
                self.engine.give(worker, shard, again=self.deaths[shard] > 0)
            self._show()
        return self.failed

    def _note(self, worker: int, what: str, said: Any) -> None:
        if what == "progress":
            self.progress[worker] = said
            return
        if what == "estimate":
            self.estimated(said, self.total)
            return
        self.progress.pop(worker, None)
        if what == "refused":
            raise InputError(said)
        if what == "died":
            self._died(worker, said)
            return
        if what == "ready":
            self.early_deaths[worker] = 0
            if self.left is None:
                self.left = deque(self.cut(said))
                self.total = len(self.left)
        else:
            del self.at[worker]
        self.ready.append(worker)

    def _died(self, worker: int, said: str) -> None:
        """Begin another in its place, and do its shard again before all others."""
        shard = self.at.pop(worker, None)
        if shard is not None and self.left is not None:
            self.deaths[shard] += 1
            if self.deaths[shard] == TRIES:
                self.failed[shard] = said
            else:
                self.left.appendleft(shard)
        else:
            self.early_deaths[worker] += 1
            if worker in self.ready:
                self.ready.remove(worker)
        if self.early_deaths[worker] < TRIES:
            self.engine.start(worker)
        elif all(self.early_deaths[other] >= TRIES for other in range(self.workers)):
            raise InputError(
                f"each worker died {TRIES} times before it was ready for a shard, the last with "
                f"{said.rstrip('.')}."
            )

    def _show(self) -> None:
        if self.left is None or not self.progress:
            return
        under = self.progress.values()
        done = self.total - len(self.left) - len(self.at)
        share = (done + sum(p.share for p in under)) / self.total
        self.show(min(under)._replace(share=share, live=sum(p.live for p in under)))
