"""Requests to an endpoint: each has one deadline for all of it, and nobody who gives up waits for
any of them."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

_LARGEST = 2**28  # bytes of an answer
# how an answer may be; others unpack to far more in one step
_PACKED = ("", "identity", "gzip", "deflate")


@dataclass(frozen=True)
class Reply:
    """What came back: an answer, or what prevented one."""

    content: bytes = b""
    trouble: str = ""
    status: int = 0  # 0: no whole answer came
    wait: float | None = None  # seconds to wait, as the endpoint asks


class Wire:
    """Sends requests from a thread of its own, a daemon: an interrupted process ends without
    waiting for answers."""

    def __init__(self, headers: Mapping[str, str], timeout: float, url: str) -> None:
        import httpx

        self.url, self.timeout = url, timeout
        own = {"Accept-Encoding": "gzip, deflate"} | dict(headers)
        # see _send
        self._client = httpx.AsyncClient(headers=own, timeout=None, trust_env=not _local(url))
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(
            target=self._loop.run_forever, name="holdfast-endpoint", daemon=True
        )
        thread.start()
        weakref.finalize(self, _close, self._client.aclose(), self._loop, thread)

    def post(self, body: bytes) -> Future[Reply]:
        """Send a request now; its reply comes within the timeout."""
        return asyncio.run_coroutine_threadsafe(
            _send(self._client, self.url, body, self.timeout), self._loop
        )


async def _send(client: Any, url: str, body: bytes, timeout: float) -> Reply:
    """One request. No text of an exception is kept: it may repeat a header."""
    import httpx

    try:
        async with asyncio.timeout(timeout):  # from the connection to the last byte of the answer
            return await _asked(client, url, body)
    except TimeoutError:
        return Reply(trouble=f"no answer within {timeout:g} s")
    except (httpx.HTTPError, OSError) as error:
        return Reply(trouble=f"the connection failed ({type(error).__name__})")


async def _asked(client: Any, url: str, body: bytes) -> Reply:
    content = bytearray()
    async with client.stream("POST", url, content=body) as response:
        status = response.status_code
        if response.headers.get("content-encoding", "").strip().lower() not in _PACKED:
            return Reply(
                trouble="an answer that is packed in a way that was not asked for", status=status
            )
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > _LARGEST:
                return Reply(trouble="an answer without end", status=status)
    if response.is_success:
        return Reply(bytes(content), status=status)
    return Reply(
        trouble=f"status {status}",
        status=status,
        wait=seconds(response.headers.get("retry-after", "")),
    )


def _local(url: str) -> bool:
    """Whether an address is on this machine, which no proxy of the environment reaches."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _close(
    closing: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop, thread: threading.Thread
) -> None:
    """End what is under way, and the thread."""

    async def end() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await closing
        loop.stop()

    if thread.is_alive():
        asyncio.run_coroutine_threadsafe(end(), loop)
        thread.join(1)
    else:  # in a forked process
        closing.close()
    if not loop.is_running():
        loop.close()


def seconds(text: str) -> float | None:
    """What Retry-After asks for: a number of seconds, or a date."""
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
