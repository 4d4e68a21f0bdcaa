"""``outsize batch``: text for a whole dataset of prompts or conversations, a token of all of them in one sweep."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from outsize.cli import arguments, dataset
from outsize.engine.request import GenerateRequest, GenerateResult, is_text
from outsize.engine.text import Settings
from outsize.errors import UsageError
from outsize.evals.dataset_run import Job
from outsize.evals.records import Record, key_of
from outsize.evals.requests import Encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    arguments.add_request(parser, dataset=True)
    arguments.add_trace(parser)
    dataset.add_data(parser)
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help=f"of each prompt {arguments.NEW_TOKENS_HELP}")
    arguments.add_sampling(parser)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="each id draws with its own (default: 0)")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help=r"end an answer before this; \n is a line's end"
    )


def run(args: argparse.Namespace) -> int:
    asked = args.max_new_tokens is not None
    settings = Settings(
        args.max_new_tokens if asked else arguments.NEW_TOKENS, args.temperature, args.top_p, args.top_k, seed=args.seed
    )
    stop = tuple(text.replace("\\n", "\n") for text in args.stop if text)

    def request(line: Record, encoder: Encoder) -> GenerateRequest | str:
        prompt = line.fields.get("prompt", "")
        if not is_text(prompt):
            return "the prompt is no text"
        try:
            tokens = encoder.chat(line.fields["messages"]) if "messages" in line.fields else encoder.prompt(prompt)
        except UsageError as error:  # of this line's messages
            return str(error)
        return GenerateRequest(
            line.key,
            tokens,
            max_new_tokens=settings.max_new_tokens if asked else encoder.new_tokens(tokens, arguments.NEW_TOKENS),
            temperature=settings.temperature or 0.0,
            top_p=settings.top_p,
            top_k=settings.top_k,
            seed=own_seed(settings.seed or 0, line.key),
            stop=stop,
        )

    return dataset.run_dataset(
        args, Job("batch", {**asdict(settings), "stop": list(stop)}, key_of, request, row), (), ("prompt", "messages")
    )


def row(line: Record, result: GenerateResult) -> Mapping[str, Any]:
    """The text; ``finish``: "eos", "stop" or "length", whatever ended it."""
    return {"text": result.text, "new_tokens": len(result.tokens), "finish": result.finish}


def own_seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:7])
