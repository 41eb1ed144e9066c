"""A live endpoint as a target: scores or labels over HTTP, under a hard budget of inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from dataclasses import dataclass
from math import inf
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import torch
from torch import Tensor

from holdfast.decisions import SILENT
from holdfast.errors import AccessError, InputError
from holdfast.targets.batch import Batch, Batcher, Rows
from holdfast.targets.cache import Answers
from holdfast.targets.head import Head
from holdfast.targets.http.endpoint import Endpoint, read
from holdfast.targets.http.messages import BadAnswer, decode, encode
from holdfast.targets.http.wire import Reply, Wire
from holdfast.targets.target import Access, Bounds, Identity, Inputs, Target
from holdfast.tasks import Classes, odds

_BUSY = (408, 425, 429, 502, 503, 504)  # says nothing of the inputs: the same request again
_FINAL = {
    401: "it wants credentials that the headers do not give",
    403: "it forbids access",
    404: "there is nothing at this address",
    405: "it takes no POST",
    407: "the proxy wants credentials",
    410: "there is nothing at this address any more",
}
_LONGEST = 600  # seconds: an endpoint that asks to wait longer ends the run


@dataclass(frozen=True)
class Part:
    """One request."""

    rows: list[int]  # of the question
    tries: int = 0  # how often it was tried before


class HttpTarget(Target):
    """An endpoint under test. A row that gets no good answer has NaN scores or label -1, and spoils
    no other.

    A request that meets a busy or silent endpoint is tried again as it is; one whose answer is bad
    is taken apart, and its rows are asked one by one. What may not be sent any more under
    `max_queries` gets no answer.

    Args:
        settings: what to ask and how.
        folder: where a relative `cache_file` lies.

    Raises:
        InputError: httpx is missing, or a variable of the environment that a header needs. Later:
            the endpoint refuses every request (401, 403, 404, ...), or gave no good answer at all.
    """

    def __init__(self, settings: Endpoint, folder: Path = Path()) -> None:
        try:
            import httpx
        except ImportError:
            raise InputError("an endpoint needs httpx: pip install 'holdfast[http]'.") from None
        try:
            httpx.URL(settings.url)
        except httpx.InvalidURL:
            raise InputError(f"{settings.url!r} is no address of an endpoint; repair it.") from None
        self.settings = settings
        self.access = {"labels": Access.LABELS}.get(settings.gives, Access.SCORES)
        self.bounds, self.task = Bounds(*settings.bounds), Classes(settings.k)
        self.inputs = Inputs(settings.layout)
        self.head = Head(settings.gives == "probabilities", said=True)
        self.identity = Identity(class_labels=settings.names or None)
        self.batcher = Batcher(max(256, settings.batch * settings.concurrency))
        self.bind(settings.shape)
        self.store = Answers(
            settings.cache_file and folder / settings.cache_file, settings.identity()
        )
        self._heard = self.store.any()  # one good answer at least was ever given
        self._next = 0.0  # of monotonic: when the rate allows the next request
        self._wire = Wire(settings.filled_headers(), settings.timeout, settings.url)

    @property
    def sent(self) -> int:
        """Inputs sent so far, retries counted."""
        return self.store.sent

    def scores(self, x: Rows) -> Tensor:
        if self.access < Access.SCORES:
            raise AccessError(f"the endpoint {self.settings.url} gives labels alone.")
        z = torch.from_numpy(self._answers(x))
        if not self.head.probabilities:
            return z
        if self.head.truth_task is not None:
            return odds(z)
        if self.task.k == 2:  # a single probability, served as two classes
            z = torch.stack([torch.where(z[:, 0] == 0, 1 - z[:, 1], z[:, 0]), z[:, 1]], 1)
        return z.clamp_min(torch.finfo(z.dtype).tiny).log()

    def labels(self, x: Rows) -> Tensor:
        if self.access < Access.SCORES:
            return torch.from_numpy(self._answers(x))[:, 0].nan_to_num(SILENT).long()
        z = self.scores(x)
        return torch.where(z.isfinite().all(1), self.task.predict(z), SILENT)

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.settings.identity()}{self.describe()!r}".encode()).hexdigest()

    def describe(self) -> dict[str, object]:
        return super().describe() | {
            "probabilities": self.head.probabilities,
            "layout": self.inputs.layout,
        }

    def __repr__(self) -> str:
        return f"HttpTarget({self.settings.url!r}, {self.access.name})"

    # ------------------------------------------------------------------ inside

    def _answers(self, x: Rows) -> np.ndarray:
        """Answers to inputs x, from the store where it has them: [n, width] float32, NaN where
        there is none."""
        inputs = Batch.of(x).x.detach().cpu().float().contiguous().numpy()
        return self.store.to(
            inputs,
            self.settings.width,
            lambda keys, rows, answers: self._ask(inputs, keys, rows, answers),
            fresh=not self.settings.cache,
        )

    def _ask(
        self, x: np.ndarray, keys: Sequence[bytes], rows: list[int], answers: np.ndarray
    ) -> None:
        """Fill in the answers to these rows, round by round: what is left of one is asked again in
        the next."""
        batch, at_once = self.settings.batch, self.settings.concurrency
        parts = [Part(rows[i : i + batch]) for i in range(0, len(rows), batch)]
        trouble = ""
        while parts:
            again: list[Part] = []
            pause = 0.0
            for first in range(0, len(parts), at_once):
                for part, reply in self._wave(x, parts[first : first + at_once]):
                    bad, why = self._take(part, reply, keys, answers)
                    left = self._left(part, bad, reply)
                    if left and left[0].tries and reply.wait is None:
                        pause = max(pause, self._backoff(keys[bad[0]], left[0].tries))
                    trouble = why or trouble
                    again += left
            _rest(pause)
            parts = sorted(again, key=lambda part: part.rows)
        if trouble and len(rows) > 1 and not self._heard:
            raise InputError(
                f"{self.settings.url} gave no good answer to any of {len(rows)} inputs; the last "
                f"trouble was {trouble}."
            )

    def _wave(self, x: np.ndarray, parts: Sequence[Part]) -> Iterator[tuple[Part, Reply]]:
        """Send requests at the same time and give each reply as it comes; then heed what the
        endpoint says of itself.

        Raises:
            InputError: it refuses every request, or wants a long rest.
        """
        futures: dict[Future[Reply], Part] = {}
        for part in parts:
            # before they are sent
            granted = self.store.spend(len(part.rows), self.settings.max_queries or inf)
            if granted:
                self._wait_turn()
                sent = Part(part.rows[:granted], part.tries)
                futures[self._wire.post(encode(self.settings, x[sent.rows]))] = sent
        for future in as_completed(futures):
            yield futures[future], future.result()
        replies = [future.result() for future in futures]
        for status in (
            reply.status for reply in replies if reply.status in _FINAL or 300 <= reply.status < 400
        ):
            raise InputError(
                f"{self.settings.url} answers {status}: "
                f"{_FINAL.get(status, 'it redirects to another address')}. Mend that and go on "
                "with --resume; nothing is lost."
            )
        wait = max((reply.wait for reply in replies if reply.wait is not None), default=0.0)
        if wait > _LONGEST:
            raise InputError(
                f"{self.settings.url} asks to wait {wait:.0f} seconds; go on later with --resume."
            )
        _rest(wait)

    def _wait_turn(self) -> None:
        """Wait until the rate allows a request."""
        if self.settings.rate is not None:
            _rest(self._next - monotonic())
            self._next = max(self._next, monotonic()) + 1 / self.settings.rate

    def _take(
        self, part: Part, reply: Reply, keys: Sequence[bytes], answers: np.ndarray
    ) -> tuple[list[int], str]:
        """Keep what is good of a reply: the rows that it left without an answer, and why."""
        if reply.trouble:
            return part.rows, reply.trouble
        try:
            values = decode(self.settings, reply.content, len(part.rows))
        except BadAnswer as bad:
            return part.rows, f"an answer in which {bad}"
        answers[part.rows] = values
        good = [bool(np.isfinite(row).all()) for row in values]
        if any(good):
            self._heard = True
            if self.settings.cache:
                self.store.keep(
                    (keys[row], values[i]) for i, row in enumerate(part.rows) if good[i]
                )
        left = [row for i, row in enumerate(part.rows) if not good[i]]
        return (
            left,
            f"an answer whose row is not {self.settings.width} usable numbers" * bool(left),
        )

    def _left(self, part: Part, bad: list[int], reply: Reply) -> list[Part]:
        """What is still to be asked for the sake of the rows without an answer."""
        more = part.tries < self.settings.retries
        busy = not reply.status or reply.status in _BUSY
        if len(part.rows) > 1 and not (busy and more):  # one of them may be to blame
            return [Part([row], part.tries) for row in bad]
        if bad and more:
            return [Part(bad, part.tries + 1)]
        return []

    def _backoff(self, key: bytes, tries: int) -> float:
        """Seconds before a retry: doubled each time, and spread by up to a half, in the same way
        every run."""
        jitter = int.from_bytes(hashlib.sha256(key + bytes([tries])).digest()[:4], "big") / 2**32
        return min(self.settings.backoff * 2 ** (tries - 1), 60) * (1 - jitter / 2)


def load(path: Path) -> HttpTarget:
    """The endpoint that a file describes.

    Raises:
        InputError: the file or a setting is wrong, httpx or a variable of the environment is
            missing.
    """
    return HttpTarget(read(path), path.parent)


def _rest(seconds: float) -> None:
    if seconds > 0:
        sleep(seconds)
