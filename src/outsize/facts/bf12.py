"""bf12: bfloat16 weights held in RAM in 12 bits and a little each, without loss. How many bytes that takes."""

from __future__ import annotations

GROUP = 128  # inputs that share a base exponent
GROUP_BYTES = 192  # a byte of sign and mantissa and four bits of exponent for each
EXCEPTION_LIMIT = 0.002  # share of the elements whose exponents may lie too far below their group's largest
LINE = 64


def bf12_bytes(out: int, inputs: int, limit: float = EXCEPTION_LIMIT) -> int:
    """Bytes of the buffer that a weight [out, inputs] takes: groups, bases, where rows' exceptions begin, exceptions.

    ``out * ceil(inputs / 128) * (192 + 1) + 4 * (out + 1) + 4 * floor(limit * out * inputs)``, each rounded up to a
    cache line. Exact and independent of the values: room for exceptions is kept whether they come or not. Raises
    ValueError for rows of more than 65536 inputs.
    """
    if inputs > 1 << 16:
        raise ValueError(f"bf12 has no rows of {inputs} inputs")
    groups = out * -(-inputs // GROUP)
    exceptions = int(limit * out * inputs)
    return groups * GROUP_BYTES + _lines(groups) + _lines(4 * (out + 1)) + _lines(4 * exceptions)


def _lines(nbytes: int) -> int:
    return -(-nbytes // LINE) * LINE
