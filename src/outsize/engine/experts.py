"""Routed experts: of a layer's many, the few that tokens are sent to are fetched and computed, and no others.

What transformers computes around them (router, shared experts, norms) runs unmodified. The module of the experts
computes here what its own ``forward`` does, expert by expert in ascending order, so that sums are rounded as its are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import torch

from outsize.engine.binding import Binding
from outsize.engine.devices import Devices
from outsize.kernels.dispatch import Group, grouped_linear
from outsize.kernels.replaced_forwards import ReplacedForwards
from outsize.kernels.weights import PackedWeight
from outsize.models.spec import ModelSpec, StoredTensor
from outsize.models.tracing.experts import sum_dtype
from outsize.models.tracing.recording import Expression, copies, replay
from outsize.models.tracing.units import Unit
from outsize.planner.plan import Plan
from outsize.planner.routing import scan_from
from outsize.planner.weight_group import WeightGroup
from outsize.store.expert_cache import CachedExpert, ExpertCache, ExpertStats
from outsize.store.views import tensor_at

if TYPE_CHECKING:
    from outsize.engine.sweep import Sweep

Tensor = torch.Tensor
Matrices = tuple[Tensor, ...]  # [out_i, in] each; their outputs stand beside each other


@dataclass(slots=True, eq=False)
class Routing:
    """What one forward pass sends to the experts: each of its tokens to k of them. Numbers past the last are none.

    ``dtype``: in which their outputs are added up. ``summed``: the sums, once they are computed.
    """

    hidden: Tensor  # [tokens, width]
    index: Tensor  # [tokens, k]
    weights: Tensor  # [tokens, k]
    dtype: torch.dtype
    summed: Tensor | None = None  # [tokens, width]


class RoutedExperts:
    """The routed experts of one layer, where the plan has them.

    ``layer``: its number in the cache. ``place``: between the groups of the stream, in the order of the sweep.
    ``uses``: tokens sent to each expert so far.
    """

    def __init__(
        self,
        unit: Unit,
        group: WeightGroup,
        cache: ExpertCache,
        layer: int,
        place: float,
        device: torch.device,
    ) -> None:
        self.module: Any = unit.modules[0]
        self.group, self.layer, self.place, self.device = group, layer, place, device
        self.uses = [0] * group.experts
        self.cache = cache
        self._sweep: Sweep | None = None
        # From so many tokens on nearly all experts are used: they are read in order, and ahead.
        self._scan_from = scan_from(group.experts, max(round(group.use * group.experts), 1))
        up, down = sorted(unit.weights, key=lambda weight: weight.name.endswith("down_proj"))
        self._matrices = [(*pair,) for pair in zip(up.experts, down.experts, strict=True)]
        self._bias = (f"{up.slots[0].attribute}_bias", "down_proj_bias")
        self._views = not any(copies(matrix) for pair in self._matrices for of in pair for matrix in of)
        self._coming: list[Routing] = []
        self._rests_on_gpu = group.tier not in ("ram", "disk")
        self._on_device: dict[int, tuple[Matrices, Matrices]] = {}  # what has come there
        self._weights = unit.weights

    def start(self, sweep: Sweep, forwards: ReplacedForwards) -> None:
        """Has the module compute here for as long as ``forwards`` are replaced, whenever the sweep comes to it."""
        self._sweep = sweep
        Binding(self._weights, self.device).unbind()
        forwards.replace(self.module, lambda *args, **kwargs: self.forward(*args, *kwargs.values()))

    def close(self) -> None:
        """Lets go of what rests on a device."""
        self._on_device.clear()

    def forward(self, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """The experts' part of a layer's output: hidden states [tokens, width], experts and weights [tokens, k]."""
        here = (hidden, index, weights)
        if hidden.device != self.device:
            here = (hidden.to(self.device), index.to(self.device), weights.to(self.device))
        routing = Routing(*here, sum_dtype(self.module, here[0], here[2]))
        self._coming.append(routing)
        assert self._sweep is not None
        try:
            self._sweep.context.wait(self)
        finally:
            if routing in self._coming:  # the pass was ended before its turn
                self._coming.remove(routing)
        assert routing.summed is not None
        return routing.summed.to(hidden.device, hidden.dtype)

    def compute(self) -> None:
        """Computes for all passes that have come here: each expert is fetched once for all of them."""
        routings, self._coming = self._coming, []
        # Whoever schedules passes is outside of the mode that they compute in.
        with torch.inference_mode() if routings[0].hidden.is_inference() else nullcontext():
            if len(routings) == 1 and len(routings[0].hidden) == 1:
                self._compute_one(routings[0])
            else:
                self._compute_all(routings)

    def _compute_all(self, routings: Sequence[Routing]) -> None:
        scan = sum(len(routing.hidden) for routing in routings) >= self._scan_from
        # A scan brings the experts in order, so that their outputs are added up as they come.
        sums = [_Sum(routing, self.group.experts, at_once=scan) for routing in routings]
        used = [sum(counts) for counts in zip(*(one.counts for one in sums), strict=True)]
        self.uses[:] = [before + now for before, now in zip(self.uses, used, strict=True)]
        for some in self._fetch([number for number, count in enumerate(used) if count], scan=scan):
            for one in sums:
                one.take(self._outputs, some)
        for one in sums:
            one.finish()

    def _compute_one(self, routing: Routing) -> None:
        """The same for one token, as decoding has it: sorting and adding up by torch would take longer than reading."""
        in_order = routing.index[0].sort()
        numbers: list[int] = [number for number in in_order.values.tolist() if number < self.group.experts]
        weights = routing.weights[0][in_order.indices[: len(numbers)], None]  # [k, 1]
        for number in numbers:
            self.uses[number] += 1
        out = self._at_once(routing.hidden, numbers)
        if out is None:
            found: dict[int, Tensor] = {}
            for some in self._fetch(numbers, scan=self._scan_from <= 1):
                found.update(zip(some, self._outputs(routing.hidden.expand(len(some), -1), some), strict=True))
            out = torch.stack([found[number] for number in numbers]) if numbers else routing.hidden[:0]
        parts = (out * weights).to(routing.dtype).unbind()
        summed = parts[0] + parts[1] if len(parts) > 1 else sum(parts, torch.zeros_like(routing.hidden[0]))
        for part in parts[2:]:
            summed += part
        routing.summed = summed[None]

    def _at_once(self, hidden: Tensor, numbers: Sequence[int]) -> Tensor | None:
        """The outputs of all experts of a token [k, width], where they are in memory as they are computed with."""
        if not numbers or not self._views or self._rests_on_gpu:
            return None
        experts = self.cache.at_hand(self.layer, numbers)
        if experts is None:
            return None
        matrices = {expert.number: self._matrices_of(expert) for expert in experts}
        return self._outputs(hidden.expand(len(numbers), -1), matrices)

    def _fetch(self, numbers: Sequence[int], *, scan: bool) -> Iterator[dict[int, tuple[Matrices, Matrices]]]:
        """The matrices of the given experts, some at a time, each until the next are asked for."""
        if self._rests_on_gpu:
            missing = [number for number in numbers if number not in self._on_device]
            for ready in self.cache.fetch(self.layer, missing, scan=scan):
                for expert in ready:
                    up, down = self._matrices_of(expert)
                    self._on_device[expert.number] = self._moved(up), self._moved(down)
                    expert.elsewhere = True
            yield {number: self._on_device[number] for number in numbers}
            return
        for ready in self.cache.fetch(self.layer, numbers, scan=scan):
            if self._views:
                yield {expert.number: self._matrices_of(expert) for expert in ready}
            else:
                for expert in ready:  # one at a time, for they are copies beside the cache
                    yield {expert.number: self._matrices_of(expert)}

    def _moved(self, matrices: Matrices) -> Matrices:
        return tuple(matrix.to(self.device, copy=True) for matrix in matrices)

    def _matrices_of(self, expert: CachedExpert) -> tuple[Matrices, Matrices]:
        if expert.weights is not None:
            return expert.weights  # type: ignore[no-any-return]

        def fetch(stored: StoredTensor) -> Tensor:
            assert expert.view is not None
            return tensor_at(expert.view, expert.layout.position(stored), stored)

        def made(matrices: tuple[Expression, ...]) -> Matrices:
            return tuple(replay(matrix, fetch, PackedWeight) for matrix in matrices)

        up, down = (made(matrices) for matrices in self._matrices[expert.number])
        if self._views:
            expert.weights = up, down
        return up, down

    def _outputs(
        self, x: Tensor, experts: dict[int, tuple[Matrices, Matrices]], rows: Sequence[int] | None = None
    ) -> Tensor:
        """Rows of x [uses, width], so many of each expert or else one, through their experts: [uses, width]."""
        module, rows = self.module, rows or [1] * len(experts)
        both = self._linear(x, rows, experts, 0)
        gated = module._apply_gate(both) if module.has_gate else module.act_fn(both)
        out = self._linear(gated, rows, experts, 1)
        return module.post_expert_norm(out) if module.has_post_expert_norm else out

    def _linear(self, x: Tensor, rows: Sequence[int], experts: dict[int, tuple[Matrices, Matrices]], i: int) -> Tensor:
        y = grouped_linear(x, [Group(count, pair[i]) for count, pair in zip(rows, experts.values(), strict=True)])
        if self.module.has_bias:
            bias = getattr(self.module, self._bias[i])[list(experts)].to(x.device)  # [experts, out]
            y += bias.repeat_interleave(torch.tensor(rows, device=x.device), dim=0)
        return y


class _Sum:
    """The sum over each token's experts, of one pass: in ascending order of experts, in whichever order they come.

    ``counts``: uses by expert. ``at_once``: they come in ascending order, so nothing needs to be kept for later.
    """

    def __init__(self, routing: Routing, experts: int, *, at_once: bool) -> None:
        self._routing = routing
        flat, self._k = routing.index.reshape(-1), routing.index.shape[-1]
        in_order = torch.argsort(flat, stable=True)
        self.counts: list[int] = torch.bincount(flat, minlength=experts)[:experts].tolist()
        ends = list(accumulate(self.counts))
        self._spans = [(end - count, end) for end, count in zip(ends, self.counts, strict=True)]
        in_order = in_order[: ends[-1]]
        # Of every use, in ascending order of experts: its token, and which of the token's k it is.
        self._tokens, self._places = in_order // self._k, in_order % self._k
        self._summed = routing.summed = torch.zeros_like(routing.hidden, dtype=routing.dtype)
        self._kept = None if at_once else self._summed.new_empty((ends[-1], self._summed.shape[-1]))

    def take(self, outputs: Callable[..., Tensor], experts: dict[int, tuple[Matrices, Matrices]]) -> None:
        """Computes the uses of these experts."""
        routing = self._routing
        mine = {number: pair for number, pair in experts.items() if self.counts[number]}
        if not mine:
            return
        spans = [self._spans[number] for number in mine]
        adjoining = all(one[1] == other[0] for one, other in pairwise(spans))
        chosen: Any = slice(spans[0][0], spans[-1][1])
        if not adjoining:
            chosen = torch.cat([torch.arange(*span) for span in spans]).to(self._tokens.device)
        tokens, places = self._tokens[chosen], self._places[chosen]
        out = outputs(routing.hidden[tokens], mine, [end - first for first, end in spans])
        out = (out * routing.weights[tokens, places, None]).to(routing.dtype)
        if self._kept is not None:
            self._kept[chosen] = out
            return
        first = 0
        for begin, end in spans:
            part = slice(first, first + end - begin)
            self._summed.index_add_(0, tokens[part], out[part])
            first += end - begin

    def finish(self) -> None:
        """Adds up what was kept, for every token in the order of its experts."""
        if self._kept is None:
            return
        if len(self._kept) == self._k * len(self._summed):  # each token has k experts
            by_token = torch.argsort(self._tokens, stable=True)
            parts = self._kept[by_token].view(-1, self._k, self._kept.shape[-1])
            for i in range(self._k):
                self._summed += parts[:, i]
            return
        for begin, end in self._spans:
            self._summed.index_add_(0, self._tokens[begin:end], self._kept[begin:end])


class Experts:
    """The routed experts of a whole model, layer by layer, and the cache that they share."""

    def __init__(self, layers: Sequence[RoutedExperts], cache: ExpertCache) -> None:
        self.layers = tuple(layers)
        self._cache = cache
        self._forwards = ReplacedForwards()

    @property
    def stats(self) -> ExpertStats:
        """What the cache has done so far."""
        return self._cache.stats

    @property
    def uses(self) -> dict[str, list[int]]:
        """By module, the tokens that were sent to each of its experts."""
        return {layer.group.module: layer.uses for layer in self.layers}

    def start(self, sweep: Sweep) -> None:
        """Has their modules compute here."""
        for layer in self.layers:
            layer.start(sweep, self._forwards)

    def close(self) -> None:
        """Gives the modules their own ``forward`` back, ends the cache's threads and lets go of all memory."""
        self._forwards.restore()
        for layer in self.layers:
            layer.close()
        self._cache.close()


def experts_of(units: Sequence[Unit], spec: ModelSpec, plan: Plan, cache: ExpertCache, devices: Devices) -> Experts:
    """The routed experts of a skeleton, a cache's layers in the order of the plan's groups."""
    by_module = {module.name: unit for module, unit in zip(spec.modules, units, strict=True)}
    parts = {tensor.name: tensor.part for module in spec.modules for tensor in module.tensors}
    found: list[RoutedExperts] = []
    streamed = [group for group in plan.groups if group.residency != "cached" and not group.experts]
    for group in plan.groups:
        if group.experts:
            # After what the block has computed before: groups of the block come first in the plan, all of them.
            after = parts[group.tensors[0]]
            before = [i for i, other in enumerate(streamed) if group.module.startswith(f"{other.module}.")]
            before = [i for i in before if parts[streamed[i].tensors[0]] <= after] or [-1]
            device = devices.torch_device(group.device)
            experts = RoutedExperts(by_module[group.module], group, cache, len(found), before[-1] + 0.5, device)
            found.append(experts)
    return Experts(found, cache)
