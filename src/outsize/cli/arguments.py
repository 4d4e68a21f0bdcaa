"""Options that several commands share, and what they mean for a machine and a request."""

from __future__ import annotations

import argparse
from pathlib import Path

from outsize.options import LoadOptions
from outsize.planner.plan import WEIGHTS
from outsize.sizes import parse_size

NEW_TOKENS = 64
NEW_TOKENS_HELP = f"(default: {NEW_TOKENS}, or as many as the model has positions for)"


def add_model(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """MODEL and ``--revision``. MODEL is None where it is not ``required`` and not there."""
    where = "a hub id, a local folder, or a name in the local cache"
    parser.add_argument("model", nargs=None if required else "?", metavar="MODEL", help=where)
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub model")


def add_request(parser: argparse.ArgumentParser, *, dataset: bool = False) -> None:
    """What a command asks of model and machine: format, context, batch, budgets and limits; and ``--json``.

    ``dataset``: context and batch are None unless they are given, for they follow from the data.
    """
    context, batch = "", "sequences at once (default: 1)"
    if dataset:
        context = " (default: those of the longest)"
        batch = "sequences to keep memory for (default: as makes the dataset fastest)"
    parser.add_argument("--weights", choices=WEIGHTS, help="weight format")
    parser.add_argument(
        "--context", type=int, metavar="N", help=f"most tokens of a sequence, prompt and answer together{context}"
    )
    parser.add_argument("--batch", type=int, default=None if dataset else 1, metavar="N", help=batch)
    parser.add_argument("--ram", type=parse_size, metavar="SIZE", help="most RAM in all, buffers and caches included")
    parser.add_argument(
        "--gpu-memory", metavar="SIZE[,SIZE...]", help="most memory of each GPU; one size counts for all"
    )
    parser.add_argument("--no-gpu", action="store_true", help="use no GPU")
    parser.add_argument(
        "--weight-limit", metavar="TIER=SIZE[,...]", help="most bytes of weights at rest in a tier, e.g. ram=0"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_trace(parser: argparse.ArgumentParser) -> None:
    where = "write where the time went: .json for chrome://tracing, .svg or .png for a picture of the last sweep"
    parser.add_argument("--trace", type=Path, metavar="FILE", help=where)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, metavar="T", help="sample at this temperature (default: greedy)")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample from the most likely P of the probability")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from the K most likely tokens")


def options(args: argparse.Namespace) -> LoadOptions:
    return LoadOptions(
        weights=args.weights,
        context=args.context,
        batch=args.batch,
        ram=args.ram,
        gpu_memory=args.gpu_memory,
        no_gpu=args.no_gpu,
        weight_limits=args.weight_limit,
        revision=args.revision,
    )
