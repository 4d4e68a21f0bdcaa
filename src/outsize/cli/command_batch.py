"""``outsize batch``: text for a whole dataset of prompts, a token of all of them in one sweep."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict
from typing import Any

from outsize.cli import arguments, dataset_arguments
from outsize.cli.dataset_run import run_dataset
from outsize.engine.request import DatasetProgress, GenerateRequest, GenerateResult
from outsize.engine.text import Settings
from outsize.evals.records import Record, is_text, key_of
from outsize.evals.requests import Encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``outsize batch``."""
    arguments.add_model(parser)
    arguments.add_request(parser, dataset=True)
    dataset_arguments.add_data(parser)
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="of each prompt (default: 64)")
    parser.add_argument("--temperature", type=float, metavar="T", help="sample at this temperature (default: greedy)")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample from the most likely P of the probability")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely tokens")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="each id draws with its own (default: 0)")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help=r"end an answer before this; \n is a line's end"
    )


def run(args: argparse.Namespace) -> int:
    """Write a line of results for every line of DATA; what it took goes to stderr."""
    settings = Settings(args.max_new_tokens, args.temperature, args.top_p, args.top_k, seed=args.seed)
    stop = tuple(text.replace("\\n", "\n") for text in args.stop if text)
    return run_dataset(args, Texts(settings, stop), Texts.wanted)


class Texts:
    """``{"id", "prompt"}`` becomes ``{"id", "text", "new_tokens", "finish"}``."""

    name = "batch"
    wanted = ("prompt",)

    def __init__(self, settings: Settings, stop: tuple[str, ...]) -> None:
        self._settings = settings
        self._stop = stop

    @property
    def settings(self) -> Mapping[str, Any]:
        """How to generate."""
        return {**asdict(self._settings), "stop": list(self._stop)}

    def key_of(self, row: Mapping[str, Any]) -> str:
        """That of the line with its id."""
        return key_of(row)

    def request(self, line: Record, encoder: Encoder) -> GenerateRequest | str:
        """The tokens of a line."""
        prompt = line.fields["prompt"]
        if not is_text(prompt):
            return "the prompt is no text"
        return GenerateRequest(
            line.key,
            encoder.prompt(prompt),
            max_new_tokens=self._settings.max_new_tokens,
            temperature=self._settings.temperature or 0.0,
            top_p=self._settings.top_p,
            top_k=self._settings.top_k,
            seed=own_seed(self._settings.seed or 0, line.key),
            stop=self._stop,
        )

    def compute(
        self, model: Any, requests: Any, encoder: Encoder, tell: Callable[[DatasetProgress], None]
    ) -> Generator[GenerateResult, None, None]:
        """The results, as they are ready."""
        made: Generator[GenerateResult, None, None] = model.outsize.generate(
            requests, tokenizer=encoder.tokenizer, progress=tell
        )
        return made

    def row(self, line: Record, result: GenerateResult) -> Mapping[str, Any]:
        """The text; ``finish``: "eos", "stop" or "length", whatever ended it."""
        return {"text": result.text, "new_tokens": len(result.tokens), "finish": result.finish}


def own_seed(seed: int, key: str) -> int:
    """A seed for one id: the same in whatever order and company it is computed."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:7])
