from __future__ import annotations

import pytest

from outsize.evals.fewshot.metrics import CHOICE_METRICS, Matching, Scored, best

# By hand, for "aa", "öö" (2 characters, 4 bytes), "bbbbb" and "cccccccc":
#   acc             -2.0    -2.1    -3.0     -4.0      -> 0
#   acc_norm        -1.0    -1.05   -0.6     -0.5      -> 3
#   acc_bytes       -1.0    -0.525  -0.6     -0.5      -> 3
#   acc_token       -2.0    -0.525  -3.0     -1.0      -> 1
#   acc_mutual_info  0.0    -0.1     1.5      0.5      -> 2
SCORED = Scored(
    choices=("aa", "öö", "bbbbb", "cccccccc"),
    logprobs=(-2.0, -2.1, -3.0, -4.0),
    tokens=(1, 4, 1, 4),
    alone=(-2.0, -2.0, -4.5, -4.5),
)


@pytest.mark.parametrize(
    ("metric", "choice"), [("acc", 0), ("acc_norm", 3), ("acc_bytes", 3), ("acc_token", 1), ("acc_mutual_info", 2)]
)
def test_each_metric_takes_another_choice(metric: str, choice: int) -> None:
    assert best(metric, SCORED) == choice


def test_characters_and_bytes_differ() -> None:
    scored = Scored(("öö", "abc"), (-2.0, -2.4), (1, 1))  # -1.0 against -0.8; in bytes -0.5 against -0.8
    assert best("acc_norm", scored) == 1
    assert best("acc_bytes", scored) == 0


@pytest.mark.parametrize("metric", CHOICE_METRICS)
def test_of_equal_ones_the_first(metric: str) -> None:
    assert best(metric, Scored(("ab", "cd"), (-1.0, -1.0), (2, 2), (-3.0, -3.0))) == 0


def test_what_counts_as_equal() -> None:
    assert Matching().matches(" yes\n", ["no", "yes"])
    assert not Matching().matches("Yes", ["yes"])
    assert not Matching(strip=False).matches(" yes", ["yes"])
    assert Matching(ignore_case=True).matches("YES", ["yes"])
    assert not Matching().matches("yes.", ["yes"])
    assert Matching(ignore_punctuation=True).matches("'yes'. ", ["yes!"])
    assert not Matching(ignore_punctuation=True).matches("yes no", ["yesno"])
