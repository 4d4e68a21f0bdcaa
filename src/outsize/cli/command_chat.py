"""``outsize chat``: a conversation with an instruct model, of which each turn computes only what is new."""

from __future__ import annotations

import argparse
import json
import queue
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from outsize import progress
from outsize.api import prepare
from outsize.cli import arguments
from outsize.cli.command_run import opened
from outsize.engine.chat_template import Message, chat_tokens
from outsize.engine.loader import check_fits
from outsize.engine.request import GenerateRequest
from outsize.engine.text import Settings
from outsize.errors import DoesNotFit, OutsizeError, UsageError
from outsize.models.resolve import resolve_spec

if TYPE_CHECKING:
    from outsize.engine.service import Service

CONTEXT = 4096  # tokens of a conversation, unless another number is asked for
HELP = "/system TEXT: new instructions; /reset: a new talk; /stats: what the last answer took; /quit, or ctrl-D"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="instructions before the conversation")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="of each answer (default: as many as the context has room for)"
    )
    arguments.add_sampling(parser)
    parser.add_argument("--seed", type=int, metavar="N", help="make sampling repeatable")
    arguments.add_request(parser)


def run(args: argparse.Namespace) -> int:
    settings = Settings(args.max_new_tokens or 1, args.temperature, args.top_p, args.top_k, seed=args.seed)
    options = arguments.options(args)
    if args.context is None:
        positions = resolve_spec(args.model, args.revision).max_positions
        options = replace(options, context=min(CONTEXT, positions or CONTEXT))
    with progress.bars(quiet=args.json) as bar:
        # Room for two: the turn that is computed begins with a copy of the turns before.
        opening = prepare(
            args.model,
            replace(options, batch=max(args.batch, 2)),
            on_download=bar("downloading"),
            on_convert=bar("converting"),
        )
    check_fits(opening.spec, opening.plan)
    context = opening.plan.request.context
    if not args.json:
        progress.note(progress.layers(opening.spec, opening.plan, unicode=progress.writes_unicode(sys.stderr)))
    with progress.bars(quiet=args.json) as bar, opened(opening, bar("loading")) as (model, tokenizer, _):
        chat_tokens(tokenizer, [{"role": "user", "content": "?"}])  # a model without a template says so at once
        kept = opening.spec.kv_bytes_per_token * context
        with model.outsize.serving(tokenizer, prefix_bytes=kept) as service:
            talk = Talk(service, settings, context, args.max_new_tokens, quiet=args.json)
            talk.system(args.system or "")
            if not args.json:
                progress.note(HELP)
            _converse(talk)
    if args.json:
        print(json.dumps({"schema": 1, "messages": talk.messages, "turns": [asdict(turn) for turn in talk.turns]}))
    return 0


@dataclass(frozen=True, slots=True)
class Turn:
    """What one answer took. ``cached_tokens``: of the prompt, those that earlier turns had computed."""

    prompt_tokens: int
    cached_tokens: int
    new_tokens: int
    first_token_s: float
    token_s: float
    predicted_s: float
    finish: str

    def __str__(self) -> str:
        rate = f"{1 / self.token_s:.3g} tokens/s" if self.token_s else "no further token"
        computed = f"{self.prompt_tokens - self.cached_tokens} of {self.prompt_tokens} tokens computed"
        return f"{computed}, first token {self.first_token_s:.2f} s, {self.new_tokens} new ones, {rate}"


class Talk:
    """A conversation and its model."""

    def __init__(
        self, service: Service, settings: Settings, context: int, most_new: int | None, *, quiet: bool
    ) -> None:
        self.messages: list[Message] = []
        self.turns: list[Turn] = []
        self._service = service
        self._settings = settings
        self._context = context
        self._most_new = most_new
        self._quiet = quiet

    def system(self, text: str) -> None:
        """Sets the instructions, and begins anew."""
        self.messages = [{"role": "system", "content": text}] if text else []

    def reset(self) -> None:
        """Forgets all but the instructions."""
        self.messages = [message for message in self.messages if message["role"] == "system"]

    def ask(self, text: str) -> None:
        """Says something, and streams the answer. An interrupt ends the answer; what there is of it stays said."""
        from outsize.engine.answer import Wish

        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = chat_tokens(self._service.tokenizer, messages)
        left = self._context - len(prompt)
        if left < 1:
            raise UsageError(
                f"the conversation has {len(prompt)} tokens", need=f"fewer than {self._context}", remedy="/reset"
            )
        settings, answers = self._settings, sum(m["role"] == "assistant" for m in messages)
        request = GenerateRequest(
            "",
            prompt,
            max_new_tokens=min(left, self._most_new or left),
            temperature=settings.temperature or 0.0,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=(time.time_ns() if settings.seed is None else settings.seed + answers) % (1 << 63),
        )
        answer = self._listen(Wish(request), len(prompt))
        self.messages = [*messages, {"role": "assistant", "content": answer}]

    def _listen(self, wish: Any, prompt_tokens: int) -> str:
        from outsize.engine.answer import Ended, Failed, Token

        events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        began = time.monotonic()
        ticket = self._service.submit([wish], lambda number, event: events.put(event))
        moments: list[float] = []
        text, event = "", None
        with _interrupts(lambda: self._service.cancel(ticket)):
            while not isinstance(event, Ended | Failed):
                event = events.get()
                if isinstance(event, Token):
                    moments.append(time.monotonic())
                if isinstance(event, Token | Ended):
                    text += event.text
                    if not self._quiet:
                        print(event.text, end="", flush=True)
            if not self._quiet:
                print(flush=True)
        if isinstance(event, Failed) and not ticket.answers[0].cancelled:
            raise OutsizeError(event.error)
        further = len(moments) - 1
        finish = event.finish if isinstance(event, Ended) else "interrupted"
        self.turns.append(
            Turn(
                prompt_tokens,
                ticket.answers[0].cached,
                len(moments),
                moments[0] - began if moments else 0.0,
                (moments[-1] - moments[0]) / further if further > 0 else 0.0,
                ticket.predicted_s,
                finish,
            )
        )
        return text


@contextmanager
def _interrupts(do: Callable[[], None]) -> Iterator[None]:
    """Lets ctrl-C do something else than end the command."""
    before = signal.signal(signal.SIGINT, lambda number, frame: do())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _converse(talk: Talk) -> None:
    """Reads lines until the last; what is wrong with one is told, and the talk goes on."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  input() edits lines with it
    commands: dict[str, Callable[[str], None]] = {
        "/reset": lambda rest: talk.reset(),
        "/system": talk.system,
        "/stats": lambda rest: progress.note(str(talk.turns[-1]) if talk.turns else "nothing was said yet"),
        "/help": lambda rest: progress.note(HELP),
    }
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
            word, _, rest = line.partition(" ")
            if word in ("/quit", "/exit"):
                return
            if word in commands:
                commands[word](rest.strip())
            elif word.startswith("/") and word[1:].isalpha():
                progress.note(f"there is no {word}; {HELP}")
            elif line:
                talk.ask(line)
        except EOFError:
            return
        except KeyboardInterrupt:
            print()
        except (UsageError, DoesNotFit) as error:
            progress.note(f"outsize: {error}")
