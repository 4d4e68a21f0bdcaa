from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from outsize.errors import UsageError
from outsize.evals.fewshot.draw import Examples, shuffled
from outsize.evals.fewshot.questions import Question

CHOICES = ("red", "green", "blue")
POOL = [Question(i, f"q{i}", (CHOICES[i % 3 if i < 9 else 0],), CHOICES) for i in range(30)]  # mostly red


def ids(
    shots: int, salt: str, *, balanced: bool = False, fits: Callable[[Question], bool] = lambda _: True
) -> list[int]:
    return [int(example.id) for example in Examples(POOL, balanced=balanced).draw(shots, salt, fits)]


def test_a_seed_always_draws_the_same() -> None:
    # Written down: another Python, or another version of this, must not change an experiment.
    assert ids(6, "seed 0") == [10, 16, 7, 8, 19, 4]
    assert ids(6, "seed 0", balanced=True) == [4, 2, 15, 17, 5, 7]


def test_fewer_are_the_beginning_of_more() -> None:
    for balanced in (False, True):
        longest = ids(9, "seed 3", balanced=balanced)
        for shots in range(9):
            assert ids(shots, "seed 3", balanced=balanced) == longest[:shots]


def test_seeds_differ_and_nothing_is_drawn_twice() -> None:
    draws = {tuple(ids(5, f"seed {seed}")) for seed in range(20)}
    assert len(draws) == 20
    assert all(len(set(draw)) == 5 for draw in draws)
    assert sorted(ids(30, "seed 1")) == list(range(30))


def test_balanced_draws_have_every_choice_equally_often() -> None:
    for seed in range(10):
        drawn = ids(7, f"seed {seed}", balanced=True)
        for shots in range(1, 8):
            counts = Counter(POOL[i].gold for i in drawn[:shots])
            assert max(counts.values()) - min(counts[g] for g in range(3)) <= 1
    first = {POOL[ids(1, f"seed {seed}", balanced=True)[0]].gold for seed in range(20)}
    assert first == {0, 1, 2}  # which choice comes first is drawn too


def test_what_does_not_fit_is_not_drawn() -> None:
    assert sorted(ids(15, "s", fits=lambda example: int(example.id) % 2 == 0)) == list(range(0, 30, 2))
    assert 0 not in ids(9, "s", balanced=True, fits=lambda example: example.id != 0)


def test_too_few() -> None:
    with pytest.raises(UsageError, match="too few examples; need 31, have 30"):
        ids(31, "s")
    with pytest.raises(UsageError, match=r"need 4 whose answer is (green|blue), have 3"):
        ids(12, "s", balanced=True)
    with pytest.raises(UsageError, match="need 1, have 0"):
        Examples([], balanced=True).draw(1, "s", lambda _: True)
    own = [Question(1, "q", ("a",), ("a", "b")), Question(2, "r", ("c",), ("c", "d"))]
    with pytest.raises(UsageError, match="whose answer is choice 1"):
        Examples(own, balanced=True).draw(2, "s", lambda _: True)


def test_all_orders_are_about_equally_likely() -> None:
    counts = Counter(tuple(shuffled("abc", str(seed))) for seed in range(6000))
    assert len(counts) == 6
    assert all(850 < count < 1150 for count in counts.values())
