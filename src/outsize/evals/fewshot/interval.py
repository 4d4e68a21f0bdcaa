"""How sure an accuracy is."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z = 1.959963984540054  # the standard normal distribution's 97.5 % quantile: 95 % lie within +-Z


@dataclass(frozen=True, slots=True)
class Accuracy:
    """A share of right answers, its 95 % interval, and the shares of the single draws that it is the mean of."""

    mean: float
    low: float
    high: float
    draws: tuple[float, ...]


def accuracy(draws: tuple[float, ...], rows: int) -> Accuracy:
    """The mean over draws of examples, with the Wilson interval for that share of ``rows`` test rows.

    It says how far another set of as many test rows might lie. Several draws ask the same rows again, so they do not
    count as more rows: an average over draws varies less between sets of rows than one draw does, never more, and the
    interval errs to the wide side. What other examples would change is not in it; the single draws show that.
    """
    mean = math.fsum(draws) / len(draws)
    low, high = wilson(mean, rows)
    return Accuracy(mean, low, high, draws)


def wilson(share: float, rows: int) -> tuple[float, float]:
    """Bounds between 0 and 1 that hold the true share in 95 % of samples, about.

    ``(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`` with ``p`` the share of ``n`` rows: E. B. Wilson,
    Probable inference, the law of succession, and statistical inference, JASA 22 (1927), 209-212. It keeps its
    promise near 0 and 1 too, where the mean plus and minus two standard errors does not.
    """
    spread = Z * Z / rows
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)
