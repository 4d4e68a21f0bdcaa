"""What ``outsize plan --dataset`` adds: sweeps, micro-batches and seconds of a whole dataset, for each format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from outsize.cli.table import table
from outsize.errors import UsageError
from outsize.evals.dataset_model import plan_for
from outsize.evals.records import Record, read_records
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
    dataset = _dataset(args)
    if not dataset.tokens or min(dataset.tokens) < 1 or dataset.new_tokens < 0:
        raise UsageError("there is nothing to plan for", need="a sequence of one token at least")
    formats = (args.weights,) if args.weights else ("native",) if spec.formats else WEIGHTS
    found = [plan_for(spec, machine, weights, dataset, options) for weights in formats]
    plans, predictions = [plan for plan, _ in found], [prediction for _, prediction in found]
    return Forecast(dataset, plans, predictions, choose_for_dataset(plans, predictions))


def _dataset(args: argparse.Namespace) -> Dataset:
    new_tokens = args.max_new_tokens or 0
    if args.sequences is not None:
        if args.tokens is None or args.dataset is not None:
            raise UsageError("--sequences goes with --tokens, and not with --dataset")
        return Dataset((args.tokens,) * args.sequences, new_tokens)
    records = read_records(args.dataset)
    folder = find_folder(args.model, args.revision)
    counter = TokenCounter(folder.path) if folder is not None and folder.path is not None else None
    if counter is None or not counter.exact:
        raise UsageError(
            f"{args.model}: no tokenizer on this machine counts the tokens of {args.dataset}",
            remedy="--sequences N --tokens N, or download the model first",
        )
    tokens: list[int] = []
    scored = 1
    for record in records:
        few = [(counter.count(text), counter.count(choice)) for text, choice in _texts(record)]
        tokens += [max(context + choice, 1) for context, choice in few]
        scored = max([scored, *(choice for _, choice in few)])
    return Dataset(tuple(tokens), new_tokens, scored)


def _texts(record: Record) -> list[tuple[str, str]]:
    """The sequences of a line of either command: prompts, or contexts with a choice each."""
    fields = record.fields
    if isinstance(fields.get("prompt"), str):
        return [(fields["prompt"], "")]
    if isinstance(fields.get("messages"), list):  # about: what the template adds is some tokens for each
        contents = [m.get("content") for m in fields["messages"] if isinstance(m, dict)]
        return [("\n".join(text for text in contents if isinstance(text, str)), "")]
    if isinstance(fields.get("context"), str) and isinstance(fields.get("choices"), list):
        return [(fields["context"], choice) for choice in fields["choices"] if isinstance(choice, str)]
    return []
