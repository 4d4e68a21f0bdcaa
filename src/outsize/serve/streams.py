"""Answers to clients: whole, or in pieces as server-sent events; and clients that have gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import StreamingResponse

from outsize.serve.backend import Listening
from outsize.serve.problems import Problem

PING = ": ping\n\n"
DONE = "data: [DONE]\n\n"
Result = TypeVar("Result")


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


def sse(data: Mapping[str, Any], event: str | None = None) -> str:
    """One server-sent event."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n" if event is None else f"event: {event}\ndata: {text}\n\n"


def streaming(listening: Listening, pieces: AsyncIterator[str], path: str) -> StreamingResponse:
    """A response whose headers go out at once. What fails later is its last event."""

    async def body() -> AsyncIterator[str]:
        yield PING
        try:
            async for piece in pieces:
                yield piece
        except Problem as problem:
            yield sse(problem.body(path), "error" if path.startswith("/v1/messages") else None)

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **listening.headers}
    return StreamingResponse(body(), media_type="text/event-stream", headers=headers)


async def unless_gone(request: Request, answer: Awaitable[Result]) -> Result:
    """The answer. Raises ClientLeft as soon as the client has gone."""
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientLeft
        return work.result()
    finally:
        for task in (work, gone):
            task.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
