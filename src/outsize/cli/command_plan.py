"""``outsize plan``: what fits where, and how fast it would be, before anything is downloaded."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from outsize.cli import arguments, plot
from outsize.cli.table import table as text_table
from outsize.errors import DoesNotFit
from outsize.machine.detect import identity
from outsize.machine.history import accuracy, history_path
from outsize.machine.machine import Machine
from outsize.machine.what_if import changed
from outsize.models.resolve import resolve_spec
from outsize.models.spec import ModelSpec
from outsize.options import LoadOptions
from outsize.planner.advice import Advice, advise
from outsize.planner.plan import Plan
from outsize.planner.plan_json import advice_to_json, plan_to_json, plans_to_json
from outsize.planner.planner import choose, plan_all
from outsize.planner.weight_group import WeightGroup
from outsize.progress import writes_unicode
from outsize.sizes import format_rate, format_size

if TYPE_CHECKING:
    from outsize.cli.dataset_forecast import Forecast


def add_arguments(parser: argparse.ArgumentParser) -> None:
    arguments.add_model(parser)
    arguments.add_request(parser)
    parser.set_defaults(batch=None)
    parser.add_argument("--prompt", type=int, metavar="N", help="tokens the first token waits for (default: 512)")
    parser.add_argument(
        "--machine",
        default="local",
        metavar="M",
        help="local, a preset, a JSON file, or e.g. gpu=24GiB,ram=64GiB,disk=2TiB@3GB/s",
    )
    parser.add_argument("--dataset", metavar="DATA", help="a JSONL file: what outsize score or batch would take for it")
    parser.add_argument("--sequences", type=int, metavar="N", help="the same, for N sequences of --tokens")
    parser.add_argument("--tokens", type=int, metavar="N", help="tokens of each of --sequences")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help="that each sequence generates; none: scoring")
    parser.add_argument("--explain", action="store_true", help="say why every module rests where it does")
    parser.add_argument(
        "--what-if", metavar="CHANGES", help="plan for a changed machine too, e.g. ram=+64GiB,gpu=+24GiB,disk@7GB/s"
    )
    parser.add_argument("--advise", action="store_true", help="say what would make it faster, and by how much")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the picture as .svg or .png")


def run(args: argparse.Namespace) -> int:
    spec = resolve_spec(args.model, args.revision)
    folder = Path(args.model)
    options = replace(arguments.options(args), prompt=args.prompt)
    machine = options.machine(args.machine, folder if folder.is_dir() else None)
    if args.dataset is not None or args.sequences is not None:
        return _run_dataset(args, options, spec, machine)
    request = options.request(spec, machine)
    formats = (args.weights,) if args.weights else None
    plans = plan_all(spec, machine, request, formats)
    if args.what_if is None:
        return _show(args, spec, machine, plans, choose(plans))
    other = changed(machine, args.what_if)
    new = plan_all(spec, other, options.request(spec, other), formats)
    return _show(args, spec, other, new, choose(new), before=plans)


def _run_dataset(args: argparse.Namespace, options: LoadOptions, spec: ModelSpec, machine: Machine) -> int:
    """The same for a dataset: imported only here, because other plans answer in half a second."""
    from outsize.cli.dataset_forecast import forecast

    found = forecast(args, options, spec, machine)
    return _show(args, spec, machine, found.plans, found.best, found)


def _show(
    args: argparse.Namespace,
    spec: ModelSpec,
    machine: Machine,
    plans: Sequence[Plan],
    best: int,
    dataset: Forecast | None = None,
    before: Sequence[Plan] = (),
) -> int:
    request = plans[best].request
    advice = advise(spec, machine, plans[best]) if args.advise else ()
    if args.plot is not None:
        title = f"{spec.id} on {machine.name}, context {request.context}, batch {request.batch}"
        plot.plot(plans, best, title, args.plot)
    if args.json:
        shown = plans_to_json(spec, machine, request, plans, best)
        if before:
            shown["what_if"] = {"changes": args.what_if, "before": [plan_to_json(plan) for plan in before]}
        if args.advise:
            shown["advice"] = [advice_to_json(one) for one in advice]
        print(json.dumps(shown if dataset is None else dataset.add_to(shown)))
    else:
        terminal = sys.stdout.isatty()
        unicode = writes_unicode(sys.stdout)
        print("\n".join(answer(spec, machine, plans, best, unicode=unicode, colour=terminal)))
        if before:
            print("\n".join(["", f"what if {args.what_if}:", *compared(before, plans)]))
        if dataset is not None:
            print("\n".join(["", *dataset.lines()]))
        if args.advise:
            print("\n".join(["", f"what would help, for {plans[best].weights}:", *advised(plans[best], advice)]))
        if args.explain:
            print("\n".join(["", f"why, for {plans[best].weights}:", *explain(spec, plans[best])]))
    return 0 if plans[best].fits else DoesNotFit.exit_code


def answer(
    spec: ModelSpec, machine: Machine, plans: Sequence[Plan], best: int, *, unicode: bool, colour: bool
) -> list[str]:
    """All lines of the text: the model, the machine, the formats side by side, and the chosen one's tiers as bars."""
    chosen = plans[best]
    lines = [*heading(spec, machine, chosen), "", *table(machine, plans, best)]
    for plan in plans:
        lines += [f"  {plan.weights}: {remedy}" for remedy in plan.remedies]
    lines += ["", f"{chosen.weights}, tier by tier:" if chosen.fits else f"{chosen.weights}, at the least:"]
    lines += plot.tiers(chosen, unicode=unicode, colour=colour)
    lines.append(f"        {plot.legend(list(chosen.usage.values()), unicode=unicode)}")
    return [*lines, *experts(spec, chosen), *notes(spec, machine, chosen)]


def experts(spec: ModelSpec, plan: Plan) -> list[str]:
    """What of a mixture's routed experts is in memory, and on what the seconds of a token rest."""
    routed = [group for group in plan.groups if group.experts]
    if not routed:
        return []
    count = sum(group.experts for group in routed)
    per_token = sum(round(group.use * group.experts) for group in routed)
    what = f"experts: a token uses {per_token} of {count}"
    if plan.predicted.expert_hit_rate is None:
        return [f"{what}; all are in memory"]
    held = plan.expert_slots + sum(group.experts for group in routed if group.tier.startswith("gpu"))
    rate = plan.predicted.expert_hit_rate
    known = all(group.module in spec.uses for group in routed)
    basis = "as earlier runs used them" if known else "if routing is uniform, else more"
    return [f"{what}; memory has room for {held}, and has {rate:.0%} of what a token uses of those on disk, {basis}"]


def heading(spec: ModelSpec, machine: Machine, plan: Plan) -> list[str]:
    """The model, the machine and the request, a line each. A ``~`` marks rates that nobody measured."""
    devices = []
    for device in machine.devices:
        about = "~" if device.is_assumed("bytes_per_s") else ""
        free = "" if device.free_bytes == device.capacity_bytes else f" ({format_size(device.free_bytes)} free)"
        rate = f" at {about}{format_rate(device.bytes_per_s)}" if device.bytes_per_s else ""
        devices.append(f"{device.name} {format_size(device.capacity_bytes)}{free}{rate}")
    request = plan.request
    kind = f"{' and '.join(sorted(spec.formats))} with {spec.dtype}" if spec.formats else spec.dtype
    blocks = f"{len(spec.blocks)} blocks, {kind}, {format_size(spec.weight_bytes)}"
    active = "" if spec.active_parameters == spec.parameters else f" ({billions(spec.active_parameters)} for a token)"
    return [
        f"{spec.id}: {billions(spec.parameters)} parameters{active} in {blocks}",
        f"on {machine.name}: {', '.join(devices)}",
        f"for context {request.context}, batch {request.batch}, a prompt of {min(request.prompt, request.context)}",
    ]


def billions(count: int) -> str:
    """``176.2 billion``, or ``3.4 million``."""
    return f"{count / 1e9:.1f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"


def table(machine: Machine, plans: Sequence[Plan], best: int) -> list[str]:
    """The formats side by side; ``>`` marks the one to choose."""
    rows = [("", "weights", "fits", "size", "s/token", "first token", "limited by", "disk per token")]
    for index, plan in enumerate(plans):
        predicted, about = plan.predicted, "~" if assumed(machine, plan) else ""
        rows.append(
            (
                ">" if index == best and plan.fits else "",
                plan.weights,
                "yes" if plan.fits else f"no: lacks {format_size(plan.shortfall_bytes)}",
                format_size(plan.file_bytes),
                f"{about}{predicted.token_s:.3g} s" if plan.fits else "-",
                f"{about}{predicted.first_token_s:.3g} s" if plan.fits else "-",
                predicted.bottleneck if plan.fits else "-",
                format_size(predicted.disk_bytes_per_token) if plan.fits else "-",
            )
        )
    return text_table(rows)


def assumed(machine: Machine, plan: Plan) -> bool:
    """Whether a rate that nobody measured went into the plan's seconds. The disk is read in any case, to load."""
    used = {group.device for group in plan.groups} | {"disk"}
    return any(device.assumed for device in machine.devices if device.name in used)


def notes(spec: ModelSpec, machine: Machine, plan: Plan) -> list[str]:
    lines = []
    if assumed(machine, plan):
        measure = f": {machine.note}" if machine.note else ""
        lines.append(f"~ from rates that were assumed, not measured{measure}")
    lines += trusted(machine)
    if plan.weights == "native" and machine.disk.free_bytes < spec.weight_bytes <= machine.disk.capacity_bytes:
        free = format_size(machine.disk.free_bytes)
        lines.append(f"the disk has {free} free: not enough to download {format_size(spec.weight_bytes)}")
    return ["", *lines] if lines else []


def compared(before: Sequence[Plan], after: Sequence[Plan]) -> list[str]:
    """Each format now and with the changes."""
    rows: list[Sequence[str]] = [("", "weights", "s/token now", "then", "first token now", "then", "limited by")]
    rows += [
        ("", new.weights, *_both(old, new), new.predicted.bottleneck) for old, new in zip(before, after, strict=True)
    ]
    return text_table(rows)


def advised(plan: Plan, advice: Sequence[Advice]) -> list[str]:
    """Each change with the seconds that it leaves of a token, and the options that show it in full."""
    if not advice:
        return [f"  nothing that is tried makes it 5 % faster; limited by {plan.predicted.bottleneck}"]
    rows: list[Sequence[str]] = [("", "change", "s/token", "then", "first token", "then", "see")]
    rows += [("", one.change, *_both(plan, one.plan), one.options) for one in advice]
    return text_table(rows)


def _both(old: Plan, new: Plan) -> list[str]:
    """A token's seconds and the first token's, before and after."""
    tokens = [(plan.fits, seconds) for plan in (old, new) for seconds in [plan.predicted.token_s]]
    firsts = [(plan.fits, seconds) for plan in (old, new) for seconds in [plan.predicted.first_token_s]]
    return [f"{seconds:.3g} s" if fits else "-" for fits, seconds in tokens + firsts]


def trusted(machine: Machine) -> list[str]:
    """How good the last predictions on this machine were."""
    known = accuracy(history_path(), identity()) if machine.name == "local" else {}
    off = [f"{kind} {one.factor:.2f} times ({one.runs} runs)" for kind, one in sorted(known.items())]
    return [f"off in the median, on this machine so far: {', '.join(off)}"] if off else []


def explain(spec: ModelSpec, plan: Plan) -> list[str]:
    groups: dict[tuple[str, str, str], list[WeightGroup]] = {}
    for group in plan.groups:
        groups.setdefault((group.tier, group.device, group.reason), []).append(group)
    return [
        f"  {home}{'' if home == compute else f', computed in {compute}'}: "
        f"{', '.join(merged(list(dict.fromkeys(group.module for group in alike))))} "
        f"({format_size(sum(group.rest_bytes for group in alike))})\n"
        f"      {reason}"
        for (home, compute, reason), alike in groups.items()
    ]


def merged(names: Sequence[str]) -> list[str]:
    """Names that differ in their last number, once: ``layers.0``, ``layers.1``, ``layers.4`` as ``layers.0-1,4``."""
    stems: dict[tuple[str, str], list[int]] = {}
    for name in names:
        found = re.fullmatch(r"(.*\.)(\d+)((?:\.\D*)?)", name)
        around = (found[1], found[3]) if found else (name, "")
        stems.setdefault(around, []).extend([int(found[2])] if found else [])
    texts = []
    for (stem, end), numbers in stems.items():
        runs: list[list[int]] = []
        for number in sorted(numbers):
            if runs and runs[-1][-1] == number - 1:
                runs[-1].append(number)
            else:
                runs.append([number])
        texts.append(stem + ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs) + end)
    return texts
