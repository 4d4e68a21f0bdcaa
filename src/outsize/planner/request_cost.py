"""Seconds of requests that join what is underway: what a server tells its clients before it begins. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from outsize.planner.sweep_cost import SweepCost, Turn

CONTEXT_STEP = 256  # lengths that are told apart: beyond that a token's time hardly depends on them


@dataclass(frozen=True, slots=True)
class Sequencing:
    """One sequence: tokens that its next pass computes, those in its cache before them, new ones to come at most."""

    tokens: int
    past: int
    new_tokens: int

    @property
    def turn(self) -> Turn:
        """Its next pass."""
        return Turn(1, max(self.tokens, 1), self.past, 1, first=self.tokens > 1)

    @property
    def steady(self) -> Turn:
        """The passes after that, all alike."""
        context = self.past + self.tokens + self.new_tokens // 2
        return Turn(1, 1, max(-(-context // CONTEXT_STEP), 1) * CONTEXT_STEP, 1)


def first_token_s(cost: SweepCost, mine: Sequence[Sequencing], underway: Sequence[Sequencing]) -> float:
    """Seconds to the first token of those that join now: half a sweep of the others, then one with all.

    ``sweep(others) / 2 + sweep(first passes of mine, steady passes of others)``
    """
    others = [one.steady for one in underway]
    wait = cost.sweep_s(others) / 2 if others else 0.0
    return wait + cost.sweep_s([*(one.turn for one in mine), *others])


def answer_s(cost: SweepCost, mine: Sequence[Sequencing], underway: Sequence[Sequencing]) -> float:
    """Seconds to the last token of those that join now, where no answer ends before its limit.

    ``first token + (longest answer - 1) * sweep(all)``
    """
    longest = max((one.new_tokens for one in mine), default=0)
    every = [one.steady for one in (*mine, *underway)]
    return first_token_s(cost, mine, underway) + max(longest - 1, 0) * cost.sweep_s(every)


def waiting_s(cost: SweepCost, underway: Sequence[Sequencing], pending: Sequence[Sequencing]) -> float:
    """Seconds until there is room for one more sequence: those ahead of it take turns in the places of those underway.

    ``sweep(underway) * (fewest tokens left + tokens of those ahead / places)``
    """
    if not underway:
        return 0.0
    ahead = sum(one.new_tokens + 1 for one in pending)
    sweeps = min(one.new_tokens for one in underway) + ahead / len(underway)
    return cost.sweep_s([one.steady for one in underway]) * sweeps
