"""The seconds of a sweep: one model for single tokens and for whole datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from outsize.machine import rates
from outsize.machine.machine import Machine
from outsize.models.spec import ModelSpec, ModuleSpec
from outsize.planner import cost, footprint
from outsize.planner.plan import Plan, Prediction, Request, Weights
from outsize.planner.routing import hit_rate, scan_from, touched, touched_measured
from outsize.planner.sweep_time import Step, first_sweep_s, steady_sweep_s
from outsize.planner.weight_group import WeightGroup


@dataclass(frozen=True, slots=True)
class Turn:
    """What one micro-batch computes in one sweep: ``rows`` x ``tokens``, with ``past`` tokens in its cache.

    ``scored``: positions whose logits are wanted. ``first``: its prompt, which an encoder sees too. ``encoded``: tokens
    of the encoder that the decoder's cache holds.
    """

    rows: int
    tokens: int
    past: int
    scored: int
    first: bool = False
    encoded: int = 0


class SweepCost:
    """Seconds of the sweeps of one placement. ``expert_slots``: experts that RAM has room for."""

    def __init__(
        self,
        spec: ModelSpec,
        machine: Machine,
        weights: Weights,
        groups: Sequence[WeightGroup],
        slots: int,
        expert_slots: int = 0,
    ) -> None:
        self._spec, self._machine, self._groups, self._slots = spec, machine, groups, max(slots, 1)
        self._modules = {module.name: module for module in spec.modules}
        self._own = {group.module: group for group in groups}  # the last: where the cache is
        self._idle = {spec.modules[i].name for i in cost.untouched_by_decode(spec)}
        self._disk = machine.disk
        self._devices = {device.name: device for device in machine.devices}
        self._work: list[cost.Work] = []
        self._converted: list[int] = []
        self._alike: list[int] = []  # groups of one number take the same time
        tensors = {module.name: {tensor.name: tensor for tensor in module.tensors} for module in spec.modules}
        known: dict[object, int] = {}
        for group in groups:
            module = self._modules[group.module]
            mine = tensors[group.module]
            own = self._own[group.module] is group
            names = tuple(name.removeprefix(group.module) for name in group.tensors)
            first = mine[group.tensors[0]]
            alike = (module.role, module.cache, names, first.runtime, first.stored, group.format, group.device, own,
                     group.disk_bytes, group.rest_bytes, group.module in self._idle)  # fmt: skip
            number = known.setdefault(alike, len(known))
            if number == len(self._work):
                part = replace(module, tensors=tuple(mine[name] for name in group.tensors))
                work = cost.module_work(spec, part, weights, bf12=group.format == "bf12")
                self._work.append(replace(work, block=work.block and own))
                self._converted.append(footprint.converted_bytes(part, weights) if group.streamed else 0)
            self._alike.append(number)
        self._compute: dict[tuple[int, Turn | int], float] = {}
        on_disk = sum(group.experts for group in groups if group.tier == "disk")
        in_ram = sum(group.experts for group in groups if group.tier == "ram")
        self.expert_hit_rate = None
        self._held = 0.0  # share of the experts on disk that are in memory too
        if on_disk:
            self._held = (expert_slots - in_ram) / on_disk
            modules = [self._modules[g.module] for g in groups if g.experts and g.tier == "disk"]
            self.expert_hit_rate = _hit_rate(spec, modules, self._held)
        self.streamed_bytes = sum(group.disk_bytes for group in groups if group.streamed)
        self.load_bytes = sum(group.disk_bytes for group in groups if group.residency != "cached")

    @classmethod
    def of(cls, spec: ModelSpec, machine: Machine, plan: Plan) -> SweepCost:
        """That of a plan."""
        return cls(spec, machine, plan.weights, plan.groups, plan.ring_slots, plan.expert_slots)

    @property
    def streams(self) -> bool:
        """Whether every sweep reads something again, whoever computes."""
        return self.streamed_bytes > 0

    @property
    def shared(self) -> bool:
        """Whether micro-batches wait for each other in a sweep: for what is streamed, or for experts."""
        return self.streams or any(group.experts for group in self._groups)

    def sweep_s(self, turns: Sequence[Turn]) -> float:
        """Seconds of a steady sweep that serves several micro-batches: all compute a group before it goes."""
        steps = self._steady_steps(tuple(turns))
        hops = cost.hops_s([self._groups[place].device for place, _ in steps])
        return steady_sweep_s([step for _, step in steps], self._slots) + self._loop_s(turns) + hops

    def first_s(self, turns: Sequence[Turn], *, warm: bool) -> float:
        """Seconds of the sweep that is the load, from its beginning: every byte is read once, computing as it comes.

        Computing begins once torch and the model's modules are there; reading does not wait for them. A head that is
        tied to the embedding is read first, wherever it is listed, and multiplied last. ``warm``: torch and
        transformers are imported already.
        """
        steps: list[Step] = []
        last: list[Step] = []
        over = self._machine.overheads
        start = Step(0.0, over.warm_start_s if warm else over.cold_start_s, ring=False)
        for place, group in enumerate(self._groups):
            cached = group.residency == "cached"
            read = 0.0 if cached else cost.load_s(group.disk_bytes, self._disk, self._devices[group.device])
            compute = self._group_s(place, tuple(turns))
            if cached and group.experts:
                read, compute = self._fetched(place, turns, compute, loaded=False)
            if group.format == "bf12":
                compute += cost.encode_s(group.disk_bytes, over)
            module = self._modules[group.module]
            if cost.is_head(self._spec, module) and module.tied:
                steps.insert(0, Step(read, 0.0, group.streamed))
                last.append(Step(0.0, compute, ring=False))
            else:
                steps.append(Step(read, compute, group.streamed))
        return first_sweep_s([start, *steps, *last], self._slots) + self._loop_s(turns)

    def token_s(self, request: Request) -> float:
        """Seconds of a token of each sequence, with the whole context in the cache."""
        return self.sweep_s(self._token(request))

    def first_token_s(self, request: Request) -> float:
        """Seconds from the start of the load to the first token."""
        turn = Turn(request.batch, footprint.prompt_tokens(request), 0, request.batch, first=True)
        return self.first_s((turn,), warm=request.warm)

    @property
    def decode_bytes(self) -> int:
        """Bytes that a token reads from the drive, whatever it reads of experts aside."""
        return sum(g.disk_bytes for g in self._groups if g.streamed and g.module not in self._idle)

    def expert_bytes(self, tokens: int, *, loaded: bool = True) -> float:
        """Bytes of experts that a sweep over so many tokens reads from the drive, beside those that are in memory.

        ``loaded``: it is not the first sweep, which finds none of them there.
        """
        on_disk = (group for group in self._groups if group.experts and group.tier == "disk")
        return sum(self._missed(group, tokens, loaded=loaded) * group.disk_bytes for group in on_disk)

    def predict(self, request: Request) -> Prediction:
        """Seconds of the request's tokens, and what holds them up."""
        return Prediction(
            first_token_s=self.first_token_s(request),
            token_s=self.token_s(request),
            bottleneck=self._bottleneck(self._token(request)),
            disk_bytes_per_token=self.decode_bytes + round(self.expert_bytes(request.batch)),
            expert_hit_rate=self.expert_hit_rate,
        )

    @staticmethod
    def _token(request: Request) -> tuple[Turn, ...]:
        return (Turn(request.batch, 1, request.context, request.batch, encoded=request.context),)

    def _steady_steps(self, turns: tuple[Turn, ...]) -> list[tuple[int, Step]]:
        decoding = not any(turn.first for turn in turns)
        steps: list[tuple[int, Step]] = []
        heads: list[tuple[int, Step]] = []
        for place, group in enumerate(self._groups):
            if decoding and group.module in self._idle:
                continue
            compute = self._group_s(place, turns)
            read = cost.read_s(group.disk_bytes, self._disk, self._machine.overheads) if group.streamed else 0.0
            if group.residency == "cached" and group.experts:
                read, compute = self._fetched(place, turns, compute)
            elif group.residency == "cached":
                compute += rates.ROW_READ_S * sum(turn.rows for turn in turns)
            head = cost.is_head(self._spec, self._modules[group.module])  # one tied to an embedding computes last
            (heads if head else steps).append((place, Step(read, compute, group.streamed)))
        return steps + heads

    def _touched(self, group: WeightGroup, tokens: int) -> float:
        """Share of a layer's experts that so many tokens use: as they were used before, else as if uniformly."""
        uses, per_token = self._spec.uses.get(group.module, ()), self._modules[group.module].per_token
        if len(uses) != group.experts:
            return touched(group.experts, per_token, tokens)
        return _known_touched(tuple(uses), per_token, tokens)

    def _scans(self, group: WeightGroup, tokens: int) -> bool:
        """Whether so many tokens read a layer's experts in order, and ahead."""
        return tokens >= scan_from(group.experts, self._modules[group.module].per_token)

    def _missed(self, group: WeightGroup, tokens: int, *, loaded: bool = True) -> float:
        """Share of a layer's experts that so many tokens touch and that are not in memory.

        What single tokens have used often is likely to be there; a pass over nearly all finds what the cache holds.
        """
        share = self._touched(group, tokens)
        hits = self._held if self._scans(group, tokens) else self.expert_hit_rate or 0.0
        return share * (1 - hits) if loaded else share

    def _fetched(
        self, place: int, turns: Sequence[Turn], compute_s: float, *, loaded: bool = True
    ) -> tuple[float, float]:
        """Seconds of reading ahead and of computing a layer's experts, of which some are in memory once all is loaded.

        A sweep over few tokens learns only here what to read: what is in memory computes meanwhile.
        """
        group = self._groups[place]
        tokens = sum(self._tokens(place, turn) for turn in turns)
        missed = self._missed(group, tokens, loaded=loaded)
        read = cost.read_s(missed * group.disk_bytes, self._disk, self._machine.overheads)
        if self._scans(group, tokens):
            return read, compute_s
        last = compute_s / max(self._touched(group, tokens) * group.experts, 1.0)  # of what was read last
        return 0.0, max(read, compute_s - last) + last if read else compute_s

    def _group_s(self, place: int, turns: tuple[Turn, ...]) -> float:
        """Seconds that a group computes, what bringing it to its module takes included."""
        seconds = 0.0
        several: Sequence[Turn | int] = turns
        if self._groups[place].experts:  # the weights of each are gone through once for all turns
            several = (sum(self._tokens(place, turn) for turn in turns),)
        for one in several:
            key = self._alike[place], one
            if key not in self._compute:
                self._compute[key] = self._compute_s(place, one)
            seconds += self._compute[key]
        if self._groups[place].streamed:
            seconds += cost.convert_s(self._converted[self._alike[place]], self._machine.ram)
            seconds += self._machine.overheads.handover_s
        return seconds

    def _tokens(self, place: int, turn: Turn) -> int:
        """Tokens that a group computes in a turn."""
        module = self._modules[self._groups[place].module]
        encoder = module.name in self._idle
        if encoder and not turn.first:
            return 0
        if cost.is_head(self._spec, module):
            return turn.scored
        # A decoder begins with one token, whatever the encoder sees.
        return turn.rows * (1 if turn.first and self._spec.encoder_decoder and not encoder else turn.tokens)

    def _compute_s(self, place: int, one: Turn | int) -> float:
        """Seconds that a group computes in a turn, or for so many tokens of experts."""
        group = self._groups[place]
        module = self._modules[group.module]
        work, device = self._work[self._alike[place]], self._devices[group.device]
        if isinstance(one, int):
            return cost.compute_s(work, device, one, 0, self._machine.overheads)
        tokens = self._tokens(place, one)
        if not tokens:
            return 0.0
        own = self._own[group.module] is group
        kv = one.rows * module.cache.bytes_for(one.past, encoder_tokens=one.encoded) if own and one.past else 0
        return cost.compute_s(work, device, tokens, kv, self._machine.overheads)

    def _loop_s(self, turns: Sequence[Turn]) -> float:
        return self._machine.overheads.token_s * len(turns)

    def _bottleneck(self, turns: tuple[Turn, ...]) -> str:
        """What takes most of a token: ``disk``, ``memory``, ``cpu matmul`` or ``gpuK memory``.

        The CPU waits for memory where its matmuls reach seven tenths of the memory rate, and is itself the limit
        elsewhere.
        """
        spent: dict[str, float] = {}
        read = held = 0.0
        for place, step in self._steady_steps(turns):
            device = self._groups[place].device
            spent[device] = spent.get(device, 0.0) + step.compute_s
            read += step.read_s
            group = self._groups[place]
            used = self._touched(group, turns[0].rows) if group.experts else 1.0
            if group.experts and group.tier == "disk" and not step.read_s:
                missed = self._missed(group, turns[0].rows)
                seconds = cost.read_s(missed * group.disk_bytes, self._disk, self._machine.overheads)
                spent[device] -= seconds
                read += seconds
            held += used * self._work[self._alike[place]].bytes if device == "ram" else 0
        if read > sum(spent.values()):
            return "disk"
        slowest = max(spent, key=lambda name: spent[name], default="ram")
        if slowest != "ram":
            return f"{slowest} memory"
        return "memory" if held / self._machine.ram.bytes_per_s >= 0.7 * spent.get("ram", 0.0) else "cpu matmul"


def _hit_rate(spec: ModelSpec, modules: Sequence[ModuleSpec], cached_share: float) -> float:
    """Share of their uses that a cache of these modules' experts answers: as used before, else as if uniformly."""
    shares: list[float] = []
    for module in modules:
        uses = spec.uses.get(module.name, ())
        if len(uses) != module.experts or not sum(uses):
            return hit_rate(None, 1, cached_share)
        shares += [module.per_token * count / sum(uses) for count in uses]
    return _known_hit_rate(tuple(shares), sum(module.per_token for module in modules), round(cached_share, 3))


# A search asks the same again and again.
_known_hit_rate = lru_cache(maxsize=64)(hit_rate)
_known_touched = lru_cache(maxsize=1024)(touched_measured)
