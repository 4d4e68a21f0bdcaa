"""When an answer is right: the metrics of lm-evaluation-harness 0.4, by its names.

Of each choice there is the sum of natural log-probabilities of its tokens, ``l``, with the delimiter before it. Of the
choices of a ``multiple_choice`` task the harness (``lm_eval/api/task.py``, ``process_results``) takes the one with most

    acc              l
    acc_norm         l / characters of the choice, delimiter not counted
    acc_bytes        l / bytes of the choice in UTF-8, delimiter not counted
    acc_mutual_info  l - l of the same choice after no context

and the first of those that are equal. ``acc_token``, ``l`` / tokens, is what others call length-normalised; the harness
has no name for it.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

EXACT_MATCH = "exact_match"
MUTUAL_INFO = "acc_mutual_info"
CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes", "acc_token", MUTUAL_INFO)
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Scored:
    """Choices of one question: texts, sums of log-probabilities, tokens; ``alone``: the sums after no context."""

    choices: Sequence[str]
    logprobs: Sequence[float]
    tokens: Sequence[int]
    alone: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Matching:
    """What counts as equal in ``exact_match``.

    ``ignore_case`` and ``ignore_punctuation`` are the harness's own; ``strip``, blanks at both ends, is a filter there.
    """

    strip: bool = True
    ignore_case: bool = False
    ignore_punctuation: bool = False

    def normal(self, text: str) -> str:
        if self.ignore_case:
            text = text.lower()
        if self.ignore_punctuation:
            text = text.translate(NO_PUNCTUATION)
        return text.strip() if self.strip else text

    def matches(self, said: str, answers: Sequence[str]) -> bool:
        return self.normal(said) in map(self.normal, answers)


def best(metric: str, scored: Scored) -> int:
    weights = _weights(metric, scored)
    return max(range(len(weights)), key=weights.__getitem__)


def _weights(metric: str, scored: Scored) -> list[float]:
    if metric == "acc":
        return list(scored.logprobs)
    if metric == MUTUAL_INFO:
        return [l - alone for l, alone in zip(scored.logprobs, scored.alone, strict=True)]  # noqa: E741
    sizes = {
        "acc_norm": [len(choice) for choice in scored.choices],
        "acc_bytes": [len(choice.encode()) for choice in scored.choices],
        "acc_token": list(scored.tokens),
    }[metric]
    return [logprob / size for logprob, size in zip(scored.logprobs, sizes, strict=True)]
