"""The guard before everything, with applications that are not there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from outsize.engine.service import Busy, Closing
from outsize.errors import DoesNotFit, ModelChanged
from outsize.serve import guard
from outsize.serve.guard import Guard, Trust
from outsize.serve.problems import Problem, problem_of


def ask(app: Any, parts: Iterator[dict[str, Any]] | list[dict[str, Any]], *headers: tuple[bytes, bytes]) -> Any:
    """Status, headers and body of what is answered; None where nothing is."""
    sent: list[dict[str, Any]] = []
    coming = iter(parts)

    async def receive() -> dict[str, Any]:
        part = next(coming, None)
        if part is None:
            await asyncio.sleep(60)
        assert part is not None
        return part

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/v1/messages", "headers": list(headers)}
    asyncio.run(app(scope, receive, send))
    return (sent[0]["status"], dict(sent[0]["headers"]), json.loads(sent[1]["body"])) if sent else None


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(len(body)).encode()})


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_bodies_come_whole() -> None:
    app = Guard(echo, Trust())
    assert ask(app, [part(b"ab", more=True), part(b"c")])[2] == 3
    assert ask(app, [part(b"ab", more=True), {"type": "http.disconnect"}]) is None
    assert app._held == 0


def test_bodies_are_bounded_whatever_they_say_of_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Guard(echo, Trust(most_body=10))
    assert ask(app, [], (b"content-length", b"11"))[0] == 413
    assert ask(app, [part(b"x" * 6, more=True), part(b"x" * 6)])[0] == 413
    assert app._held == 0
    monkeypatch.setattr(guard, "MOST_BODIES", 8)
    status, headers, body = ask(app, [part(b"x" * 9)])
    assert (status, headers[b"retry-after"], body["error"]["type"]) == (503, b"1", "overloaded_error")


def test_a_body_that_does_not_arrive_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.05)
    assert ask(Guard(echo, Trust()), [part(b"ab", more=True)])[0] == 408


def test_errors_of_the_engine_have_their_status() -> None:
    busy = problem_of(Busy("full", 12.3, have="9 sequences"))
    assert (busy.status, busy.headers) == (503, {"Retry-After": "13", "X-Predicted-Seconds": "12.300"})
    assert problem_of(Closing("closing")).status == 503
    never = problem_of(DoesNotFit("too large", need="2 GiB", have="1 GiB"))
    assert (never.status, never.message) == (400, "too large; need 2 GiB, have 1 GiB")
    assert problem_of(ModelChanged("gone")).status == 500
    assert Problem(404, "no").body("/v1/x")["error"]["type"] == "not_found_error"
