"""A whole dataset: how many sweeps, how many seconds. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec
from outsize.planner import cost, footprint
from outsize.planner.batches import Burden, Shape, burden_of, pack, room_of
from outsize.planner.plan import Plan
from outsize.planner.sweep_time import Step, first_sweep_s, steady_sweep_s


@dataclass(frozen=True, slots=True)
class Dataset:
    """Sequences: tokens that each brings, tokens that each generates (0: scoring), and positions of each to score."""

    tokens: tuple[int, ...]
    new_tokens: int = 0
    scored: int = 1


@dataclass(frozen=True, slots=True)
class DatasetPrediction:
    """Passes over the weights and seconds, with the load as the first pass where it has yet to come."""

    sweeps: int
    seconds: float
    micro_batches: int
    disk_bytes: int


def shapes_of(spec: ModelSpec, plan: Plan, dataset: Dataset) -> list[Shape]:
    """The micro-batches that a dataset is packed into; sequences that do not fit at all are left out."""
    room = room_of(spec, plan)

    def shape(rows: int, tokens: int) -> Shape:
        new = dataset.new_tokens
        return Shape(rows, tokens, new_tokens=new, scored=rows * dataset.scored, cached=new > 0)

    def fits(rows: int, tokens: int) -> bool:
        return room.fits([burden_of(spec, plan, shape(rows, tokens))])

    lengths = [n for n in dataset.tokens if fits(1, n)]
    return [shape(len(pack_), lengths[pack_[0]]) for pack_ in pack(lengths, fits)]


def predict_dataset(
    spec: ModelSpec, machine: Machine, plan: Plan, dataset: Dataset, *, loaded: bool = False
) -> DatasetPrediction:
    """What scoring the sequences or generating from them will take, all of them to the last of their new tokens."""
    return predict_shapes(spec, machine, plan, shapes_of(spec, plan, dataset), loaded=loaded)


def predict_shapes(
    spec: ModelSpec, machine: Machine, plan: Plan, shapes: Sequence[Shape], *, loaded: bool = False
) -> DatasetPrediction:
    """The same for micro-batches, in the order in which they begin.

    Without anything streamed each pass of each micro-batch is a sweep, but for those that the load makes one.
    """
    rounds = _rounds(spec, plan, shapes)
    clock = _Clock(spec, machine, plan)
    passing = any(item.streamed for item in plan.items)
    seconds = sum(times * clock.sweep_s(work) for work, times in rounds.items())
    sweeps, reads = sum(rounds.values()), 0
    if not passing:
        sweeps = sum(times * len(work) for work, times in rounds.items())
    if rounds and not loaded:
        first = next(iter(rounds))
        seconds += clock.first_s(first) - clock.sweep_s(first)
        sweeps -= 0 if passing else len(first) - 1
        reads = clock.load_bytes - clock.streamed_bytes
    reads += clock.streamed_bytes * sweeps
    return DatasetPrediction(sweeps, seconds, len(shapes), reads)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one micro-batch computes in one sweep: ``rows`` x ``tokens``, with ``past`` tokens in its cache."""

    rows: int
    tokens: int
    past: int
    scored: int


@dataclass(slots=True)
class _Underway:
    shape: Shape
    burden: Burden
    step: int = 0

    def turn(self) -> Turn:
        shape = self.shape
        if not self.step:
            return Turn(shape.rows, shape.tokens, shape.past, shape.rows if shape.new_tokens else shape.scored)
        half = shape.past + shape.tokens + shape.new_tokens // 2  # the mean of them all: one turn for every step
        return Turn(shape.rows, 1, half, shape.rows)


def _rounds(spec: ModelSpec, plan: Plan, shapes: Sequence[Shape]) -> Counter[tuple[Turn, ...]]:
    """What is computed in each sweep, and in how many sweeps the same: the scheduler's own rules, without the work."""
    room = room_of(spec, plan)
    coming = [_Underway(shape, burden_of(spec, plan, shape)) for shape in reversed(shapes)]
    underway: list[_Underway] = []
    rounds: Counter[tuple[Turn, ...]] = Counter()
    while coming or underway:
        while coming and (not underway or room.fits([u.burden for u in (*underway, coming[-1])])):
            underway.append(coming.pop())
        rounds[tuple(u.turn() for u in underway)] += 1
        for one in underway:
            one.step += 1
        underway = [u for u in underway if u.step < u.shape.new_tokens]
    return rounds


class _Clock:
    """Seconds of sweeps that serve several micro-batches: the sum of what each computes, beside the reading."""

    def __init__(self, spec: ModelSpec, machine: Machine, plan: Plan) -> None:
        self._spec, self._machine, self._plan = spec, machine, plan
        self._works = [
            cost.module_work(spec, module, plan.weights, compact=item.compact and not item.streamed)
            for module, item in zip(spec.modules, plan.items, strict=True)
        ]
        self._whole = [footprint.rest_bytes(module, plan.weights) for module in spec.modules]
        self._streamed = [
            whole - sum(one.file_bytes for one in item.kept) if item.streamed else 0
            for whole, item in zip(self._whole, plan.items, strict=True)
        ]
        self._compute = lru_cache(maxsize=4096)(self._compute_s)
        self.streamed_bytes = sum(self._streamed)
        self.load_bytes = sum(0 if i.rows else size for i, size in zip(plan.items, self._whole, strict=True))

    def sweep_s(self, turns: tuple[Turn, ...]) -> float:
        """Seconds of a steady sweep."""
        disk = self._machine.disk
        steps = []
        for index, streamed in enumerate(self._streamed):
            compute = sum(self._compute(index, turn) for turn in turns)
            steps += self._steps(index, cost.read_s(streamed, disk) if streamed else 0.0, compute, bool(streamed))
        return steady_sweep_s(steps, max(self._plan.ring_slots, 1)) + cost.TOKEN_OPERATIONS_S * len(turns)

    def first_s(self, turns: tuple[Turn, ...]) -> float:
        """Seconds of the sweep that is the load, from its beginning."""
        start = cost.WARM_START_S if self._plan.request.warm else cost.COLD_START_S
        steps = [Step(0.0, start, ring=False)]
        for index, item in enumerate(self._plan.items):
            home = self._machine.device(item.compute)
            read = 0.0 if item.rows else cost.load_s(self._whole[index], self._machine.disk, home)
            compute = sum(self._compute(index, turn) for turn in turns)
            if item.compact:
                compute += cost.encode_s(self._whole[index] - self._streamed[index])
            steps += self._steps(index, read, compute, item.streamed)
        return first_sweep_s(steps, max(self._plan.ring_slots, 1)) + cost.TOKEN_OPERATIONS_S * len(turns)

    def _steps(self, index: int, read: float, compute: float, ring: bool) -> list[Step]:
        parts = len(self._spec.modules[index].parts) if ring else 1
        compute += cost.HANDOVER_S * parts if ring else 0.0
        return [Step(read / parts, compute / parts, ring)] * parts

    def _compute_s(self, index: int, turn: Turn) -> float:
        module, device = self._spec.modules[index], self._machine.device(self._plan.items[index].compute)
        tokens = turn.scored if cost.is_head(self._spec, module) else turn.rows * turn.tokens
        return cost.compute_s(self._works[index], device, tokens, turn.rows * module.cache.bytes_for(turn.past))
