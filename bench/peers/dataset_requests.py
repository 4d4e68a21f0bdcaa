"""The same made-up prompts for everybody who computes a dataset: token ids as frequent as words are."""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from typing import Any

from measure import disk_bytes, peak_rss_bytes

CONTINUATION = 4  # tokens that are scored
SHARED = 0.5  # of a prompt's tokens, those that all prompts of a task share: the examples of few-shot prompting
SPECIAL = 300  # ids below are left out


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all peers share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", help="checkpoint folder")
    parser.add_argument("--task", choices=("score", "generate"), required=True)
    parser.add_argument("--prompts", type=int, required=True, help="the whole dataset's")
    parser.add_argument("--measured", type=int, help="as many of them are computed; all by default")
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("--new-tokens", type=int, default=32, help="for generating")
    parser.add_argument("--measured-tokens", type=int, help="as many of them are generated; all by default")
    parser.add_argument("--shared", type=float, default=0.0, help="share of each prompt that all have in common")
    parser.add_argument("--batch", type=int, default=32, help="sequences at once, for peers that must be told")
    parser.add_argument("--threads", type=int, default=2)
    return parser


def prompts(vocab_size: int, count: int, tokens: int, shared: float = 0.0) -> list[tuple[list[int], list[int]]]:
    """Prompt and continuation of each; lengths vary by a quarter, id k is about 1/k as frequent as the first."""
    rng = random.Random(7)
    most = vocab_size - SPECIAL

    def draw(n: int) -> list[int]:
        return [SPECIAL + min(int(most ** rng.random()), most - 1) for _ in range(n)]

    common = draw(int(shared * tokens))
    lengths = [rng.randint(3 * tokens // 4, 5 * tokens // 4) for _ in range(count)]
    return [([*common, *draw(max(n - len(common), 1))], draw(CONTINUATION)) for n in lengths]


@dataclass
class Span:
    """Seconds and bytes from the drive since it began."""

    began: float
    read: int

    @classmethod
    def begin(cls) -> Span:
        return cls(time.monotonic(), disk_bytes())

    def end(self) -> dict[str, float]:
        return {"seconds": time.monotonic() - self.began, "disk_bytes": disk_bytes() - self.read}


def report(engine: str, version: str, load: dict[str, float], work: dict[str, float], **more: Any) -> str:
    """One JSON line."""
    found = {"engine": engine, "version": version, "load": load, "work": work, "peak_rss_bytes": peak_rss_bytes()}
    return json.dumps(found | more)
