"""``outsize score``: how likely each choice is after its context, for a whole dataset in as few sweeps as can be."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from outsize.cli import arguments, dataset
from outsize.engine.request import ScoreRequest, ScoreResult, is_text
from outsize.evals.dataset_run import Job
from outsize.evals.records import Record, key_of
from outsize.evals.requests import Encoder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    arguments.add_request(parser, dataset=True)
    arguments.add_trace(parser)
    dataset.add_data(parser)


def run(args: argparse.Namespace) -> int:
    return dataset.run_dataset(args, Job("score", {}, key_of, request, row), ("context", "choices"))


def request(line: Record, encoder: Encoder) -> ScoreRequest | str:
    context, choices = line.fields["context"], line.fields["choices"]
    if not is_text(context):
        return "the context is no text"
    if not isinstance(choices, list) or not choices or not all(map(is_text, choices)):
        return "the choices are no list of texts, one at least"
    return encoder.score_request(line.key, context, choices)


def row(line: Record, result: ScoreResult) -> Mapping[str, Any]:
    """Sums of log-probabilities; ``best``: the index of the largest."""
    return {
        "logprobs": list(result.logprobs),
        "tokens": list(result.tokens),
        "greedy": list(result.greedy),
        "best": max(range(len(result.logprobs)), key=result.logprobs.__getitem__),
    }
