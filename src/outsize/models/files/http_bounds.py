"""Bounds on what a hub may do with the HTTP client of huggingface_hub: time, waits, sizes and encodings of answers."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from outsize.errors import HubUnreachable
from outsize.models.files.hub_settings import check_network
from outsize.models.time_limit import time_limit

RETRY_STATUS = (408, 429, 500, 502, 503, 504)
MOST_WAIT_S = 60.0  # that a hub may make us wait with one request and its repetitions
ANSWER_S = 20.0  # until the headers of an answer are there, and for the whole of one that is no file
LEAST_RATE = 1000  # bytes per second of a file, over each ANSWER_S
MOST_API_BYTES = 64 << 20  # of an answer that is no file: descriptions of models with thousands of shards take a few MB
CHECK_NETWORK = "check the network, HF_ENDPOINT and proxies; models in the local cache need no hub"


@contextmanager
def bounded(at: str, most: int | None = None) -> Iterator[None]:
    """Bounds all requests of huggingface_hub's session, which by itself obeys a hub that asks to wait for a day.

    ``most``: bytes of a file that is downloaded. huggingface_hub says on stderr itself that it waits, and no more.
    Raises HubUnreachable, about ``at``, and UsageError for a proxy that cannot be.
    """
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    check_network(os.environ)
    end = time.monotonic() + MOST_WAIT_S
    session = get_session()
    send, own = session.send, "send" in vars(session)

    asking = _Asking(send, at)

    def bounded_send(request: Any, *, stream: bool = False, **keywords: Any) -> Any:
        request.headers["Accept-Encoding"] = "identity"  # a small answer cannot become a large one
        response = asking.send(request, **keywords)
        try:
            _check_wait(response, at, end)
            _check_content_name(response, at)
            if response.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
                raise HubUnreachable(f"{at}: the hub encodes its answer, unasked", remedy=CHECK_NETWORK)
            response.stream = _bounded_stream(response.stream, at, most if stream else MOST_API_BYTES)
            if not stream:
                with time_limit(ANSWER_S, asking.late):
                    response.read()
        except BaseException:
            response.close()
            raise
        return response

    vars(session)["send"] = bounded_send
    log = logging.getLogger("huggingface_hub.utils._http")
    log.addFilter(_is_wait)
    try:
        yield
    finally:
        log.removeFilter(_is_wait)
        if own:  # within another block
            vars(session)["send"] = send
        else:
            del vars(session)["send"]


def _is_wait(record: logging.LogRecord) -> bool:
    """Whether huggingface_hub says that it waits as it was asked to.

    What it says of each attempt that fails names addresses, with the passwords in them, and ends in an error of ours.
    """
    return record.getMessage().startswith("Rate limited")


class _Asking:
    """Requests until the headers of an answer are there: ANSWER_S for each, and for several that fail in a row."""

    def __init__(self, send: Callable[..., Any], at: str) -> None:
        self._send, self._at = send, at
        self._failing_since: float | None = None

    def send(self, request: Any, **keywords: Any) -> Any:
        """The answer, its body not read yet. Raises HubUnreachable, or what huggingface_hub asks again after."""
        import httpx2

        for wait in (1, 2, 4, 0):
            began = self._failing_since = self._failing_since or time.monotonic()
            # A read that waits in the kernel ends by its own timeout alone, and huggingface_hub sets one of a minute.
            left = max(ANSWER_S - (time.monotonic() - began), 0.1)
            timeouts = request.extensions.get("timeout", {}).items()
            request.extensions["timeout"] = {name: left if s is None else min(s, left) for name, s in timeouts}
            try:
                with time_limit(ANSWER_S, self.late):
                    response = self._send(request, stream=True, **keywords)
                break
            except httpx2.TransportError as error:
                again = isinstance(error, httpx2.ConnectError)  # huggingface_hub would go on with a session of its own
                if time.monotonic() - began >= ANSWER_S or (again and not wait):
                    what = f"{self._at}: the hub cannot be reached ({type(error).__name__}: {error})"
                    raise HubUnreachable(what, remedy=CHECK_NETWORK) from error
                if not again:
                    raise
            time.sleep(wait)
        self._failing_since = None
        return response

    def late(self) -> HubUnreachable:
        """The error of an answer that does not come."""
        what = f"{self._at}: the hub takes longer than {ANSWER_S:.0f} s to answer"
        return HubUnreachable(what, remedy=CHECK_NETWORK)


def _bounded_stream(stream: Any, at: str, most: int | None) -> Any:
    """The bytes of an answer, for as long as they are not too many and do not drip."""
    import httpx2

    class BoundedStream(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            total, in_window, began = 0, 0, time.monotonic()
            for piece in stream:
                total += len(piece)
                in_window += len(piece)
                if most is not None and total > most:
                    raise HubUnreachable(f"{at}: the hub sends more than it should", need=f"at most {most} bytes")
                if (passed := time.monotonic() - began) > ANSWER_S:
                    if in_window < LEAST_RATE * passed:
                        what = f"{at}: the hub sends less than {LEAST_RATE} bytes per second"
                        raise HubUnreachable(what, remedy=CHECK_NETWORK)
                    in_window, began = 0, time.monotonic()
                yield piece

        def close(self) -> None:
            stream.close()

    return BoundedStream()


def _check_content_name(response: Any, at: str) -> None:
    """Raises HubUnreachable where a file's ETag, which huggingface_hub makes a path of, leads out of its cache."""
    headers = response.headers
    etag = headers.get("X-Linked-Etag") or headers.get("ETag")
    if response.is_error or etag is None or "X-Repo-Commit" not in headers:
        return
    name = etag.removeprefix("W/").strip('"')
    if any(part in ("", ".", "..") for part in re.split(r"[/\\]", name)):
        raise HubUnreachable(f"{at}: the hub gives a file an ETag that cannot be: {etag!r}", remedy=CHECK_NETWORK)


def _check_wait(response: Any, at: str, end: float) -> None:
    """Raises HubUnreachable for an answer that asks to wait past ``end``."""
    from huggingface_hub.utils._http import parse_ratelimit_headers

    if response.status_code not in RETRY_STATUS:
        return
    asked = response.headers.get("Retry-After", "")
    limits = parse_ratelimit_headers(response.headers)
    wait = max(int(asked) if asked.isdecimal() else 0, limits.reset_in_seconds if limits is not None else 0)
    if time.monotonic() + wait > end:
        what = f"{at}: the hub answers with error {response.status_code}"
        what += f" and asks to wait {wait} s" if wait else " again and again"
        remedy = "later again; with HF_TOKEN set, limits are higher"
        raise HubUnreachable(what, need=f"at most {MOST_WAIT_S:.0f} s", remedy=remedy)
