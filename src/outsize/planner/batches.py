"""Sequences that compute together, padded to one length: what a micro-batch takes, and how many may be underway.

A micro-batch that waits for weights has hidden states, which rest on the device where it stopped, and a cache, which
rests beside each block. Only one micro-batch computes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from outsize.models.dtypes import dtype_bytes
from outsize.models.spec import ModelSpec
from outsize.planner import footprint
from outsize.planner.plan import Plan

# Tokens of one micro-batch: enough for matmuls to reach their rate on a CPU, few enough to keep its workspace small.
MICRO_BATCH_TOKENS = 1024
# Of a micro-batch's tokens, the most that may be padding.
MOST_PADDING = 0.125
# Bytes of logits that are turned into log-probabilities at a time, the float32 copies of the softmax included.
LOGITS_BYTES = 64 * footprint.MIB
# Bytes of rows of an embedding on disk that are kept while a dataset is underway, and the most of RAM's room for them.
ROWS_BYTES = 64 * footprint.MIB
ROWS_SHARE = 0.125
ROW_OVERHEAD = 1.25  # of the table that holds them
LOGITS_COPIES = 3  # logits in float32, what the softmax makes of them, what it needs meanwhile


@dataclass(frozen=True, slots=True)
class Shape:
    """One micro-batch: ``rows`` sequences of ``tokens`` each.

    ``new_tokens``: what each generates afterwards, one by one. ``past``: tokens before these, whose cache another
    micro-batch has. ``scored``: positions, of all rows together, whose logits are wanted. ``cached``: whether its own
    keys and values are kept, ``transient``: only until those that share them have passed the block.
    """

    rows: int
    tokens: int
    new_tokens: int = 0
    past: int = 0
    scored: int = 1
    cached: bool = False
    transient: bool = False


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes of a micro-batch: ``resting`` on each computing tier while it waits, ``workspace`` while it computes."""

    resting: tuple[tuple[str, int], ...]
    workspace: int


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of each computing tier that the plan leaves to caches, hidden states and workspace."""

    tiers: tuple[tuple[str, int], ...]

    def fits(self, uses: Sequence[MemoryUse]) -> bool:
        """Whether these may be underway together: ``sum of resting + largest workspace <= room``, on every tier."""
        workspace = max((b.workspace for b in uses), default=0)
        return all(sum(dict(b.resting)[tier] for b in uses) + workspace <= room for tier, room in self.tiers)


def room_of(spec: ModelSpec, plan: Plan) -> Room:
    """What is left of each tier that computes, once weights, ring and process have theirs.

    ``capacity - weights - ring - overhead - buffers - unpacked``; of RAM's overhead, the part that grows with the
    workspace counts as workspace. Kept rows of embeddings are left out.
    """
    fixed = spec.buffer_bytes + footprint.unpacked_bytes(spec, plan.weights)
    tiers = []
    for tier in dict.fromkeys(group.device for group in plan.groups):
        usage = plan.usage[tier]
        left = usage.capacity_bytes - usage.weights_bytes - usage.ring_bytes - usage.overhead_bytes - fixed
        if tier == "ram":
            left += int(footprint.HEAP_SHARE * usage.workspace_bytes)
            left -= int(kept_rows_bytes(plan) * ROW_OVERHEAD)
        tiers.append((tier, left))
    return Room(tuple(tiers))


def kept_rows_bytes(plan: Plan) -> int:
    """Bytes of rows to keep of embeddings that are looked up on disk: all, 64 MiB, or an eighth of RAM's room."""
    usage = plan.usage["ram"]
    left = max(usage.capacity_bytes - usage.total_bytes + usage.kv_bytes + usage.workspace_bytes, 0)
    return min(
        sum(group.rest_bytes for group in plan.groups if group.residency == "cached"),
        ROWS_BYTES,
        int(ROWS_SHARE * left),
    )


def peak_bytes(spec: ModelSpec, tokens: int) -> int:
    """Peak bytes of activations of one sequence."""
    return spec.workspace.bytes_for(1, tokens)


def resting_bytes(spec: ModelSpec, tokens: int) -> int:
    """Bytes of one sequence that waits for a part of a block: hidden states, masks, what the block holds meanwhile.

    As measured, else the peak of a pass.
    """
    return peak_bytes(spec, tokens) if spec.resting is None else spec.resting.bytes_for(1, tokens)


def cache_bytes(spec: ModelSpec, plan: Plan, shape: Shape, tier: str) -> int:
    """Cache bytes of a micro-batch on one tier, of all blocks that compute there; of a transient one, see ``_run``.

    An encoder-decoder model's decoder holds the new tokens and one to begin with, and keys of the encoder's tokens.
    """
    if not shape.cached:
        return 0
    own = 1 + shape.new_tokens if spec.encoder_decoder else shape.tokens + shape.new_tokens
    devices = plan.devices
    sizes = {
        module.name: module.cache.bytes_for(own, encoder_tokens=shape.tokens) if devices[module.name] == tier else 0
        for module in spec.modules
    }
    return shape.rows * (_run(plan, sizes) if shape.transient else sum(sizes.values()))


def _run(plan: Plan, sizes: Mapping[str, int]) -> int:
    """The largest sum over modules that compute without a wait between them: a streamed one and those after it."""
    streamed = {group.module for group in plan.groups if group.streamed}
    most = now = 0
    for module, size in sizes.items():
        now = size if module in streamed else now + size
        most = max(most, now)
    return most


def workspace_bytes(spec: ModelSpec, shape: Shape) -> int:
    """Peak bytes while a micro-batch computes, holes of the heap included.

    ``(rows x peak + rows x largest block's keys and values + logits) x (1 + heap share)``: keys and values of all
    tokens are put together anew in every block.
    """
    whole = shape.past + shape.tokens + shape.new_tokens
    joined = max((m.cache.bytes_for(whole, encoder_tokens=shape.tokens) for m in spec.modules), default=0)
    joined = joined if shape.cached or shape.past else 0
    logits = min(logit_rows(spec), shape.rows if shape.new_tokens else shape.scored) * _logit_bytes(spec)
    return int((shape.rows * (peak_bytes(spec, shape.tokens) + joined) + logits) * (1 + footprint.HEAP_SHARE))


def logit_rows(spec: ModelSpec) -> int:
    """Positions whose logits are computed at a time: as many as 64 MiB hold, at least one."""
    return max(LOGITS_BYTES // _logit_bytes(spec), 1)


def _logit_bytes(spec: ModelSpec) -> int:
    return LOGITS_COPIES * dtype_bytes("float32") * spec.vocab_size


def memory_use_of(spec: ModelSpec, plan: Plan, shape: Shape) -> MemoryUse:
    """What a micro-batch takes: hidden states on every tier, for they pass them all, and the cache of its blocks."""
    hidden = shape.rows * resting_bytes(spec, shape.tokens)
    tiers = dict.fromkeys(group.device for group in plan.groups)
    resting = tuple((tier, hidden + cache_bytes(spec, plan, shape, tier)) for tier in tiers)
    return MemoryUse(resting, workspace_bytes(spec, shape))


def pack(
    lengths: Sequence[int],
    fits: Callable[[int, int], bool],
    *,
    most_tokens: int = MICRO_BATCH_TOKENS,
    alike: bool = False,
) -> list[list[int]]:
    """Indexes of sequences that go together: of similar length, the longest first.

    At most ``most_tokens`` and an eighth of padding to a micro-batch, but at least one sequence; ``fits(rows, tokens)``
    says whether there is room for one of that shape. ``alike``: only sequences of equal length.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])  # stable: equal ones stay in the order given
    packs: list[list[int]] = []
    longest = held = 0
    for i in order:
        rows = len(packs[-1]) + 1 if packs else 0
        padded = rows * longest
        padding = padded - held - lengths[i]
        few = rows and padded <= most_tokens and padding <= (0 if alike else MOST_PADDING * padded)
        if few and fits(rows, longest):
            packs[-1].append(i)
            held += lengths[i]
        else:
            packs.append([i])
            longest = held = lengths[i]
    return packs
