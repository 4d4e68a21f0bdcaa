"""What ``outsize plan --dataset`` adds: sweeps, micro-batches and seconds of a whole dataset, for each format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outsize.cli import command_score
from outsize.cli.table import table
from outsize.engine.chat_template import as_messages, chat_tokens
from outsize.engine.request import GenerateRequest, ScoreRequest, is_text
from outsize.errors import UsageError
from outsize.evals.dataset_model import dataset_of, plan_for
from outsize.evals.records import Record, read_records
from outsize.evals.requests import Encoder
from outsize.evals.token_counter import TokenCounter
from outsize.machine.machine import Machine
from outsize.models.resolve import find_folder
from outsize.models.spec import ModelSpec
from outsize.options import LoadOptions
from outsize.planner.dataset_cost import Dataset, DatasetPrediction
from outsize.planner.dataset_plan import choose_for_dataset
from outsize.planner.plan import WEIGHTS, Plan
from outsize.sizes import format_size


@dataclass(frozen=True, slots=True)
class Forecast:
    """A dataset, and a plan and what it would take for each format; ``best``: the one to choose."""

    dataset: Dataset
    plans: Sequence[Plan]
    predictions: Sequence[DatasetPrediction]
    best: int

    def add_to(self, shown: dict[str, Any]) -> dict[str, Any]:
        """The object of ``plan --json`` with the dataset, and under each plan what it takes."""
        tokens = self.dataset.tokens
        for plan, prediction in zip(shown["plans"], self.predictions, strict=True):
            plan["dataset"] = asdict(prediction)
        about = {"sequences": len(tokens), "tokens": sum(tokens), "longest": max(tokens)}
        return {**shown, "dataset": {**about, "new_tokens": self.dataset.new_tokens}}

    def lines(self) -> list[str]:
        tokens, new = self.dataset.tokens, self.dataset.new_tokens
        rows = [("", "weights", "batch", "sweeps", "micro-batches", "seconds", "from disk")]
        for index, (plan, prediction) in enumerate(zip(self.plans, self.predictions, strict=True)):
            figures = (
                str(prediction.sweeps),
                str(prediction.micro_batches),
                f"{prediction.seconds:.3g} s",
                format_size(prediction.disk_bytes),
            )
            mark = ">" if index == self.best and plan.fits else ""
            rows.append((mark, plan.weights, str(plan.request.batch), *(figures if plan.fits else ("-",) * 4)))
        doing = f"{new} new tokens each" if new else "scored"
        return [
            f"the dataset: {len(tokens)} sequences, {sum(tokens)} tokens, the longest {max(tokens)}, {doing}",
            *table(rows),
        ]


def forecast(args: argparse.Namespace, options: LoadOptions, spec: ModelSpec, machine: Machine) -> Forecast:
    """What a dataset would take. Raises UsageError for one that is empty, or that cannot be counted."""
    dataset = _dataset(args, spec)
    if not dataset.tokens or min(dataset.tokens) < 1 or dataset.new_tokens < 0:
        raise UsageError("there is nothing to plan for", need="a sequence of one token at least")
    formats = (args.weights,) if args.weights else ("native",) if spec.formats else WEIGHTS
    found = [plan_for(spec, machine, weights, dataset, options) for weights in formats]
    plans, predictions = [plan for plan, _ in found], [prediction for _, prediction in found]
    return Forecast(dataset, plans, predictions, choose_for_dataset(plans, predictions))


def _dataset(args: argparse.Namespace, spec: ModelSpec) -> Dataset:
    new_tokens = args.max_new_tokens or 0
    if args.sequences is not None:
        if args.tokens is None or args.dataset is not None:
            raise UsageError("--sequences goes with --tokens, and not with --dataset")
        return Dataset((args.tokens,) * args.sequences, new_tokens)
    records = read_records(args.dataset)
    folder = find_folder(args.model, args.revision)
    if folder is None or folder.path is None:
        raise UsageError(
            f"{args.model}: no tokenizer on this machine counts the tokens of {args.dataset}",
            remedy="--sequences N --tokens N, or download the model first",
        )
    counter = TokenCounter(folder.path)
    encoder = Encoder(counter, argparse.Namespace(**folder.config), encoder_decoder=spec.encoder_decoder)
    found = [dataset_of(_requests(record, encoder, counter)) for record in records if not record.error]
    tokens = [count for one in found for count in one.tokens]
    return Dataset(tuple(tokens), new_tokens, max((one.scored for one in found), default=1))


def _requests(
    record: Record, encoder: Encoder, counter: TokenCounter
) -> Sequence[GenerateRequest] | Sequence[ScoreRequest]:
    """What ``batch`` or ``score`` would ask for a line; nothing where they would say why they cannot."""
    fields = record.fields
    try:
        if "messages" in fields:
            return [GenerateRequest("", chat_tokens(counter.whole, as_messages(fields["messages"])))]
    except UsageError:
        return []
    if is_text(fields.get("prompt")):
        return [GenerateRequest("", encoder.prompt(fields["prompt"]))]
    if "context" in fields and "choices" in fields:
        asked = command_score.request(record, encoder)
        return [] if isinstance(asked, str) else [asked]
    return []
