"""bf12: bfloat16 weights held in RAM in 12 bits and a little each, without loss. How many bytes that takes."""

from __future__ import annotations

GROUP = 128  # inputs that share a base
GROUP_BYTES = 192  # the low byte of each, and four bits that say sign and exponent
EXCEPTION_LIMIT = 0.002  # share of the elements whose exponents may lie too far from the others in their group
MOST_INPUTS = 1 << 16  # an exception's place in its row takes 16 bits
LINE = 64


def bf12_bytes(out: int, inputs: int, limit: float = EXCEPTION_LIMIT) -> int:
    """Bytes of the buffer that a weight [out, inputs] takes: groups, bases, where rows' exceptions begin, exceptions.

    ``out * ceil(inputs / 128) * (192 + 1) + 4 * (out + 1) + 4 * floor(limit * out * inputs)``, each rounded up to a
    cache line. Exact and independent of the values: room for exceptions is kept whether they come or not. Raises
    ValueError for rows of more than 65536 inputs.
    """
    return sum(bf12_parts(out, inputs, limit))


def bf12_parts(out: int, inputs: int, limit: float = EXCEPTION_LIMIT) -> tuple[int, int, int, int]:
    """The bytes of the four parts, as they follow each other; see ``bf12_bytes``."""
    if inputs > MOST_INPUTS:
        raise ValueError(f"bf12 has no rows of {inputs} inputs")
    groups = out * -(-inputs // GROUP)
    return groups * GROUP_BYTES, _lines(groups), _lines(4 * (out + 1)), _lines(4 * most_exceptions(out, inputs, limit))


def most_exceptions(out: int, inputs: int, limit: float = EXCEPTION_LIMIT) -> int:
    """How many exceptions a weight [out, inputs] has room for."""
    return int(limit * out * inputs)


def _lines(nbytes: int) -> int:
    return -(-nbytes // LINE) * LINE
