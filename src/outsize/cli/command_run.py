"""``outsize run``: text from a prompt, on whatever this machine has."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from outsize import progress
from outsize.api import prepare
from outsize.cli import arguments, trace_file
from outsize.engine.chat_template import Message, as_messages, chat_tokens
from outsize.engine.loader import Opening, check_fits, open_model
from outsize.engine.text import Generation, Settings, fitting, generate
from outsize.errors import OutsizeError, UsageError, said
from outsize.evals.token_counter import TokenCounter
from outsize.machine.detect import identity
from outsize.machine.history import history_path, remember
from outsize.planner.plan import Plan
from outsize.sizes import format_size
from outsize.store.trace import Trace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="the prompt (default: standard input)")
    parser.add_argument("--prompt-file", type=Path, metavar="FILE", help="take the prompt from a file")
    parser.add_argument(
        "--chat", action="store_true", help="ask by the model's chat template, as an instruct model wants"
    )
    parser.add_argument("--system", metavar="TEXT", help="instructions before the prompt; with --chat")
    parser.add_argument(
        "--json-messages",
        type=Path,
        metavar="FILE",
        help='a conversation to answer: [{"role": ..., "content": ...}, ...]',
    )
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help=arguments.NEW_TOKENS_HELP)
    arguments.add_sampling(parser)
    parser.add_argument("--beams", type=int, default=1, metavar="N", help="beam search (default: 1, none)")
    parser.add_argument("--seed", type=int, metavar="N", help="make sampling repeatable")
    arguments.add_request(parser)
    arguments.add_trace(parser)


def run(args: argparse.Namespace) -> int:
    trace = trace_file.check(args.trace)
    asked = args.max_new_tokens is not None
    new_tokens = args.max_new_tokens if asked else arguments.NEW_TOKENS
    settings = Settings(new_tokens, args.temperature, args.top_p, args.top_k, args.beams, args.seed)
    asked_for = Messages(read_messages(args)) if args.chat or args.json_messages or args.system else None
    prompt = "" if asked_for else read_prompt(args.prompt, args.prompt_file)
    opening, prompt_tokens = _prepare(args, asked_for or prompt, settings)
    settings = fitting(settings, prompt_tokens, opening.spec, asked=asked)
    check_fits(opening.spec, opening.plan)
    spec, plan = opening.spec, opening.plan
    if not args.json:
        progress.note(f"{spec.id}: {format_size(spec.weight_bytes)} of {spec.dtype}, {len(spec.blocks)} blocks")
        progress.note(progress.layers(spec, plan, unicode=progress.writes_unicode(sys.stderr)))
    on_text = (lambda text: None) if args.json else _to_stdout
    with progress.bars(quiet=args.json) as bar, opened(opening, bar("loading"), trace) as (model, tokenizer, began):
        what = prompt if asked_for is None else asked_for.tokens
        result = generate(model, tokenizer, what, settings, began, on_text)
    trace_file.write(trace, args.trace)
    expected = plan.predicted
    seconds = {"first token": (expected.first_token_s, result.first_token_s)}
    if result.token_s:
        seconds["token"] = (expected.token_s, result.token_s)
    remember(history_path(), identity(), spec.id, plan.weights, seconds)
    if args.json:
        predicted = {"first_token_s": expected.first_token_s, "token_s": expected.token_s}
        print(json.dumps({"schema": 1, "weights": plan.weights, **asdict(result), "predicted": predicted}))
    else:
        print()
        progress.note(_result(result, plan))
    return 0


@contextmanager
def opened(
    opening: Opening, on_load: progress.Advance | None = None, trace: Trace | None = None
) -> Iterator[tuple[Any, Any, float]]:
    """A model, its tokenizer and when its load began. Closes the model, whatever happens."""
    began = time.monotonic()
    model = open_model(opening, on_load or (lambda done, total: None), trace)
    try:
        assert opening.folder.path is not None  # open_model has seen to it
        from outsize.models.tracing.pretrained import load_tokenizer

        yield model, load_tokenizer(opening.folder.path), began
    finally:
        model.outsize.close()


def read_prompt(argument: str | None, file: Path | None) -> str:
    """The prompt from the argument, a file or standard input. Raises UsageError for none, or for two."""
    if argument is not None and file is not None:
        raise UsageError("there are two prompts", remedy="PROMPT or --prompt-file, not both")
    if file is not None:
        try:
            return file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise OutsizeError(f"{file} cannot be read: {error}") from error
    if argument is not None and argument != "-":
        text = argument
    elif argument is None and sys.stdin.isatty():
        raise UsageError("there is no prompt", remedy="outsize run MODEL PROMPT, or pipe one in")
    else:
        text = sys.stdin.read()
    if not text:
        raise UsageError("the prompt is empty")
    return text


class Messages:
    """A conversation to be answered; ``tokens``: what its model's template makes of it, once that is known."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages
        self.tokens: tuple[int, ...] = ()

    def count(self, folder: Path) -> int:
        """Its tokens. Only transformers runs templates, so it is imported before anything is read."""
        from outsize.models.tracing.pretrained import load_tokenizer

        self.tokens = chat_tokens(load_tokenizer(folder), self._messages)
        return len(self.tokens)


def read_messages(args: argparse.Namespace) -> list[Message]:
    """The conversation that the options describe. Raises UsageError for none, or for two."""
    system = [{"role": "system", "content": args.system}] if args.system else []
    if args.json_messages is None:
        if not args.chat:
            raise UsageError("--system is for instruct models", remedy="--chat")
        return as_messages([*system, {"role": "user", "content": read_prompt(args.prompt, args.prompt_file)}])
    if args.prompt is not None or args.prompt_file is not None:
        raise UsageError("there are two prompts", remedy="PROMPT or --json-messages, not both")
    try:
        data = json.loads(read_prompt(None, args.json_messages))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{args.json_messages} is not JSON: {said(error)}") from error
    messages = as_messages(data.get("messages") if isinstance(data, dict) else data)
    if system and messages[0]["role"] == "system":
        raise UsageError("there are two system messages", remedy="--system or that of --json-messages, not both")
    return [*system, *messages]


def _prepare(args: argparse.Namespace, prompt: str | Messages, settings: Settings) -> tuple[Opening, int]:
    """What was decided, and the prompt's tokens."""
    options = replace(arguments.options(args), batch=max(args.batch, settings.beams))
    counted: list[int] = []

    def tokens(folder: Path) -> int:
        counted.append(prompt.count(folder) if isinstance(prompt, Messages) else TokenCounter(folder).count(prompt))
        return counted[0]

    with progress.bars(quiet=args.json) as bar:
        opening = prepare(
            args.model,
            options,
            prompt=tokens,
            new_tokens=settings.max_new_tokens,
            on_download=bar("downloading"),
            on_convert=bar("converting"),
        )
    return opening, counted[0]


def _to_stdout(text: str) -> None:
    print(text, end="", flush=True)


def _result(result: Generation, plan: Plan) -> str:
    expected = plan.predicted
    first = f"first token {result.first_token_s:.2f} s (predicted {expected.first_token_s:.2f})"
    rate = f"{1 / result.token_s:.3g} tokens/s" if result.token_s else "no further token"
    further = f"then {rate}, {result.token_s:.3f} s/token (predicted {expected.token_s:.3f})"
    disk = f"{format_size(result.disk_bytes_per_token)} a token from disk"
    return f"{first}, {further}, {disk}, peak memory {format_size(result.peak_ram_bytes)}"
