"""bf12 in plain torch: what the C kernels make and read, byte for byte. ``c/bf12.h`` says what the bytes mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from outsize.models.bf12_layout import GROUP, GROUP_BYTES, bf12_parts

REACH = 7  # pairs of exponents below the base that have a code; the last of them stands for zeros in most groups
WHOLE = 0x80
ROWS_AT_ONCE = 1 << 20  # elements, about
# Byte p of each 64 holds this element.
ORDER = torch.tensor([8 * (p // 16) + p % 8 + 32 * (p % 16 // 8) for p in range(64)])
PLACE = ORDER.argsort()

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Parts:
    """The four parts of a buffer, as views of it."""

    body: Tensor  # uint8 [out, groups, 192]
    bases: Tensor  # uint8 [out, groups]
    starts: Tensor  # int32 [out + 1]
    entries: Tensor  # int32 [most exceptions]: column << 16 | bits


def parts_of(stored: Tensor, out: int, inputs: int, limit: float) -> Parts:
    """The parts of ``stored``: uint8, of ``bf12_bytes(out, inputs, limit)`` bytes."""
    sizes = bf12_parts(out, inputs, limit)
    body, bases, starts, entries = torch.split(stored[: sum(sizes)], list(sizes))
    groups = -(-inputs // GROUP)
    return Parts(
        body.view(out, groups, GROUP_BYTES),
        bases[: out * groups].view(out, groups),
        starts.view(torch.int32)[: out + 1],
        entries.view(torch.int32),
    )


def encode(weight: Tensor, parts: Parts, most: int) -> int:
    """bfloat16 [out, in] into the parts. The number of exceptions; -1 where there are more than ``most``."""
    out, inputs = weight.shape
    found = 0
    parts.starts[0] = 0
    step = max(1, ROWS_AT_ONCE // max(1, inputs))
    for row in range(0, out, step):
        some = slice(row, min(row + step, out))
        entries, ends = _encode(weight[some], parts.body[some], parts.bases[some])
        if found + len(entries) > most:
            return -1
        parts.entries[found : found + len(entries)] = entries
        parts.starts[some.start + 1 : some.stop + 1] = found + ends
        found += len(entries)
    return found


def _encode(weight: Tensor, body: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
    """Some rows: their entries, and how many there are up to the end of each row."""
    rows, groups = bases.shape
    bits = torch.zeros(rows, groups * GROUP, dtype=torch.int32)
    bits[:, : weight.shape[1]] = weight.view(torch.int16).int() & 0xFFFF
    bits = bits.view(rows, groups, GROUP)
    pairs = bits >> 8 & 0x7F
    largest = pairs.amax(-1)
    whole = largest - pairs.amin(-1) <= REACH
    base = torch.where(whole, largest | WHOLE, largest)
    base[~whole] = _best_bases(pairs[~whole], largest[~whole])
    bases.copy_(base)
    steps = (base & 0x7F).unsqueeze(-1) - pairs  # [rows, groups, GROUP]
    zero = (pairs == 0) & ~whole.unsqueeze(-1)
    exceptions = ~whole.unsqueeze(-1) & (pairs > 0) & ((steps < 0) | (steps >= REACH))
    codes = torch.where(zero, REACH, steps) | bits >> 12 & 8
    codes[exceptions] = REACH
    low = torch.where(exceptions, 0, bits & 255)
    for half in (0, 64):
        body[..., half : half + 64] = low[..., ORDER + half]
    body[..., GROUP:] = codes[..., ORDER] | codes[..., ORDER + 64] << 4
    flat = exceptions.view(rows, -1)
    row, column = flat.nonzero(as_tuple=True)
    entries = column << 16 | bits.view(rows, -1)[row, column].long()
    return _wrapped(entries), flat.sum(-1).cumsum(-1)


def _best_bases(pairs: Tensor, largest: Tensor) -> Tensor:
    """Of groups [n, GROUP]: the base, at most the largest pair, that has codes for most; the largest of these."""
    counts = torch.zeros(len(pairs), 128, dtype=torch.int32)
    counts.scatter_add_(1, pairs.long(), torch.ones_like(pairs))
    counts[:, 0] = 0
    upto = counts.cumsum(-1)
    within = upto.clone()  # [n, base]: how many lie in base - 6 .. base
    within[:, REACH:] -= upto[:, :-REACH]
    within[torch.arange(128) > largest.unsqueeze(-1)] = -1
    return (within * 128 + torch.arange(128)).argmax(-1).int()


def _wrapped(unsigned: Tensor) -> Tensor:
    """Numbers below 2**32 as the int32 of the same bits."""
    return torch.where(unsigned >= 1 << 31, unsigned - (1 << 32), unsigned).int()


def expand(parts: Parts, first: int, last: int, to: Tensor) -> None:
    """Rows first .. last into ``to``: bfloat16 [last - first, in]."""
    step = max(1, ROWS_AT_ONCE // max(1, to.shape[1]))
    for row in range(first, last, step):
        end = min(row + step, last)
        _expand(parts, row, end, to[row - first : end - first])


def _expand(parts: Parts, first: int, last: int, to: Tensor) -> None:
    body = parts.body[first:last].int()  # [rows, groups, GROUP_BYTES]
    base = parts.bases[first:last].int().unsqueeze(-1)
    low = torch.cat((body[..., PLACE], body[..., 64 + PLACE]), dim=-1)
    codes = torch.cat((body[..., GROUP + PLACE] & 15, body[..., GROUP + PLACE] >> 4), dim=-1)
    steps = codes & 7
    pairs = (base & 0x7F) - steps
    pairs = torch.where((steps == REACH) & (base & WHOLE == 0), 0, pairs)
    bits = ((codes & 8) << 12 | pairs << 8 | low).flatten(1)[:, : to.shape[1]]
    to.view(torch.int16).copy_(bits)  # wraps to the same bits
    starts = parts.starts[first : last + 1].long()
    entries = parts.entries[starts[0] : starts[-1]]
    rows = torch.repeat_interleave(torch.arange(last - first), starts.diff())
    to.view(torch.int16)[rows, entries >> 16 & 0xFFFF] = entries.to(torch.int16)
