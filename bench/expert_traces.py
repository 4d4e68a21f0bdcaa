"""Routings of mixture-of-experts models: made ones, and recorded ones from files.

A recorded trace is a file of JSON lines. The first says what the model is, each further one what one layer did in one
forward pass, in the order of computing:

    {"experts": 128, "layers": 48, "per_token": 8, "expert_bytes": 9437184, "model": "Qwen/Qwen3-30B-A3B"}
    {"layer": 0, "experts": [3, 17, 21, 40, 77, 90, 101, 127]}
    {"layer": 1, "experts": [[0, 5, 9, 12, 13, 30, 31, 99], [1, 5, 9, 12, 13, 30, 31, 98]]}

``experts`` of a pass with one token is a list of numbers; of a prompt it is a list of such lists, a token each. Layers
are numbered among those with experts. A layer that does not come after the one before begins a new pass.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TOPICS = 12  # that a made trace returns to


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's routed experts. ``expert_bytes``: of one expert as published (three matrices)."""

    name: str
    experts: int
    per_token: int
    layers: int
    expert_bytes: int


SHAPES = (
    Shape("Mixtral-8x7B", 8, 2, 32, 3 * 4096 * 14336 * 2),
    Shape("Qwen3-30B-A3B", 128, 8, 48, 3 * 2048 * 768 * 2),
    Shape("DeepSeek-V3", 256, 8, 58, 3 * 7168 * 2048),  # in FP8, without its scales
)


@dataclass(frozen=True, slots=True)
class Habit:
    """How a made trace routes.

    ``skew``: exponent of Zipf's law over the experts of a layer, in an order of its own per layer. ``drift``: standard
    deviation, in natural logarithms, of what a topic does to each expert's weight. ``topic``: mean tokens of a topic.
    ``stay``: probability that an expert of the last token is one of this token's, whatever else.
    """

    skew: float = 0.0
    drift: float = 0.0
    topic: int = 300
    stay: float = 0.0


HABITS = {
    "uniform": Habit(),
    "skewed": Habit(skew=0.8),
    "drifting": Habit(skew=0.3, drift=0.8, stay=0.2),  # chosen so that bench/routing.py --published comes out right
}


@dataclass(frozen=True, slots=True)
class Trace:
    """What each token used: ``used`` [tokens, layers, per_token], numbers of experts within their layers.

    ``passes``: tokens of each forward pass, in order; 1 for decode, more for prompts.
    """

    shape: Shape
    used: np.ndarray
    passes: tuple[int, ...]

    @property
    def ids(self) -> list[list[list[int]]]:
        """The experts by one number each: layer * experts + expert. [tokens][layers][per_token]."""
        found: list[list[list[int]]] = (
            self.used + np.arange(self.shape.layers)[None, :, None] * self.shape.experts
        ).tolist()
        return found


def made(shape: Shape, habit: Habit, tokens: int, seed: int, past: bool = False) -> Trace:
    """A trace of single tokens. ``past``: of the same model, with other topics: what statistics are gathered from.

    Experts are drawn without replacement by their weights (the largest of log weight plus Gumbel noise).
    """
    model = np.random.default_rng(seed)
    rank = np.stack([model.permutation(shape.experts) for _ in range(shape.layers)])
    base = -habit.skew * np.log1p(rank)  # [layers, experts]
    random = np.random.default_rng([seed, int(past)])
    topics = habit.drift * random.standard_normal((TOPICS, *base.shape))
    used = np.empty((tokens, shape.layers, shape.per_token), np.int64)
    weights, last = base + topics[0], None
    for token in range(tokens):
        if random.random() < 1.0 / habit.topic:
            weights = base + topics[random.integers(TOPICS)]
        noisy = weights + random.gumbel(size=base.shape)
        if last is not None and habit.stay:
            kept = random.random(last.shape) < habit.stay
            rows = np.arange(shape.layers)[:, None]
            noisy[rows, last] += np.where(kept, 1e3, 0.0)
        last = np.argpartition(noisy, -shape.per_token, axis=1)[:, -shape.per_token :]
        used[token] = last
    return Trace(shape, used, (1,) * tokens)


def with_prompts(trace: Trace, prompt: int, decode: int) -> Trace:
    """The same tokens as prompts of ``prompt`` tokens, each followed by ``decode`` single ones."""
    rounds = len(trace.used) // (prompt + decode)
    passes = (prompt, *((1,) * decode)) * rounds
    return Trace(trace.shape, trace.used[: sum(passes)], passes)


def recorded(path: Path) -> Trace:
    """A trace from a file, as described above. Raises SystemExit where it is none."""
    with path.open(encoding="utf-8") as lines:
        try:
            head = json.loads(next(lines))
            shape = Shape(
                str(head.get("model", path.stem)),
                *(int(head[name]) for name in ("experts", "per_token", "layers")),
                int(head.get("expert_bytes", 0)),
            )
            tokens = _passes([json.loads(line) for line in lines], shape)
            used = np.concatenate(tokens)
        except (StopIteration, KeyError, TypeError, ValueError) as error:
            raise SystemExit(f"{path} is no trace of routings: {error!r}; see bench/expert_traces.py") from None
    if used.min() < 0 or used.max() >= shape.experts:
        raise SystemExit(f"{path} names an expert that is not below {shape.experts}")
    return Trace(shape, used, tuple(len(one) for one in tokens))


def _passes(lines: Sequence[Any], shape: Shape) -> list[np.ndarray]:
    """Of each pass what its tokens used: [tokens, layers, per_token]. Raises ValueError where layers are missing."""
    found: list[np.ndarray] = []
    layers: list[np.ndarray] = []
    for line in lines:
        if line["layer"] != len(layers):
            raise ValueError(f"layer {line['layer']} where {len(layers)} should be")
        layers.append(np.array(line["experts"], np.int64).reshape(-1, shape.per_token))
        if len(layers) == shape.layers:
            found.append(np.stack(layers, axis=1))
            layers = []
    return found  # a last pass that was cut short is left out
