"""Logits where they are wanted, and nowhere else: what the head multiplies is chosen right before it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from outsize.errors import UnsupportedModel
from outsize.models.tracing.cache_argument import cache_in

HALF = (torch.bfloat16, torch.float16)


@dataclass(slots=True, eq=False)
class Pick:
    """Positions of one micro-batch whose logits are wanted: row and position of each, in order."""

    rows: list[int]
    positions: list[int]
    most: int  # that the head may compute at a time
    hidden: torch.Tensor | None = None  # [1, picked, hidden]
    output: torch.Tensor | None = field(default=None)  # of the head


PICK: ContextVar[Pick | None] = ContextVar("pick", default=None)  # a greenlet has its own


class Head:
    """A model's head, which computes what the ``Pick`` of the micro-batch that is underway says.

    Some models do something to the logits after the head (a cap, a scale, a bias). Then they must all be computed at
    once, which ``at_once`` remembers.
    """

    def __init__(self, model: Any) -> None:
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Module):
            raise UnsupportedModel(f"{type(model).__name__} has no head", remedy="load it as a causal language model")
        self.module = head
        self.at_once = False
        self._hooks = [
            head.register_forward_pre_hook(self._before, prepend=True),
            head.register_forward_hook(self._after),
        ]

    def close(self) -> None:
        """Takes the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def logits(self, model: Any, pick: Pick, inputs: dict[str, Any]) -> Iterator[torch.Tensor]:
        """Runs the model, and gives the picked positions' logits in order, [some, vocabulary] at a time."""
        mine, logits = self._run(model, pick, inputs)
        if mine.hidden is None or mine.output is None:  # the head was not called as a module
            yield logits[pick.rows, pick.positions]
            return
        if mine.hidden.shape[1] > mine.most and not _same(logits, mine.output):
            self.at_once = True
            if cache_in(inputs) is not None:  # what it begins with has been taken already
                raise OnceMoreError
            mine, logits = self._run(model, pick, inputs)
        assert mine.hidden is not None
        yield logits[0]
        for start in range(mine.most, mine.hidden.shape[1], mine.most):
            yield self.module(mine.hidden[:, start : start + mine.most])[0]

    def _run(self, model: Any, pick: Pick, inputs: dict[str, Any]) -> tuple[Pick, torch.Tensor]:
        mine = Pick(pick.rows, pick.positions, len(pick.rows) if self.at_once else pick.most)
        PICK.set(mine)
        try:
            return mine, model(**inputs).logits
        finally:
            PICK.set(None)

    def _before(self, _: nn.Module, args: Any) -> Any:
        pick = PICK.get()
        if pick is None or not args or args[0].ndim != 3:
            return None
        hidden = args[0]  # [rows, tokens, hidden]
        where = torch.tensor([pick.rows, pick.positions], device=hidden.device)
        pick.hidden = hidden[where[0], where[1]].unsqueeze(0)
        return (pick.hidden[:, : pick.most], *args[1:])

    def _after(self, _: nn.Module, args: Any, output: torch.Tensor) -> None:
        pick = PICK.get()
        if pick is not None and pick.hidden is not None:
            pick.output = output


class OnceMoreError(Exception):
    """All logits must be computed at once, after all."""


def _same(logits: torch.Tensor, output: torch.Tensor) -> bool:
    """Whether the model gave the head's output back as it was."""
    if logits.shape != output.shape or logits.dtype != output.dtype:
        return False
    return torch.equal(logits, output.to(logits.device))


def likelihoods(
    logits: Iterator[torch.Tensor], wanted: Sequence[tuple[int, int]], most: int
) -> list[tuple[float, bool]]:
    """Log-probabilities in float32, and whether each was the likeliest, of ``wanted``: picked place (ascending), token.

    ``logits``: [some, vocabulary], one after the other; ``most`` of them are turned into probabilities at a time.
    """
    found: list[tuple[float, bool]] = []
    begin = 0  # of the logits in hand
    for several in logits:
        for chunk in torch.split(several, most):
            end = begin + chunk.shape[0]
            here = list(takewhile(lambda pair: pair[0] < end, wanted[len(found) :]))  # noqa: B023  used at once
            if here:
                at = torch.tensor([place - begin for place, _ in here], device=chunk.device)
                tokens = torch.tensor([token for _, token in here], device=chunk.device)
                logprobs = torch.log_softmax(chunk.float(), dim=-1)[at, tokens]
                found += zip(logprobs.tolist(), (chunk.argmax(dim=-1)[at] == tokens).tolist(), strict=True)
            begin = end
    return found


def lay_out_rows(_: nn.Module, args: Any) -> Any:
    """A forward pre-hook for a head: hidden states [batch, tokens, hidden] in one piece, if they are a slice.

    ``generate`` slices the last token's out of the prompt's. torch 2.13 then takes a batched matmul instead of a plain
    one, and that, in 16 bits on the CPU, copies the whole weight once per sequence: gigabytes, and twenty times slower.
    The bits are the same, but for float16 with several sequences, where the last one may differ.
    """
    hidden = args[0] if args else None
    if not isinstance(hidden, torch.Tensor) or hidden.ndim != 3 or hidden.dtype not in HALF:
        return None
    if hidden.device.type != "cpu" or hidden.stride(0) == hidden.stride(1) * hidden.shape[1]:
        return None
    return (hidden.clone(memory_format=torch.contiguous_format), *args[1:])
