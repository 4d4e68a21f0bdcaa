"""How many routed experts tokens touch, and how many of those a cache of experts holds. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

STEPS = 20  # halvings of the interval in which the characteristic time lies: a millionth of it is left
# Of a layer's experts: a pass that is expected to use so many of them reads them in order, and ahead.
SCAN_SHARE = 0.9
LONGEST = 2.0**40  # tokens; what is used more rarely than that is never seen


def touched(experts: int, per_token: int, tokens: int) -> float:
    """Expected share of a layer's experts that ``tokens`` tokens touch, each routed uniformly and by itself.

    ``1 - (1 - k/E)**n``: an expert is left out by one token with probability 1 - k/E, by all n with its n-th power.
    Real tokens share more experts than that, so it is an upper bound in expectation.
    """
    return _seen(per_token / experts, tokens)


def scan_from(experts: int, per_token: int) -> int:
    """Tokens from which on ``SCAN_SHARE`` of the experts are expected: ``log(1 - share) / log(1 - k/E)``."""
    if per_token >= experts:
        return 1
    return math.ceil(math.log(1 - SCAN_SHARE) / math.log(1 - per_token / experts))


def touched_measured(counts: Sequence[float], per_token: int, tokens: int) -> float:
    """Expected share of a layer's experts that ``tokens`` tokens touch, by how often each expert was used before.

    ``sum(1 - (1 - p_i)**n) / E`` with p_i = k * counts_i / sum(counts), the probability that a token uses expert i.
    """
    return sum(_seen(p, tokens) for p in _probabilities(counts, per_token)) / len(counts)


def hit_rate(shares: Sequence[float] | None, per_token: int, cached_share: float) -> float:
    """Expected share of uses that an LRU cache answers which holds ``cached_share`` of the experts.

    ``shares``: how often each expert is used, in any unit; None for uniform routing, where the hit rate is the cached
    share. With the experts of several layers in one row, ``per_token`` counts the uses of a token in all of them.

    Che's approximation (Che, Tung, Wang: Hierarchical Web Caching Systems, IEEE JSAC 20(7), 2002): an expert is still
    cached if it was used within the last T tokens, and T is the time in which as many experts are used as the cache
    holds: ``sum(1 - (1 - p_i)**T) = C``, solved by bisection. Hit rate: ``sum(p_i * (1 - (1 - p_i)**T)) / sum(p_i)``.
    Tokens count as independent of each other; real ones resemble those before them, and more is hit then.
    """
    if cached_share <= 0.0:
        return 0.0
    if shares is None or cached_share >= 1.0:
        return min(cached_share, 1.0)
    probabilities = _probabilities(shares, per_token)
    capacity = cached_share * len(shares)
    time = _characteristic_time(probabilities, capacity)
    return sum(p * _seen(p, time) for p in probabilities) / sum(probabilities)


def _characteristic_time(probabilities: Sequence[float], capacity: float) -> float:
    """Tokens in which ``capacity`` experts are used: the least T with ``sum(1 - (1 - p_i)**T) >= C``."""

    def used(tokens: float) -> float:
        return sum(_seen(p, tokens) for p in probabilities)

    low, high = 0.0, 1.0
    while high < LONGEST and used(high) < capacity:
        low, high = high, 2.0 * high
    for _ in range(STEPS):
        middle = (low + high) / 2.0
        low, high = (middle, high) if used(middle) < capacity else (low, middle)
    return high


def _probabilities(counts: Sequence[float], per_token: int) -> list[float]:
    """For each expert the probability that a token uses it: k * counts_i / sum(counts), at most 1."""
    total = sum(counts)
    if total <= 0.0:
        return [per_token / len(counts)] * len(counts)  # nothing was measured: uniform
    return [min(1.0, per_token * count / total) for count in counts]


def _seen(probability: float, tokens: float) -> float:
    """Probability that something of this probability per token is used within so many tokens."""
    return 1.0 - math.pow(1.0 - probability, tokens)
