"""A live endpoint as a target: whatever it does, every row gets what it is due, and no input is
sent in vain."""

from __future__ import annotations

import base64
import functools
import io
import json
import logging
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import holdfast
from holdfast.attacks import Outcome, SearchResult, parse, run
from holdfast.attacks.problem import Problem
from holdfast.data import from_arrays
from holdfast.errors import AccessError, InputError
from holdfast.evaluation.verify import verify
from holdfast.rng import Keys
from holdfast.runs.run import Run
from holdfast.targets import load
from holdfast.targets.http import target as http
from holdfast.targets.http.endpoint import Endpoint
from holdfast.targets.http.messages import BadAnswer, decode, encode
from holdfast.targets.http.wire import seconds
from holdfast.targets.preprocess import Normalize

pytest.importorskip("httpx")

SHAPE, N, THREAT, ATTACKS = (1, 4, 4), 10, "linf(0.08)", ("square(steps=20)",)
NAMES = ("ant", "bee", "cat")
DRAW = np.random.default_rng(3)
W = DRAW.normal(size=(3, 16)).astype(np.float32)
X = DRAW.uniform(0.2, 0.8, size=(N, *SHAPE)).astype(np.float32)
VICTIM = 3  # the row for which an endpoint may misbehave


def model(x: np.ndarray) -> np.ndarray:
    """Scores [n, 3]; each row on its own, so that no answer depends on the batch."""
    return np.stack([W @ (row.ravel() - 0.5) for row in x])


Y = model(X).argmax(1)
Y[7] = (Y[7] + 1) % 3  # misclassified clean


def statuses(run: Run) -> list[str]:
    return run.samples.sort_by("id").column("status").to_pylist()


@functools.cache
def twin(attacks: tuple[str, ...] = ATTACKS) -> tuple[str, ...]:
    """The statuses of the same model in this process."""
    net = holdfast.wrap(lambda x: torch.from_numpy(model(x.numpy())))
    found = statuses(holdfast.evaluate(net, (X, Y), THREAT, attacks=attacks))
    assert {"robust", "broken", "wrong"} <= set(found)
    assert found[VICTIM] in ("robust", "broken")
    return tuple(found)


def failed(found: tuple[str, ...]) -> list[str]:
    """The same, but for the victim."""
    return [*found[:VICTIM], "failed", *found[VICTIM + 1 :]]


class Server(ThreadingHTTPServer):
    """Serves the model; `mishap` says, from the inputs of a request and its number, what goes wrong
    with it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mishap: Callable[[np.ndarray, int], str] = lambda x, number: ""
        self.seen: list[bytes] = []  # every input that came over the wire
        self.headers: list[dict[str, str]] = []
        self.lock, self.over, self.number = threading.Lock(), threading.Event(), 0
        threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are part of the game."""

    def endpoint(self, **changes: Any) -> Endpoint:
        ordinary = {
            "url": f"http://127.0.0.1:{self.server_address[1]}/predict",
            "shape": SHAPE,
            "classes": NAMES,
            "gives": "scores",
            "request": {"json": {"instances": "$inputs"}},
            "response": "outputs.*.scores",
            "batch": 4,
            "concurrency": 2,
            "backoff": 0,
        }
        return Endpoint.model_validate(ordinary | changes)

    def target(self, **changes: Any) -> http.HttpTarget:
        return http.HttpTarget(self.endpoint(**changes))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        x = np.array(body["instances"], dtype=np.float32)
        with self.server.lock:
            self.server.seen += [row.tobytes() for row in x]
            self.server.headers.append(dict(self.headers))
            self.server.number += 1
            number = self.server.number
        kind = self.server.mishap(x, number)
        if kind == "hang":
            self.server.over.wait(20)
        if kind in ("hang", "drop"):
            self.close_connection = True
            return
        z = model(x)
        rows = [{"scores": row, "label": NAMES[int(np.argmax(row))]} for row in z.tolist()]
        if kind == "nan":
            rows = [
                {"scores": [float("nan"), *row["scores"][1:]], "label": float("nan")}
                for row in rows
            ]
        said = json.dumps({"outputs": rows[1:] if kind == "rows" else rows})
        if kind == "garbage":
            said = f"<html>{self.headers.get('Authorization')}</html>"
        status = int(kind) if kind.isdigit() else 200
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as made:
        yield made
        made.over.set()
        made.shutdown()


def close_victim(x: np.ndarray) -> bool:
    """Whether one of these inputs was made from the victim, and is not the clean one."""
    nearest = np.abs(x[:, None] - X).max((2, 3, 4)).argmin(1)
    return bool(((nearest == VICTIM) & (x != X[VICTIM]).any((1, 2, 3))).any())


MISHAPS = ["drop", "429", "500", "hang", "garbage", "nan", "rows", "503"]


@pytest.mark.parametrize("kind", MISHAPS)
def test_a_misbehaving_endpoint_costs_only_the_guilty_row(server: Server, kind: str) -> None:
    """Three requests meet the mishap by chance, those of the victim always."""
    server.mishap = lambda x, number: kind if number in (2, 5, 9) or close_victim(x) else ""
    target = server.target(retries=3, timeout=0.2 if kind == "hang" else 30)
    assert statuses(holdfast.evaluate(target, (X, Y), THREAT, attacks=ATTACKS)) == failed(twin())
    assert target.sent == len(server.seen)


def test_an_endpoint_of_labels_is_smoothed_for_the_questions_that_were_said(server: Server) -> None:
    target = server.target(gives="labels", response="outputs.*.label", batch=64)
    said, smooth = list[float](), "gaussian(0.1, draws=120, first=30, alpha=0.01)"
    run = holdfast.certify(
        target,
        (X, Y),
        "l2(0.02)",
        smooth=smooth,
        on_estimate=lambda cost: said.append(cost.rows * cost.passes),
    )
    assert said == [N * 150]
    others = 2 * N + 30  # the labels of clean rows, and of random ones, for what is no function
    assert said[0] <= target.sent <= said[0] + others
    net = holdfast.wrap(lambda x: torch.from_numpy(model(x.numpy())))
    there = holdfast.certify(net, (X, Y), "l2(0.02)", smooth=smooth)
    assert statuses(run) == statuses(there)
    assert "certified" in statuses(run)


@pytest.mark.parametrize("gives", ["scores", "labels"])
def test_an_endpoint_is_measured_like_its_twin(server: Server, gives: str, tmp_path: Path) -> None:
    tried = ATTACKS if gives == "scores" else ("sweep(steps=12)",)
    changes = {} if gives == "scores" else {"gives": "labels", "response": "outputs.*.label"}
    run = holdfast.evaluate(
        server.target(**changes), (X, Y), THREAT, attacks=tried, out=tmp_path / "run"
    )
    assert statuses(run) == list(twin(tried))
    assert verify(run.folder, server.target(**changes), from_arrays(X, Y)) == []
    if gives == "labels":
        server.mishap = lambda x, number: "nan" if close_victim(x) else ""
        target = server.target(retries=1, **changes)
        assert statuses(holdfast.evaluate(target, (X, Y), THREAT, attacks=tried)) == failed(
            twin(tried)
        )
        with pytest.raises(AccessError, match="labels alone"):
            target.scores(torch.from_numpy(X))


def test_no_decision_is_neither_a_success_nor_a_survival(server: Server) -> None:
    """Also where the endpoint is well again before the judge asks."""
    server.mishap = lambda x, number: "500" if close_victim(x) else ""
    target = server.target(gives="labels", response="outputs.*.label", retries=0)
    x, y, threat = torch.from_numpy(X), torch.from_numpy(Y), holdfast.Threat.parse(THREAT)
    result = run(parse("sweep(steps=12)"), target, x, y, threat)
    assert result.outcome[VICTIM] == Outcome.FAILED
    assert result.size[VICTIM].isinf()
    probed = Problem(
        target,
        x,
        y,
        threat,
        Keys.of(0, torch.arange(N)),
        result=SearchResult.open(x, torch.full((N,), 1.0)),
    )
    assert not probed.probes(torch.full((N, 2, *SHAPE), 0.01))[VICTIM].any()
    assert probed._counts.result.outcome[VICTIM] == Outcome.FAILED
    assert not probed.live[VICTIM]


@pytest.mark.parametrize("kind", [kind for kind in MISHAPS if kind != "hang"])
def test_rows_of_a_request_do_not_fail_together(server: Server, kind: str) -> None:
    guilty = X[1].tobytes()
    server.mishap = lambda x, number: kind if any(row.tobytes() == guilty for row in x) else ""
    z = server.target(retries=1).scores(torch.from_numpy(X))
    assert z.isnan().all(1).tolist() == [i == 1 for i in range(N)]
    assert np.array_equal(np.delete(z.numpy(), 1, 0), np.delete(model(X), 1, 0))
    assert server.target(retries=0).labels(torch.from_numpy(X))[:3].tolist() == [Y[0], -1, Y[2]]


@pytest.mark.parametrize("limit", [5, 30, 77])
@pytest.mark.parametrize("cache", [True, False])
def test_the_budget_is_never_exceeded(server: Server, limit: int, cache: bool) -> None:
    server.mishap = lambda x, number: ("", "", "429", "rows", "500")[number % 5]
    target = server.target(max_queries=limit, concurrency=3, cache=cache)
    run = holdfast.evaluate(target, (X, Y), THREAT, attacks=ATTACKS)
    assert len(server.seen) == target.sent == limit
    assert "failed" in statuses(run)
    assert run.metrics.counts["robust"] < twin().count("robust")


def test_no_input_is_asked_about_twice(server: Server) -> None:
    twice = torch.from_numpy(np.concatenate([X[:3], X[:3]]))
    target = server.target()
    z = target.scores(twice)
    assert torch.equal(z, target.scores(twice))
    assert torch.equal(z[:3], z[3:])
    assert len(server.seen) == 3
    server.target(cache=False).scores(twice)
    assert len(server.seen) == 9


@pytest.mark.parametrize("stopped_by", ["user", "401", "403", "404", "307"])
def test_a_stopped_run_goes_on_without_asking_again(
    server: Server, tmp_path: Path, stopped_by: str
) -> None:
    folder, cache_file = tmp_path / "run", tmp_path / "answers.sqlite"
    asked = {"attacks": ATTACKS, "out": folder}

    def interrupt(progress: Any) -> None:
        if progress.share > 0.5:
            raise KeyboardInterrupt

    target = server.target(cache_file=cache_file, concurrency=1)
    if stopped_by == "user":
        with pytest.raises(KeyboardInterrupt):
            holdfast.evaluate(target, (X, Y), THREAT, on_progress=interrupt, **asked)
    else:
        server.mishap = lambda x, number: stopped_by if number == 12 else ""
        with pytest.raises(InputError, match=rf"answers {stopped_by}: .*nothing is lost"):
            holdfast.evaluate(target, (X, Y), THREAT, **asked)
    before = len(server.seen)
    assert before > N
    # gentler settings are still the same endpoint
    target = server.target(cache_file=cache_file, retries=9)
    assert target.sent == before
    run = holdfast.evaluate(target, (X, Y), THREAT, resume=True, **asked)
    assert statuses(run) == list(twin())
    refused = 0 if stopped_by == "user" else 4  # the rows of the request that was refused
    assert sum(count - 1 for count in Counter(server.seen).values()) <= refused
    assert target.sent == len(server.seen) > before
    spent = server.target(cache_file=cache_file, max_queries=len(server.seen))
    spent.scores(torch.rand(2, *SHAPE))
    assert spent.sent == target.sent  # the budget is one for all runs


def test_secrets_stay_in_the_environment(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Even where the endpoint echoes them."""
    secret = "s3cr3t-0123456789"
    monkeypatch.setenv("MODEL_TOKEN", secret)
    path = tmp_path / "it.endpoint.yaml"
    path.write_text(
        f"url: http://127.0.0.1:{server.server_address[1]}/predict\nshape: [1, 4, 4]\nclasses: "
        "3\ngives: scores\n"
        "request: {json: {instances: $inputs}}\nresponse: outputs.*.scores\nbatch: 4\ncache_file: "
        "answers.sqlite\n"
        'retries: 1\nbackoff: 0\nheaders: {Authorization: "Bearer ${MODEL_TOKEN}"}\n'
    )
    caplog.set_level(logging.DEBUG)
    target = load(str(path))
    server.mishap = lambda x, number: "garbage"
    with pytest.raises(InputError, match=r"no good answer to any of 10 inputs.*not JSON") as caught:
        holdfast.evaluate(target, (X, Y), THREAT, attacks=ATTACKS, out=tmp_path / "none")
    server.mishap = lambda x, number: "garbage" if number % 3 == 0 else ""
    asked = {"attacks": ATTACKS, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        holdfast.evaluate(
            target,
            (X, Y),
            THREAT,
            on_progress=lambda _: (_ for _ in ()).throw(KeyboardInterrupt),
            **asked,
        )
    held = [file for file in tmp_path.rglob("*") if file.is_file()]
    run = holdfast.evaluate(target, (X, Y), THREAT, resume=True, **asked)
    held += [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {"answers.sqlite", "run.json"} <= {file.name for file in held}
    assert server.headers[-1]["Authorization"] == f"Bearer {secret}"
    for said in (str(caught.value), repr(target), repr(vars(target)), repr(run), caplog.text):
        assert secret not in said
    assert not [file for file in held if file.exists() and secret.encode() in file.read_bytes()]


@pytest.mark.parametrize("name", ["Authorization", "X-Api-Key", "my-token", "Cookie", "api_secret"])
def test_a_literal_secret_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, headers={name: "Bearer hunter2"})
    with pytest.raises(InputError, match=f"{name} looks secret") as caught:
        load(str(path))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("value", [None, "", "hunter2\n", "hünter2"])
def test_a_variable_must_hold_what_a_header_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any
) -> None:
    monkeypatch.delenv("MODEL_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("MODEL_TOKEN", value)
    with pytest.raises(
        InputError, match=r"variable MODEL_TOKEN, which (is not set|holds)"
    ) as caught:
        load(str(write(tmp_path, headers={"Authorization": "${MODEL_TOKEN}"})))
    assert "nter2" not in str(caught.value)


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "it.endpoint.json"
    ordinary = {"url": "http://127.0.0.1:9/p", "shape": SHAPE, "classes": 3, "gives": "scores"}
    path.write_text(json.dumps(ordinary | {"request": {"json": "$inputs"}} | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"retrys": 3}, "no setting 'retrys'; did you mean retries?"),
        ({"request": {"jsn": 1}}, "request: there is no setting 'jsn'; did you mean json?"),
        ({"gives": "logits"}, "gives: Input should be 'scores', 'probabilities' or 'labels'"),
        ({"request": {"json": {"x": 1}}}, "exactly once"),
        (
            {"request": {"json": {"x": "$inputs", "password": "hunter2"}}},
            "'password', which looks secret",
        ),
        ({"request": {"body": "png"}, "batch": 2}, "place for one row"),
        ({"request": {"body": "png"}, "shape": [5, 4, 4]}, "no images"),
        ({"url": "http://me:hunter2@host/p"}, "user or password"),
        ({"url": "http://host/p?api_key=hunter2"}, "'api_key' looks secret"),
        ({"url": "ftp://host"}, "whole http"),
        ({"url": "http://host:99999/p"}, "Port out of range"),
        ({"url": "http://ho\nst/p"}, "no address"),
        ({"cache": False, "cache_file": "a.sqlite"}, "drop one of the two"),
        ({"classes": ["a", "a"]}, "different names"),
        ({"bounds": [1, 0]}, "the lower one first"),
        ({"max_queries": 0}, "max_queries: Input should be greater"),
        ({"cache_file": "it.endpoint.json"}, "cache_file .* cannot be used"),
    ],
)
def test_a_wrong_setting_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said.replace("?", r"\?")) as caught:
        load(str(write(tmp_path, **changes)))
    assert "hunter2" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("a.endpoint.json", '{"url": \n hunter2'),
        ("a.endpoint.yml", "url: [\n hunter2: '"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=r"is no (JSON|YAML) text \(line \d\)"):
            load(str(tmp_path / name))
    with pytest.raises(InputError, match=r"cannot read .*none.endpoint.yaml"):
        load(str(tmp_path / "none.endpoint.yaml"))
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(InputError, match=r"pip install 'holdfast\[http\]'"):
        load(str(write(tmp_path)))


def test_nobody_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as held:  # bound, but it does not listen
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/p"
        with pytest.raises(InputError, match=r"no good answer .* connection failed"):
            load(str(write(tmp_path, url=url, retries=1, backoff=0))).scores(
                torch.from_numpy(X[:2])
            )


def test_waits(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only sleep moves: backoff doubles, is spread and repeats; the rate holds;
    Retry-After counts."""
    slept: list[float] = []
    monkeypatch.setattr(http, "sleep", slept.append)
    monkeypatch.setattr(http, "monotonic", lambda: sum(slept))
    x = torch.from_numpy(X[:1])

    def waits(**changes: Any) -> list[float]:
        slept.clear()
        server.target(**changes).scores(x)
        return list(slept)

    server.mishap = lambda x, number: "500"
    first = waits(backoff=1, retries=3)
    assert first == waits(backoff=1, retries=3)
    assert all(2**i / 2 <= wait <= 2**i for i, wait in enumerate(first))
    assert len(first) == 3
    server.mishap = lambda x, number: "429"  # Retry-After: 0
    assert waits(backoff=1, retries=3) == []
    server.mishap = lambda x, number: "500"
    assert waits(rate=4, retries=4) == [0.25] * 4
    assert seconds("7") == 7
    assert seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert seconds("soon") is None


def test_what_is_sent() -> None:
    def sent(x: np.ndarray = X[:2], **changes: Any) -> bytes:
        ordinary = {
            "url": "http://h/p",
            "shape": x.shape[1:],
            "classes": 3,
            "gives": "scores",
            "batch": 2,
        }
        return encode(Endpoint.model_validate(ordinary | changes), x)

    def picture(content: bytes) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(content)))

    levels = np.rint(X[:2] * 255).astype(np.uint8)
    assert json.loads(sent(request={"json": {"a": [1, "$inputs"]}})) == {"a": [1, X[:2].tolist()]}
    each = {"rows": {"$each": {"image": {"b64": "$input"}, "n": 1}}}
    rows = json.loads(sent(request={"json": each, "inputs": "png"}))["rows"]
    for i, row in enumerate(rows):
        assert row["n"] == 1
        assert np.array_equal(picture(base64.b64decode(row["image"]["b64"])), levels[i, 0])
    assert np.array_equal(np.load(io.BytesIO(sent(request={"body": "npy"}))), X[:2])
    colour = np.repeat(X[:1], 3, axis=1) * [[[[1.0]], [[0.5]], [[0.0]]]]
    shown = picture(sent(colour, request={"body": "png"}, batch=1))
    assert np.array_equal(shown, np.rint(colour[0] * 255).astype(np.uint8).transpose(1, 2, 0))
    wide = sent(
        colour.transpose(0, 2, 3, 1) * 2 - 1,
        request={"body": "png"},
        batch=1,
        layout="nhwc",
        bounds=[-1, 1],
    )
    assert np.abs(picture(wide).astype(int) - shown).max() <= 1
    photo = picture(sent(np.full((1, 3, 8, 8), 0.4), request={"body": "jpeg"}, batch=1))
    assert photo.shape == (8, 8, 3)
    assert np.abs(photo.astype(int) - 102).max() <= 2


def test_what_is_read() -> None:
    def read(answer: Any, n: int = 2, **changes: Any) -> list[list[float]]:
        ordinary = {"url": "http://h/p", "shape": [4], "classes": NAMES, "gives": "scores"}
        endpoint = Endpoint.model_validate(ordinary | {"request": {"json": "$inputs"}} | changes)
        return decode(endpoint, json.dumps(answer).encode(), n).tolist()

    nan = pytest.approx([np.nan] * 3, nan_ok=True)
    assert read([[1, 2, 3], [4, 5, 6]]) == [[1, 2, 3], [4, 5, 6]]
    assert read({"a": [{"b": {"cat": 1, "ant": 2, "bee": 3}}]}, 1, response="a.*.b") == [[2, 3, 1]]
    assert read({"a": [0, [1, 2, 3]]}, 1, response="a.1") == [[1, 2, 3]]
    assert read([[1, 2], [1, None, 3]]) == [nan, nan]
    assert read([[1, 2, 3], [1e300, 2, 3]]) == [[1, 2, 3], nan]
    assert read([[0.5, 0.5, 0], [1.5, -0.5, 0]], gives="probabilities") == [[0.5, 0.5, 0], nan]
    assert read([0.25, [0.75]], classes=2, gives="probabilities") == [[0, 0.25], [0, 0.75]]
    unread = pytest.approx([np.nan], nan_ok=True)
    labels = read(["bee", 2, [0], 3, -1, 1.5, "dog", {}], 8, gives="labels")
    assert labels == [[1], [2], [0], unread, unread, unread, unread, unread]
    assert read({"label": "cat"}, 1, gives="labels", response="label") == [[2]]
    for answer, path in (
        ([[1, 2, 3]], ""),
        ({"a": 1}, "b"),
        ([1, 2], "*.x"),
        ({"a": 1}, "a"),
        ([1], "x"),
    ):
        with pytest.raises(BadAnswer, match=r"for 2 inputs|nothing at"):
            read(answer, response=path)


def test_probabilities_become_log_probabilities(
    monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    target = server.target(classes=2, gives="probabilities")
    monkeypatch.setattr(target, "_answers", lambda x: np.array([[0, 0.9], [0.3, 0.7]], np.float32))
    assert torch.allclose(
        target.scores(torch.zeros(2, *SHAPE)).exp(), torch.tensor([[0.1, 0.9], [0.3, 0.7]])
    )


def test_what_decides_the_answers_is_the_fingerprint(server: Server) -> None:
    own = server.target().fingerprint()
    assert own == server.target(retries=1, rate=5, timeout=1, max_queries=9, batch=1).fingerprint()
    assert own != server.target(url="http://127.0.0.1:9/other").fingerprint()
    assert own != server.target(headers={"X-Version": "2"}).fingerprint()


def test_what_an_endpoint_cannot_be_told_is_refused(tmp_path: Path) -> None:
    path = str(write(tmp_path))
    for messages in ({"output": "head"}, {"preprocess": Normalize(0.5, 0.5)}):
        with pytest.raises(InputError, match=f"{next(iter(messages))} cannot be given for a"):
            load(path, **messages)
