"""Which policy the cache of routed experts should have: caches simulated on made and recorded routings.

    python bench/routing.py                  three models, three habits of routing, six sizes (half a minute)
    python bench/routing.py --published      the made traces beside hit rates that others measured on real models
    python bench/routing.py --trace FILE     the same policies on a recorded routing (form: bench/expert_traces.py)

A token uses k of E experts in each layer; what the cache does not hold is read from disk. First tables: hit rates of
single tokens (decode), from a quarter of the trace on, and bytes that are read per token, over all layers. Last table:
prompts between answers, which touch nearly all experts: what they leave of the cache for the tokens after them, and
what they read themselves. Nothing is timed; seeds are fixed. The last line on stdout is JSON.

Where the routings come from: no recorded one can be shipped. "uniform" is the worst there is; "skewed" is Zipf's law
with exponent 0.8, for ever; "drifting" has topics of 300 tokens that change what is used, a little skew, and a fifth of
a token's experts from the token before. The last has its numbers from three published measurements (PUBLISHED).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from expert_policies import LFU, LRU, Belady, Cache, LookAhead, Partitions, Pinned, TokenLRU
from expert_traces import HABITS, SHAPES, Shape, Trace, made, recorded, with_prompts

SIZES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
WARM = 0.25  # of a trace passes before anything is counted
TOKENS = 800
LAYERS = 12  # that are simulated, unless all are asked for: caches of all layers scale with them
SEED = 14
RECALL = 0.7  # of look-ahead: 0.46 to 0.77 were measured by others
PROMPT, ANSWER = 512, 96
TAILS = (1, 16, 64)  # last tokens of a prompt whose experts may count as used
Ids = Sequence[Sequence[Sequence[int]]]
Make = Callable[[int], Cache]
CHOSEN = "LRU by token"

# Hit rates in per cent of LRU caches of so many experts per layer, over tokens (counted from the given one on).
PUBLISHED = (
    {
        "source": "github.com/kekzl/imp/pull/2061: 512 experts, 10 used (Qwen3.8-Flash-Next), 300 tokens, cold",
        "shape": (512, 10),
        "tokens": 300,
        "from": 0,
        "hits": {93: 43.5, 186: 62.0, 279: 72.0, 372: 78.9, 512: 85.0},
    },
    {
        "source": "github.com/JustVugg/colibri/pull/1092: OLMoE, 64 experts, 8 used, 504 tokens after a prompt of 200",
        "shape": (64, 8),
        "tokens": 704,
        "from": 200,
        "hits": {16: 51.4},
    },
    {
        "source": "github.com/manjunathshiva/turboquant-mlx/pull/59: 256 experts, 8 used (Qwen3.5-122B), 180 tokens",
        "shape": (256, 8),
        "tokens": 210,
        "from": 30,
        "hits": {41: 54.0},
    },
)


def decode(ids: Ids, cache: Cache, guesses: Ids | None = None) -> tuple[float, float]:
    """Hit rate, and experts read per token, of a trace of single tokens from WARM on."""
    start = int(WARM * len(ids))
    hits = uses = reads = 0
    for token, layers in enumerate(ids):
        if token == start:
            hits = uses = 0
            reads = cache.reads
        for layer, wanted in enumerate(layers):
            hits += cache.use(wanted)
            uses += len(wanted)
            if guesses is not None and layer + 1 < len(layers):
                cache.guess(guesses[token][layer + 1])
    return hits / uses, (cache.reads - reads) / (len(ids) - start)


def guessed(trace: Trace, recall: float) -> Ids:
    """A guess of each token's experts: right ones with probability ``recall``, else what the token 20 before used."""
    random = np.random.default_rng(SEED)
    right = random.random(trace.used.shape) < recall
    return replace(trace, used=np.where(right, trace.used, np.roll(trace.used, 20, axis=0))).ids


def hottest(past: Trace, count: int) -> list[int]:
    """The experts that another trace of the same model used most."""
    uses = np.bincount(np.array(past.ids).ravel(), minlength=past.shape.experts * past.shape.layers)
    return np.argsort(-uses, kind="stable")[:count].tolist()


def policies(trace: Trace, past: Trace) -> dict[str, Make]:
    """By name, what makes a cache of so many experts."""
    shape, sequence = trace.shape, [layer for token in trace.ids for layer in token]

    def by_token(size: int) -> Cache:
        return TokenLRU(size, shape.experts, shape.layers)

    return {
        "LRU": LRU,
        "LRU per layer": lambda size: Partitions(size, shape.experts, shape.layers),
        CHOSEN: by_token,
        "LFU, half-life 32": lambda size: LFU(size, 32, shape.layers),
        "LFU, half-life 256": lambda size: LFU(size, 256, shape.layers),
        "half pinned, half LRU by token": lambda size: Pinned(hottest(past, size // 2), by_token(size - size // 2)),
        "look-ahead, LRU by token": lambda size: LookAhead(size, shape.experts, shape.layers),
        "Belady (bound)": lambda size: Belady(size, sequence),
    }


def compare(trace: Trace, past: Trace, all_layers: int) -> dict[str, list[dict[str, float]]]:
    """Of each policy, per size: hit rate and bytes read per token, scaled to all layers."""
    shape, ids = trace.shape, trace.ids
    guesses = guessed(trace, RECALL)
    found: dict[str, list[dict[str, float]]] = {}
    for name, make in policies(trace, past).items():
        rows = []
        for size in SIZES:
            cache = make(int(size * shape.experts * shape.layers))
            rate, reads = decode(ids, cache, guesses if name.startswith("look-ahead") else None)
            read = reads * shape.expert_bytes * all_layers / shape.layers
            rows.append({"cached": size, "hit_rate": round(rate, 4), "bytes_per_token": round(read)})
        found[name] = rows
    return found


def prompts(trace: Trace, scans: str, tail: int, size: float) -> dict[str, float]:
    """Of the chosen policy: hit rate of the tokens after prompts, and what prompts read of all experts."""
    ids, shape = trace.ids, trace.shape
    cache = TokenLRU(int(size * shape.experts * shape.layers), shape.experts, shape.layers, scans)
    hits = uses = at = 0
    reads = []
    for number, tokens in enumerate(trace.passes):
        of_pass = ids[at : at + tokens]
        at += tokens
        warm = number >= WARM * len(trace.passes)
        before = cache.reads
        for layer in range(shape.layers):
            if tokens == 1:
                found = cache.use(of_pass[0][layer])
                hits, uses = hits + warm * found, uses + warm * shape.per_token
            else:
                cache.scan(distinct(of_pass, layer), distinct(of_pass[-tail:], layer))
        if tokens > 1 and warm:
            reads.append((cache.reads - before) / (shape.experts * shape.layers))
    return {"cached": size, "hit_rate": round(hits / uses, 4), "prompt_reads": round(float(np.mean(reads)), 4)}


def distinct(tokens: Ids, layer: int) -> list[int]:
    """The experts that several tokens use in a layer, each once, those of the last token last."""
    return list(dict.fromkeys(one for token in reversed(tokens) for one in token[layer]))[::-1]


def compare_prompts(trace: Trace) -> dict[str, list[dict[str, float]]]:
    """Of each way to treat what prompts read, per size."""
    ways = {"newest": ("newest", 1), "first to go": ("first to go", 1)}
    ways |= {f"first to go, but the last {n} tokens' count": ("tail", n) for n in TAILS}
    return {name: [prompts(trace, *way, size) for size in SIZES] for name, way in ways.items()}


def published() -> list[dict[str, Any]]:
    """What others measured, and the same of made traces that drift. Four layers, each with a cache of its own."""
    rows = []
    for entry in PUBLISHED:
        experts, per_token = entry["shape"]
        shape = Shape("", experts, per_token, 4, 0)
        trace = made(shape, HABITS["drifting"], entry["tokens"], SEED)
        for size, theirs in entry["hits"].items():
            cache = Partitions(size * shape.layers, experts, shape.layers)
            hits = [[cache.use(layer) for layer in token] for token in trace.ids][entry["from"] :]
            mine = 100 * float(np.mean(hits)) / per_token
            rows.append(
                {
                    "source": entry["source"],
                    "cached": round(size / experts, 3),
                    "theirs": theirs,
                    "made": round(mine, 1),
                }
            )
    return rows


def gib(number: float) -> str:
    """Bytes as GiB."""
    return f"{number / (1 << 30):.2f}"


def table(title: str, found: dict[str, list[dict[str, float]]], cells: Iterable[tuple[str, str]]) -> None:
    """One table, a column per size; ``cells``: keys of a row, and how they are shown ("%" or "GiB")."""
    print(f"\n{title}")
    print(f"{'cached share of the experts':44}" + "".join(f"{f'{size:.0%}':>18}" for size in SIZES))
    for name, rows in found.items():
        line = ""
        for row in rows:
            shown = [f"{row[key]:.1%}" if unit == "%" else f"{gib(row[key])} GiB" for key, unit in cells]
            line += f"{'  '.join(shown):>18}"
        print(f"{name:44}{line}")


def made_results(all_layers: bool, tokens: int) -> list[dict[str, Any]]:
    """All shapes and habits; printed as they come."""
    results = []
    for shape in SHAPES:
        small = shape if all_layers else replace(shape, layers=min(LAYERS, shape.layers))
        for name, habit in HABITS.items():
            trace, past = (made(small, habit, tokens, SEED, past=of_past) for of_past in (False, True))
            found = compare(trace, past, shape.layers)
            head = f"{shape.name} ({shape.experts} experts, {shape.per_token} used, {shape.layers} layers), {name}"
            table(f"{head}: hit rate, read per token", found, (("hit_rate", "%"), ("bytes_per_token", "GiB")))
            row: dict[str, Any] = {"shape": asdict(shape), "habit": name, **asdict(habit), "policies": found}
            if name == "drifting":
                several = with_prompts(made(small, habit, 4 * (PROMPT + ANSWER), SEED), PROMPT, ANSWER)
                row["prompts"] = compare_prompts(several)
                title = f"{head}: {ANSWER} tokens after prompts of {PROMPT}: hit rate; read by a prompt, of all experts"
                table(title, row["prompts"], (("hit_rate", "%"), ("prompt_reads", "%")))
            results.append(row)
    return results


def recorded_results(path: Path) -> list[dict[str, Any]]:
    """A recorded routing: its single tokens by all policies, and its prompts where it has some."""
    trace = recorded(path)
    starts = np.cumsum((0, *trace.passes))
    single = [start for start, tokens in zip(starts, trace.passes, strict=False) if tokens == 1]
    alone = replace(trace, used=trace.used[single], passes=(1,) * len(single))
    half = len(single) // 2  # statistics from the first half, all figures from the second
    if not half:
        raise SystemExit(f"{path} has {len(single)} passes of one token; two at least are needed")
    past, rest = (replace(alone, used=part) for part in (alone.used[:half], alone.used[half:]))
    found = compare(rest, past, trace.shape.layers)
    table(f"{trace.shape.name}: hit rate, read per token", found, (("hit_rate", "%"), ("bytes_per_token", "GiB")))
    row: dict[str, Any] = {"shape": asdict(trace.shape), "trace": path.name, "policies": found}
    if max(trace.passes[int(WARM * len(trace.passes)) :]) > 1:
        row["prompts"] = compare_prompts(trace)
        title = f"{trace.shape.name}: tokens between prompts: hit rate; read by a prompt, of all experts"
        table(title, row["prompts"], (("hit_rate", "%"), ("prompt_reads", "%")))
    return [row]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, help="a recorded routing in place of made ones")
    parser.add_argument("--published", action="store_true", help="only the comparison with published hit rates")
    parser.add_argument("--all-layers", action="store_true", help=f"every layer, not {LAYERS} of them")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each made trace")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    rows = published() if options.trace is None else []
    for row in rows:
        print(f"{row['cached']:6.1%} cached: {row['theirs']:.1f} % there, {row['made']:.1f} % here   {row['source']}")
    if options.trace is not None:
        results = recorded_results(options.trace)
    else:
        results = [] if options.published else made_results(options.all_layers, options.tokens)
    result = {"schema": 1, "benchmark": "routing", "seed": SEED, "published": rows, "results": results}
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
