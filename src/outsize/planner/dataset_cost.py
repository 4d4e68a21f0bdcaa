"""A whole dataset: how many sweeps, how many seconds. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec
from outsize.planner.batches import MemoryUse, Shape, memory_use_of, pack, room_of
from outsize.planner.plan import Plan
from outsize.planner.sweep_cost import SweepCost, Turn


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
        return room.fits([memory_use_of(spec, plan, shape(rows, tokens))])

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

    Where nothing is streamed and nothing is routed to experts, each pass of each micro-batch is a sweep, but for those
    that the load makes one.
    """
    rounds = _rounds(spec, plan, shapes)
    model = SweepCost.of(spec, machine, plan)
    seconds = sum(times * model.sweep_s(turns) for turns, times in rounds.items())
    sweeps = sum(times * (1 if model.shared else len(turns)) for turns, times in rounds.items())
    reads = model.streamed_bytes * sweeps + sum(times * _expert_bytes(model, one) for one, times in rounds.items())
    if rounds and not loaded:
        first = next(iter(rounds))
        seconds += model.first_s(first, warm=plan.request.warm) - model.sweep_s(first)
        sweeps -= 0 if model.shared else len(first) - 1
        reads += model.load_bytes - model.streamed_bytes
        reads += _expert_bytes(model, first, loaded=False) - _expert_bytes(model, first)
    return DatasetPrediction(sweeps, seconds, len(shapes), round(reads))


def _expert_bytes(model: SweepCost, turns: Sequence[Turn], *, loaded: bool = True) -> float:
    """Bytes of experts that a sweep reads, once for all that it serves."""
    return model.expert_bytes(sum(turn.rows * turn.tokens for turn in turns), loaded=loaded)


@dataclass(slots=True)
class _Underway:
    shape: Shape
    memory_use: MemoryUse
    step: int = 0

    def turn(self, *, encoder_decoder: bool) -> Turn:
        shape = self.shape
        if not self.step:
            scored = shape.rows if shape.new_tokens else shape.scored
            return Turn(shape.rows, shape.tokens, shape.past, scored, first=True)
        half = shape.new_tokens // 2  # the mean of them all: one turn for every step
        if encoder_decoder:
            return Turn(shape.rows, 1, 1 + half, shape.rows, encoded=shape.tokens)
        return Turn(shape.rows, 1, shape.past + shape.tokens + half, shape.rows)


def _rounds(spec: ModelSpec, plan: Plan, shapes: Sequence[Shape]) -> Counter[tuple[Turn, ...]]:
    """What is computed in each sweep, and in how many sweeps the same: the scheduler's own rules, without the work."""
    room = room_of(spec, plan)
    coming = [_Underway(shape, memory_use_of(spec, plan, shape)) for shape in reversed(shapes)]
    underway: list[_Underway] = []
    rounds: Counter[tuple[Turn, ...]] = Counter()
    while coming or underway:
        while coming and (not underway or room.fits([u.memory_use for u in (*underway, coming[-1])])):
            underway.append(coming.pop())
        rounds[tuple(u.turn(encoder_decoder=spec.encoder_decoder) for u in underway)] += 1
        for one in underway:
            one.step += 1
        underway = [u for u in underway if u.step < u.shape.new_tokens]
    return rounds
