"""Float weights -> group-quantised words and scales, as compressed-tensors' ``pack-quantized`` format stores them.

int8: plain rounding, ``scale = largest magnitude / 127``. int4: the scale of each group is searched for the least
squared error. The range -8..7 has one value more on its negative side, so the element of the largest magnitude is put
there: the scale is negative where that element is positive. It is put at -7.4, -8.1, -8.8 and -9.8 in turn (beyond -8
it is clipped, and the others are finer). For the rounded values q of a trial the best scale is ``<w, q> / <q, q>``, and
the error that it leaves is ``<w, w> - <w, q>^2 / <q, q>``: so the trial with the largest ``|<w, q>| / sqrt(<q, q>)``
wins. Its scale is fitted once more to the values that it rounds to. Scales are rounded to the type that stores them
before values are rounded with them.

Everything is elementwise, or a sum over one group: what comes out does not depend on how rows are divided or on the
number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from outsize.errors import DamagedModel

TRIALS = (7.4, 8.1, 8.8, 9.8)  # where the largest element of a group is put
CHUNK_PER_THREAD = 1 << 17  # weights: three float32 buffers of it lie in a core's second-level cache
FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, slots=True)
class Quantised:
    """``words`` int32 [out, in * bits / 32] hold ``value + 2**(bits - 1)``; ``scale`` [out, in / group]."""

    words: torch.Tensor
    scale: torch.Tensor


def scratch_bytes() -> int:
    """Bytes that ``quantise`` needs beside its input and output: 4 buffers of a chunk, and a group's few numbers."""
    return CHUNK_PER_THREAD * torch.get_num_threads() * (3 * 4 + 1 + 1)


def quantise(weight: torch.Tensor, bits: int, group: int, name: str = "weight", *, search: bool = True) -> Quantised:
    """A weight [out, in] of bfloat16, float16 or float32 in groups along its inputs; ``group`` divides ``in``.

    ``search=False``: plain rounding for int4 too, ``scale = largest magnitude / 7``. The scale has the weight's type.
    Raises DamagedModel, which names the weight, where it has an element that is no finite number.
    """
    rows, inputs = weight.shape
    if bits not in (4, 8) or weight.dtype not in FLOATS or inputs % group or group * bits % 32:
        raise ValueError(f"{name}: cannot be quantised: {weight.dtype} [{rows}, {inputs}] in groups of {group}")
    words = torch.empty(rows, inputs * bits // 32, dtype=torch.int32)
    scale = torch.empty(rows, inputs // group, dtype=weight.dtype)
    step = max(1, CHUNK_PER_THREAD * torch.get_num_threads() // group)  # groups
    grouped = weight.reshape(-1, group)  # [groups, group]
    packed = words.view(torch.uint8).view(-1, group * bits // 8)  # [groups, bytes]
    scales = scale.view(-1, 1)  # [groups, 1]
    work = _Work(min(step, len(grouped)), group)
    for start in range(0, len(grouped), step):
        piece = slice(start, start + step)
        finite = work.take(grouped[piece])
        if not finite:
            raise DamagedModel(f"{name} has an element that is no finite number", remedy="the model as published")
        raw = work.searched() if search and bits == 4 else work.plain(bits)
        work.store(raw, bits, scales[piece], packed[piece])
    return Quantised(words, scale)


class _Work:
    """Buffers for some groups, and what is done in them."""

    def __init__(self, groups: int, group: int) -> None:
        self._buffers = torch.empty(3, groups, group)
        self._codes = torch.empty(groups, group, dtype=torch.uint8)
        self._groups = groups

    def take(self, weights: torch.Tensor) -> bool:
        """Float32 weights [groups, group], and the largest of each group by magnitude; whether all are finite."""
        count = len(weights)
        self.w, self.q, self.t = (buffer[:count] for buffer in self._buffers)
        self.codes = self._codes[:count]
        self.w.copy_(weights)
        most, least = self.w.amax(1, keepdim=True), self.w.amin(1, keepdim=True)
        self.largest = torch.where(most >= -least, most, least)  # [groups, 1], with its sign
        return bool(torch.isfinite(self.largest).all())

    def plain(self, bits: int) -> torch.Tensor:
        """The scale that puts the largest magnitude at the end of the positive range."""
        return self.largest.abs().div(2 ** (bits - 1) - 1)

    def searched(self) -> torch.Tensor:
        """The scale of least squared error among the trials, fitted to its values."""
        best = torch.zeros_like(self.largest)
        scale = self.largest / -8
        for trial in TRIALS:
            score, fitted = self._fit(self.largest / -trial)
            better = (score > best) & torch.isfinite(fitted)  # false for what overflows, or is no number
            best = torch.where(better, score, best)
            scale = torch.where(better, fitted, scale)
        _, fitted = self._fit(scale)
        return torch.where(torch.isfinite(fitted), fitted, scale)

    def _fit(self, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For values rounded with a scale: how much of the weights they explain, and the best scale for them."""
        torch.div(self.w, scale, out=self.q)  # not times 1 / scale, which may overflow
        self.q.round_().clamp_(-8, 7)
        along = torch.mul(self.w, self.q, out=self.t).sum(1, keepdim=True)  # <w, q>
        square = torch.mul(self.q, self.q, out=self.t).sum(1, keepdim=True)  # <q, q>
        return along.abs() / square.sqrt(), along / square

    def store(self, raw: torch.Tensor, bits: int, scales: torch.Tensor, packed: torch.Tensor) -> None:
        """Rounds the scales to the type that stores them, and the weights with those; packs the values."""
        half = 2 ** (bits - 1)
        limits = torch.finfo(scales.dtype)
        scales.copy_(raw.clamp(-limits.max / half, limits.max / half))  # so that no value times its scale overflows
        # A scale too small for the type becomes its smallest number. A group of zeros has the scale 0.
        smallest = limits.smallest_normal * limits.eps
        lost = (scales == 0) & (self.largest != 0)
        scales.copy_(torch.where(lost, torch.sign(self.largest) * smallest, scales))
        divisor = scales.float()
        divisor = torch.where(divisor == 0, torch.ones_like(divisor), divisor)
        torch.div(self.w, divisor, out=self.q)
        self.codes.copy_(self.q.round_().clamp_(-half, half - 1).add_(half))
        if bits == 8:
            packed.copy_(self.codes)
        else:
            pairs = self.codes.view(torch.int16)  # little-endian: the first of a pair in the low byte
            packed.copy_(pairs.bitwise_or_(pairs >> 4))  # ... and in the low half of its byte; the high byte is lost
