"""Which weight group is asked for next: at first by the order of the list, later by what was seen to follow.

One surprise changes nothing, two in a row do: an encoder-decoder model sweeps its decoder for every token and its
encoder for every prompt, which is one surprise per prompt.
"""

from __future__ import annotations

from collections.abc import Callable


class AccessOrder:
    """The groups of a sweep by their indexes, ``size`` of them.

    ``settled``: whether a group will not be asked for again, so that what follows it is expected in its place.
    """

    def __init__(self, size: int, settled: Callable[[int], bool]) -> None:
        self._successors = [(i + 1) % size for i in range(size)]
        self._surprises: list[int | None] = [None] * size  # what came last time, instead of the successor
        self._settled = settled
        self.last: int | None = None  # what was asked for last
        self._position = 0  # the group that is held, or that is expected next
        self._used = False  # whether the last one that was asked for has been used
        self.past_end = True  # whether another sweep is expected after this one

    def follow_last_with(self, index: int) -> None:
        """A first guess at what follows the last group."""
        if self._successors:
            self._successors[-1] = index

    def asked_for(self, index: int) -> bool:
        """Learns from what is asked for. Returns whether it was expected, as the first group always is."""
        before, self.last, self._position, self._used = self.last, index, index, False
        if before is None:
            return True
        if self._expected_after(before) == index:
            self._surprises[before] = None
            return True
        if self._surprises[before] == index:
            self._successors[before], self._surprises[before] = index, None
        else:
            self._surprises[before] = index
        return False

    def expects(self, index: int) -> bool:
        """Whether a group is what comes next."""
        return index == (self._position if self.last is None else self._expected_after(self.last))

    def released(self) -> None:
        """What was asked for last, which need not be what was released, has been used."""
        if self.last is not None:
            self._position, self._used = self._expected_after(self.last), True

    def ahead(self) -> list[int]:
        """The groups in the order in which they are expected, up to the end of the sweep if no other is expected."""
        seen: dict[int, None] = {}
        index = self._position
        # What comes would be a new sweep, of a single group where no other is left that does not stay.
        over = not self.past_end and self.last is not None and index < self.last + self._used
        while index not in seen and self._successors and not over:
            seen[index] = None
            following = self._successors[index]
            over = not self.past_end and following <= index
            index = following
        return list(seen)

    def _expected_after(self, index: int) -> int:
        following = self._successors[index]
        for _ in self._successors:
            if not self._settled(following):
                break
            following = self._successors[following]
        return following
