"""Who may ask, and how much: before anything of a body is read. Plain ASGI, because it must come before everything."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from outsize.serve.problems import Problem

MOST_BODY = 8 << 20  # bytes: a million tokens, as ids or as text
MOST_BODIES = 64 << 20  # bytes of all that are being read or answered
BODY_S = 60.0  # that a body may take to arrive
LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN = ("/health",)


@dataclass(frozen=True, slots=True)
class Trust:
    """Who may ask.

    ``hosts``: names by which clients may call this server, () for any. One for this machine alone has its own names
    only, else a web page could reach it by a name that leads here. ``origins``: other servers' pages that may ask.
    """

    key: str | None = None
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    most_body: int = MOST_BODY

    def check(self, path: str, headers: Mapping[bytes, bytes]) -> None:
        """Raises Problem for a request that is not to be answered."""
        host = headers.get(b"host", b"").decode("latin-1")
        if self.hosts and _name(host) not in self.hosts:
            raise Problem(403, "this server has another name", code="host")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin not in self.origins and urlsplit_host(origin) != host:
            raise Problem(403, "pages of other servers may not ask here", code="origin")
        if self.key is not None and path not in OPEN and not self._has_key(headers):
            raise Problem(401, "the API key is missing or wrong", code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 15 or int(length) > self.most_body:
            raise Problem(413, f"the body is too large; need at most {self.most_body} bytes")

    def _has_key(self, headers: Mapping[bytes, bytes]) -> bool:
        assert self.key is not None
        given = headers.get(b"x-api-key", b"")
        kind, _, rest = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer":
            given = rest.strip()
        elif kind.lower() == b"basic":  # a browser asks its user for it
            try:
                given = base64.b64decode(rest, validate=True).partition(b":")[2]
            except ValueError:
                return False
        return hmac.compare_digest(given, self.key.encode())


class Guard:
    """An ASGI application before another one. Answers what is not to be answered by that itself."""

    def __init__(self, app: Any, trust: Trust) -> None:
        self._app, self._trust = app, trust
        self._held = 0  # bytes of bodies

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, with a body of bounded size that arrives in bounded time."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        path = scope["path"]
        parts: list[bytes] = []
        try:
            problem = None
            try:
                self._trust.check(path, headers)
                complete = await asyncio.wait_for(self._read(receive, parts), BODY_S)
            except Problem as refused:
                problem = refused
            except TimeoutError:
                problem = Problem(408, f"the body did not arrive within {BODY_S:g} s")
            if problem is not None:
                await _refuse(send, problem, path)
            elif complete:  # else the client has gone meanwhile
                await self._pass_on(scope, receive, send, b"".join(parts))
        finally:
            self._held -= sum(map(len, parts))

    async def _pass_on(self, scope: Any, receive: Any, send: Any, body: bytes) -> None:
        given = False

        async def whole() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, whole, send)

    async def _read(self, receive: Any, parts: list[bytes]) -> bool:
        """Reads a body into parts. Whether it is complete. Raises Problem."""
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return False
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            self._held += len(parts[-1])
            if size > self._trust.most_body:
                raise Problem(413, f"the body is too large; need at most {self._trust.most_body} bytes")
            if self._held > MOST_BODIES:
                raise Problem(503, "too many large requests at once", code="busy", retry_s=1.0)
            if not message.get("more_body", False):
                return True


def urlsplit_host(origin: str) -> str:
    """Name and port of an origin; nothing where it has none, as of a sandboxed page."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _name(host: str) -> str:
    """A Host header without its port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


async def _refuse(send: Any, problem: Problem, path: str) -> None:
    body = json.dumps(problem.body(path)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if problem.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="outsize"'))
    headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
    if problem.status in (408, 413, 503):  # what is still to come of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
