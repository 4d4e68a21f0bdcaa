"""``outsize demo``: the bundled model, split over memory and disk, answers few-shot prompts. Needs no network."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from statistics import fmean

from outsize import progress
from outsize.api import prepare
from outsize.cli import plot
from outsize.cli.command_run import opened
from outsize.engine.loader import Opening, check_fits
from outsize.engine.text import Generation, Settings, generate
from outsize.options import LoadOptions
from outsize.planner.footprint import resident_bytes
from outsize.planner.plan import Plan
from outsize.sizes import format_size

# Few-shot prompts whose last word the model never saw in training, and what it should say.
PROMPTS = (
    ("upper-case", "dish -> DISH\nmojanago -> MOJANAGO\njift ->", "JIFT"),
    ("reverse", "ajea -> aeja\nejim -> mije\njob -> boj\nfri ->", "irf"),
    ("plural", "field -> fields\nbike -> bikes\nblexoor ->", "blexoors"),
    ("last letter", "toroo -> o\nrobot -> t\nstamp ->", "p"),
    ("no vowels", "koamo -> km\ncamp -> cmp\nsnabr -> snbr\nsnoales ->", "snls"),
    ("next day", "sunday -> monday\nwednesday -> thursday\nthursday ->", "friday"),
    ("sequence", "t u v -> w\n4 5 6 -> 7\n9 10 11 ->", "12"),
)
ROOM = 0.5  # of the weights may rest in memory; the others are read from disk for every token
NEW_TOKENS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    with resources.as_file(resources.files("outsize") / "demo_model") as folder:
        opening = _prepare(folder)
        check_fits(opening.spec, opening.plan)
        if not args.json:
            print("\n".join(introduction(opening)))
        answers = answer_all(opening, quiet=args.json)
    right = sum(given.text.strip() == wanted for (_, _, wanted), given in zip(PROMPTS, answers, strict=True))
    measured, plan = figures(answers), opening.plan
    if args.json:
        texts = [given.text.strip() for given in answers]
        predicted = {"first_token_s": plan.predicted.first_token_s, "token_s": plan.predicted.token_s}
        print(json.dumps({"schema": 1, "answers": texts, "right": right, **measured, "predicted": predicted}))
    else:
        print("\n".join(["", *comparison(plan, measured), "", f"{right} of {len(PROMPTS)} answers are right"]))
    return 0 if right == len(PROMPTS) else 1


def introduction(opening: Opening) -> list[str]:
    spec, plan = opening.spec, opening.plan
    unicode, terminal = progress.writes_unicode(sys.stdout), sys.stdout.isatty()
    weights = sum(resident_bytes(module, plan.weights) for module in spec.modules)
    return [
        (
            f"A {spec.architecture} of {spec.parameters / 1e6:.1f} million parameters ({weights / 2**20:.1f} MiB), "
            f"where only {dict(plan.request.weight_limits)['ram'] / 2**20:.1f} MiB of weights may stay in memory:"
        ),
        "",
        f"  {progress.layers(spec, plan, unicode=unicode)}",
        "",
        *plot.tiers(plan, unicode=unicode, colour=terminal),
        "",
    ]


def answer_all(opening: Opening, *, quiet: bool) -> list[Generation]:
    answers = []
    with opened(opening) as (model, tokenizer, began):
        for task, prompt, wanted in PROMPTS:
            given = generate(model, tokenizer, prompt, Settings(NEW_TOKENS), began, lambda text: None)
            answers.append(given)
            began = time.monotonic()
            if not quiet:
                shots = " | ".join(prompt.splitlines())
                verdict = "" if given.text.strip() == wanted else f"   (should be {wanted})"
                print(f"  {task:>14}:  {shots} {given.text.strip()}{verdict}", flush=True)
    return answers


def figures(answers: list[Generation]) -> dict[str, float]:
    """Means; the first token's is the first prompt's, because only that one waits for the load."""
    further = [given for given in answers if given.token_s] or answers[:1]
    return {
        "first_token_s": answers[0].first_token_s,
        "token_s": fmean(given.token_s for given in further),
        "disk_bytes_per_token": fmean(given.disk_bytes_per_token for given in further),
        "peak_ram_bytes": answers[-1].peak_ram_bytes,
    }


def comparison(plan: Plan, measured: Mapping[str, float]) -> list[str]:
    """Predicted beside measured."""
    disk = (plan.predicted.disk_bytes_per_token / 2**20, measured["disk_bytes_per_token"] / 2**20)
    peak = format_size(int(measured["peak_ram_bytes"]))
    rows = [
        ("", "predicted", "measured"),
        ("first token", f"{plan.predicted.first_token_s:.2f} s", f"{measured['first_token_s']:.2f} s"),
        ("each further", f"{plan.predicted.token_s * 1e3:.1f} ms", f"{measured['token_s'] * 1e3:.1f} ms"),
        ("disk a token", f"{disk[0]:.2f} MiB", f"{disk[1]:.2f} MiB"),
        ("memory", f"at most {format_size(plan.usage['ram'].total_bytes)}", peak),
    ]
    return [f"  {name:13} {predicted:>20} {found:>14}" for name, predicted, found in rows]


def _prepare(folder: Path) -> Opening:
    options = LoadOptions(no_gpu=True, context=128)
    room = int(prepare(str(folder), options).spec.weight_bytes * ROOM)
    return prepare(str(folder), replace(options, weight_limits={"ram": room}))
