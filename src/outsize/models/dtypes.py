"""Data types by torch's names, and their sizes."""

from __future__ import annotations

from outsize.errors import DamagedModel

BYTES = {
    "float64": 8, "int64": 8, "uint64": 8, "complex64": 8,
    "float32": 4, "int32": 4, "uint32": 4,
    "float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2,
    "int8": 1, "uint8": 1, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e8m0fnu": 1,
}  # fmt: skip


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element. Raises DamagedModel for a type this package does not know."""
    try:
        return BYTES[dtype]
    except KeyError:
        raise DamagedModel(f"unknown data type {dtype!r}", need="one of " + ", ".join(BYTES)) from None
