"""The routes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

import outsize
from outsize.planner.plan_json import plans_to_json
from outsize.serve import chat, messages, responses
from outsize.serve.backend import Backend, Listening
from outsize.serve.bodies import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    MessagesBody,
    ResponsesBody,
    TokenizeBody,
)
from outsize.serve.completions import Completion
from outsize.serve.metrics import Metrics
from outsize.serve.page import page
from outsize.serve.problems import Problem
from outsize.serve.streams import ClientLeft, streaming, unless_gone
from outsize.serve.talks import Ask, Talk

LEFT = 499  # nobody sees it


def create_app(backend: Backend) -> FastAPI:
    """The application for a model."""
    metrics = Metrics(backend.service)
    backend.on_end.append(metrics.note)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        backend.close()

    app = FastAPI(
        title="outsize", version=outsize.__version__, docs_url=None, redoc_url=None, lifespan=lifespan, responses=ERRORS
    )
    _handle_errors(app)
    _add_generation(app, backend)
    _add_models(app, backend)
    _add_state(app, backend, metrics)
    _add_tokens(app, backend)
    return app


def _add_models(app: FastAPI, backend: Backend) -> None:
    spec = backend.opening.spec
    own = {"id": backend.name, "object": "model", "created": int(time.time()), "owned_by": "outsize"}
    meta = {"n_params": spec.parameters, "size": spec.weight_bytes}
    card = {**own, "max_model_len": backend.context, "meta": meta}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        backend.check_model(name)
        return card


def _add_state(app: FastAPI, backend: Backend, metrics: Metrics) -> None:
    opening, service = backend.opening, backend.service

    @app.get("/health")
    async def health() -> JSONResponse:
        if service.broken is not None:
            return JSONResponse({"status": "broken", "error": str(service.broken)}, 503)
        return JSONResponse({"status": "ok" if service.load().loaded else "loading"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def all_metrics() -> Response:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/plan")
    async def plan(now: bool = False) -> dict[str, Any]:
        sweep = service.sweep
        done = {"sweeps": sweep.sweeps, "disk_bytes": sweep.bytes_read, "waited_s": sweep.waited_s}
        doing = {"name": backend.name, **asdict(service.load()), **done}
        if now:
            return {"now": doing}
        shown = plans_to_json(opening.spec, opening.machine, opening.plan.request, [opening.plan], 0)
        return {**shown, "now": doing}

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def root() -> HTMLResponse:
        text, headers = page()
        return HTMLResponse(text, headers=headers)


def _add_tokens(app: FastAPI, backend: Backend) -> None:
    vocabulary = backend.opening.spec.vocab_size

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        text = body.prompt if body.prompt is not None else body.content
        if body.messages is not None:
            tokens, _ = await backend.chat(body.messages)
        elif text is not None:
            tokens = await backend.encode(text, special=body.add_special_tokens)
        else:
            raise Problem(400, "there is no prompt and no messages", param="prompt")
        return {"tokens": tokens, "count": len(tokens), "max_model_len": backend.context}

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, Any]:
        if any(token >= vocabulary for token in body.tokens):
            raise Problem(400, f"a token is none of the model's; they are 0..{vocabulary - 1}", param="tokens")
        text = await backend.decode(body.tokens)
        return {"prompt": text, "content": text}


def _add_generation(app: FastAPI, backend: Backend) -> None:
    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request, body: CompletionBody) -> Response:
        backend.check_model(body.model)
        completion = await Completion.of(backend, body)
        listening = backend.ask(completion.wishes, _client(request, body.user))
        if body.stream:
            return streaming(listening, completion.pieces(listening), request.url.path)
        replies = await unless_gone(request, listening.all())
        return JSONResponse(completion.whole(listening, replies), headers=listening.headers)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        return await talked(request, body.user, body, chat.ask_of, chat.Chat)

    @app.post("/v1/responses", response_model=None)
    async def all_responses(request: Request, body: ResponsesBody) -> Response:
        return await talked(request, body.user, body, responses.ask_of, responses.Response)

    @app.post("/v1/messages", response_model=None)
    async def all_messages(request: Request, body: MessagesBody) -> Response:
        return await talked(request, None, body, messages.ask_of, messages.Answer)

    async def talked(
        request: Request, user: str | None, body: Any, ask_of: Callable[[Any], Ask], form: Callable[..., Any]
    ) -> Response:
        """An answer to a conversation, in the form of one of the routes."""
        backend.check_model(body.model)
        with _understood():
            ask = ask_of(body)
        talk = await Talk.of(backend, ask)
        listening: Listening = backend.ask(talk.wishes, _client(request, user))
        answer = form(backend, body, talk)
        if body.stream:
            return streaming(listening, answer.pieces(listening), request.url.path)
        await unless_gone(request, talk.all(listening))
        return JSONResponse(answer.whole(listening), headers=listening.headers)


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def told(request: Request, problem: Problem) -> JSONResponse:
        return JSONResponse(problem.body(request.url.path), problem.status, headers=problem.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")[:200]
        return await told(request, Problem(400, f"{where or 'the body'}: {first['msg']}", param=where or None))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        response = await told(request, Problem(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(ClientLeft)
    async def left(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=LEFT)


@contextmanager
def _understood() -> Iterator[None]:
    """Fields of a form that nobody foresaw are the client's mistake."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, KeyError, RecursionError) as error:
        raise Problem(400, f"a field has another form than expected: {error}") from error


def _client(request: Request, user: str | None) -> str:
    """Who takes turns with others: an address, a program, a user that it names."""
    address = request.client.host if request.client else ""
    return f"{address} {request.headers.get('user-agent', '')[:100]} {user or ''}"


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "what was asked makes no sense, or can never fit"},
    401: {"description": "the API key is missing or wrong"},
    403: {"description": "another host or origin"},
    404: {"description": "another model"},
    413: {"description": "the body is too large"},
    503: {"description": "too much is waiting; Retry-After says for how long"},
}
