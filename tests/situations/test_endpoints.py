"""Endpoints that are slow, odd or hostile, and users who give up: nobody waits longer than was
said."""

from __future__ import annotations

import gzip
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from holdfast.errors import InputError
from holdfast.targets.http.endpoint import Endpoint
from holdfast.targets.http.target import HttpTarget

pytest.importorskip("httpx")

ANSWER = json.dumps({"scores": [[0.0, 1.0]]}).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


class Raw:
    """A server on this machine whose every answer is what `serve` does with the connection."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.serve: Callable[[socket.socket], None] = lambda _: None
        self.over, self.asked = threading.Event(), 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            self.asked += 1
            try:
                self.serve(connection)
            except OSError:
                return

    def target(self, **changes: Any) -> HttpTarget:
        ordinary = {
            "url": f"http://127.0.0.1:{self.socket.getsockname()[1]}/",
            "shape": [2],
            "classes": 2,
            "gives": "scores",
            "request": {"json": {"x": "$inputs"}},
            "response": "scores",
            "retries": 0,
        }
        return HttpTarget(Endpoint.model_validate(ordinary | changes))


@pytest.fixture
def server() -> Iterator[Raw]:
    made = Raw()
    yield made
    made.over.set()
    made.socket.close()


def answer(target: HttpTarget) -> np.ndarray:
    return target.scores(torch.zeros(1, 2)).numpy()


@pytest.mark.parametrize("part", ["head", "body"])
def test_the_timeout_is_one_for_the_whole_answer(server: Raw, part: str) -> None:
    """Line 27: a server that sends a byte now and then is cut off, though no single read takes
    long."""
    whole = HEAD % len(ANSWER) + ANSWER
    start = 0 if part == "head" else whole.index(b"\r\n\r\n") + 4

    sent, done = [], threading.Event()

    def drip(connection: socket.socket) -> None:
        try:
            connection.sendall(whole[:start])
            for i in range(start, len(whole)):
                connection.sendall(whole[i : i + 1])
                sent.append(i)
                server.over.wait(0.05)
        finally:
            done.set()

    server.serve = drip
    assert np.isnan(answer(server.target(timeout=0.3))).all()
    assert done.wait(60)
    # the client hung up
    assert len(sent) < (len(whole) if part == "body" else len(whole) - len(ANSWER)) - start
    server.serve = lambda connection: connection.sendall(whole)
    assert answer(server.target(timeout=30)).tolist() == [[0, 1]]


def test_an_interrupt_leaves_nothing_to_wait_for(server: Raw) -> None:
    """Line 27: Ctrl-C while an answer is awaited ends the question, and no thread keeps the process
    alive for it."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("only the main thread is interrupted")

    def silent(_: socket.socket) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        server.over.wait(60)

    server.serve = silent
    target = server.target(timeout=3600, retries=5)
    # a job in the background is born deaf to it
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            answer(target)
    finally:
        signal.signal(signal.SIGINT, usual)
    assert server.asked == 1
    waited_for = [
        t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()
    ]
    assert [t.name for t in waited_for if "execnet" not in t.name] == []


@pytest.mark.parametrize("value", ["two\nlines", "tab\there", "Grüße", " space", "end\r"])
def test_values_of_headers_are_checked(server: Raw, value: str) -> None:
    """Line 27: what no header may hold is refused before anything is sent, and not repeated."""
    with pytest.raises(ValueError, match="X-Team holds signs") as refusal:
        server.target(headers={"X-Team": value})
    assert value not in str(refusal.value)
    with pytest.raises(ValueError, match="headers"):
        server.target(headers={"X-Team": 5})
    assert server.asked == 0


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
        HEAD % 4 + b"nope",
        HEAD % 17 + b'{"scores": [1, 2]',
        HEAD % 16 + b'{"scores": null}',
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
    ],
    ids=["brotli", "no-gzip", "no-json", "cut", "null", "no-http", "huge-head"],
)
def test_odd_answers_are_no_answers(server: Raw, said: bytes) -> None:
    """Line 27: whatever comes back, the row has no answer, and nothing is raised."""
    server.serve = lambda connection: connection.sendall(said)
    assert np.isnan(answer(server.target(timeout=20))).all()


def test_an_answer_that_unpacks_without_end_is_cut_off(
    server: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Line 27: an answer of few bytes that unpacks to many is given up at the largest size
    allowed."""
    monkeypatch.setattr("holdfast.targets.http.wire._LARGEST", 2**16)
    bomb = gzip.compress(b" " * 2**22 + ANSWER)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    server.serve = lambda connection: connection.sendall(head + bomb)
    assert np.isnan(answer(server.target())).all()


def test_a_redirect_is_one_sentence(server: Raw) -> None:
    """Line 27: headers with secrets follow no redirect to another address."""
    server.serve = lambda connection: connection.sendall(
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    )
    with pytest.raises(InputError, match="redirects to another address"):
        answer(server.target())
    assert server.asked == 1


def test_no_proxy_stands_before_this_machine(server: Raw, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line 27: a proxy of the environment is not asked for an endpoint on this machine."""
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    server.serve = lambda connection: connection.sendall(HEAD % len(ANSWER) + ANSWER)
    assert answer(server.target()).tolist() == [[0, 1]]
