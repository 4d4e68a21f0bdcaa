"""What every peer measures, in the same way: seconds and disk bytes per token, on one JSON line at the end of stdout.

No torch here: llama.cpp's process shall not pay for it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

PROMPT_TOKENS = 16


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all peers share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", help="checkpoint folder, or GGUF file")
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=PROMPT_TOKENS)
    parser.add_argument("--warm", action="store_true", help="generate two tokens first, so that all weights are there")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--forced", action="store_true", help="feed made-up tokens, whatever the model says: random weights repeat one"
    )
    return parser


def prompt(vocab_size: int, tokens: int = PROMPT_TOKENS) -> list[int]:
    """The same made-up prompt for everybody: token ids spread over the vocabulary, clear of the special ones."""
    return [300 + 997 * position % (vocab_size - 300) for position in range(tokens)]


def forced(vocab_size: int, tokens: int) -> list[int]:
    """Tokens that follow the prompt, the same for everybody, each another."""
    return [300 + 7919 * (position + 1) % (vocab_size - 300) for position in range(tokens)]


def disk_bytes() -> int:
    """Bytes that this process has had read from the disk so far, page faults and read-ahead included."""
    for line in Path("/proc/self/io").read_text().splitlines():
        key, value = line.split(": ")
        if key == "read_bytes":
            return int(value)
    raise RuntimeError("/proc/self/io has no read_bytes")


def peak_rss_bytes() -> int:
    """The largest resident set of this process so far, mapped file pages included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


class Clock:
    """Marks of time and disk bytes: at the start, when ready, and at each token.

    Ready means that weights are loaded, as far as the engine loads any before it is asked for tokens. It has a
    streamer's two methods, so that transformers' ``generate(streamer=…)`` can drive it.
    """

    def __init__(self) -> None:
        self._marks: list[tuple[float, int]] = [self._now()]
        self._tokens: list[int] = []
        self._saw_prompt = False

    @staticmethod
    def _now() -> tuple[float, int]:
        return time.monotonic(), disk_bytes()

    def ready(self) -> None:
        """The engine can be asked for tokens."""
        self._marks.append(self._now())

    def token(self, token: int) -> None:
        """One token is there."""
        self._marks.append(self._now())
        self._tokens.append(token)

    def put(self, value: Any) -> None:
        """A streamer's: the prompt first, then every token."""
        if self._saw_prompt:
            self.token(int(value.reshape(-1)[0]))
        self._saw_prompt = True

    def end(self) -> None:
        """A streamer's."""

    def report(self, engine: str, version: str, **more: Any) -> str:
        """One JSON line. ``cold_first_token_s`` counts from before loading: what a person waits for, imports aside."""
        start, ready, *tokens = self._marks
        steps = list(itertools.pairwise(tokens))
        return json.dumps(
            {
                "engine": engine,
                "version": version,
                "ready_s": ready[0] - start[0],
                "first_token_s": tokens[0][0] - ready[0],
                "cold_first_token_s": tokens[0][0] - start[0],
                "cold_disk_bytes": tokens[0][1] - start[1],
                "token_s": [after[0] - before[0] for before, after in steps],
                "token_disk_bytes": [after[1] - before[1] for before, after in steps],
                "tokens": self._tokens,
                "peak_rss_bytes": peak_rss_bytes(),
                **more,
            }
        )
