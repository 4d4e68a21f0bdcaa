"""``outsize score``: how likely each choice is behind its context, for a whole dataset in as few sweeps as can be."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Generator, Mapping
from typing import Any

from outsize.cli import arguments, dataset_arguments
from outsize.cli.dataset_run import run_dataset
from outsize.engine.request import DatasetProgress, ScoreRequest, ScoreResult
from outsize.evals.records import Record, is_text, key_of
from outsize.evals.requests import Encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``outsize score``."""
    arguments.add_model(parser)
    arguments.add_request(parser, dataset=True)
    dataset_arguments.add_data(parser)


def run(args: argparse.Namespace) -> int:
    """Write a line of results for every line of DATA; what it took goes to stderr."""
    return run_dataset(args, Scores(), Scores.wanted)


class Scores:
    """``{"id", "context", "choices"}`` becomes ``{"id", "logprobs", "tokens", "greedy", "best"}``."""

    name = "score"
    wanted = ("context", "choices")
    settings: Mapping[str, Any] = {}

    def key_of(self, row: Mapping[str, Any]) -> str:
        """That of the line with its id."""
        return key_of(row)

    def request(self, line: Record, encoder: Encoder) -> ScoreRequest | str:
        """The tokens of a line."""
        context, choices = line.fields["context"], line.fields["choices"]
        if not is_text(context):
            return "the context is no text"
        if not isinstance(choices, list) or not choices or not all(map(is_text, choices)):
            return "the choices are no list of texts, one at least"
        return encoder.score_request(line.key, context, choices)

    def compute(
        self, model: Any, requests: Any, encoder: Encoder, tell: Callable[[DatasetProgress], None]
    ) -> Generator[ScoreResult, None, None]:
        """The results, as they are ready."""
        scored: Generator[ScoreResult, None, None] = model.outsize.score(requests, progress=tell)
        return scored

    def row(self, line: Record, result: ScoreResult) -> Mapping[str, Any]:
        """Sums of log-probabilities; ``best``: the index of the largest."""
        best = max(range(len(result.logprobs)), key=result.logprobs.__getitem__)
        return {
            "logprobs": list(result.logprobs),
            "tokens": list(result.tokens),
            "greedy": list(result.greedy),
            "best": best,
        }
