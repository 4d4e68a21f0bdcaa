"""A server whose model says what the last message says: the interface alone, without an engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import uvicorn

from outsize.engine.answer import Ended, Event, Failed, Likely, Token, Wish
from outsize.engine.service import Load, Ticket
from outsize.serve.app import create_app
from outsize.serve.backend import Backend
from outsize.serve.guard import Guard, Trust
from outsize.serve.server import Protocol, Server, listen


class Letters:
    """A tokenizer of characters."""

    chat_template = "there is one"

    def apply_chat_template(self, messages: Sequence[Any], **kwargs: Any) -> str:
        if kwargs.get("tools"):
            assert kwargs["tools"][0]["function"]["name"] == "weather"
        return str(messages[-1]["content"])

    def encode(self, text: str, **kwargs: Any) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, tokens: Sequence[int], **kwargs: Any) -> str:
        return "".join(map(chr, tokens))


class Scripted:
    """A service that answers with the prompt, a letter at a time; "fail" fails, "wait" waits."""

    broken = None

    def __init__(self) -> None:
        self.cancelled = 0
        self.asked: list[Wish] = []
        self.model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=0))
        stats = SimpleNamespace(waited_s=0.0)
        self.sweep = SimpleNamespace(sweeps=1, bytes_read=0, stream=SimpleNamespace(stats=stats))

    def submit(self, wishes: Sequence[Wish], tell: Callable[[int, Event], None], client: str = "") -> Ticket:
        self.asked += wishes
        ticket = SimpleNamespace(predicted_s=1.5, cancelled=False)

        def work() -> None:
            for number, wish in enumerate(wishes):
                text = "".join(map(chr, wish.request.prompt))
                if text == "fail":
                    tell(number, Failed("it failed"))
                    continue
                while text == "wait" and not ticket.cancelled:
                    time.sleep(0.01)
                most = wish.request.max_new_tokens
                for letter in text[:most]:
                    top = ((ord(letter), -0.5), (ord("?"), -1.0))[: wish.logprobs or 0]
                    tell(number, Token(ord(letter), letter, Likely(ord(letter), -0.5, top)))
                tell(number, Ended("", "length" if len(text) > most else "eos", len(text), 0))

        threading.Thread(target=work, daemon=True).start()
        return ticket  # type: ignore[return-value]

    def cancel(self, ticket: Any) -> None:
        ticket.cancelled = True
        self.cancelled += 1

    def load(self) -> Load:
        return Load(0, 0, True, 0.0, 0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@contextmanager
def scripted(trust: Trust | None = None) -> Iterator[tuple[str, Scripted]]:
    """The address of a server, and its service."""
    service = Scripted()
    spec = SimpleNamespace(vocab_size=1 << 20, parameters=1, weight_bytes=2)
    opening: Any = SimpleNamespace(spec=spec, machine=None, plan=SimpleNamespace(request=SimpleNamespace(context=4096)))
    backend = Backend(service, Letters(), opening, "scripted", {})  # type: ignore[arg-type]
    sock = listen("127.0.0.1", 0)
    app = Guard(create_app(backend), trust or Trust())
    server = Server(uvicorn.Config(app, http=Protocol, ws="none", log_level="critical", access_log=False))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[sock])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}", service
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
