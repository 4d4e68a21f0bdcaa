"""The header of a safetensors file: which tensors it holds, and where.

Layout: 8 bytes little-endian length of the header, the header as JSON, then the data. Offsets in the header count from
the start of the data. Source: https://huggingface.co/docs/safetensors, "Format".
"""

from __future__ import annotations

from math import prod
from typing import Any

from outsize.errors import DamagedModel
from outsize.models.dtypes import dtype_bytes
from outsize.models.files.byte_source import ByteSource
from outsize.models.files.parse_json import MOST_BYTES, parse_json_object
from outsize.models.spec import StoredTensor

TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu", "U16": "uint16", "I16": "int16", "F16": "float16", "BF16": "bfloat16",
    "U32": "uint32", "I32": "int32", "F32": "float32", "U64": "uint64", "I64": "int64", "F64": "float64",
    "C64": "complex64",
}  # fmt: skip
FIRST_READ = 100_000  # bytes; most headers fit, so that a remote one costs one request


def read_header(source: ByteSource) -> tuple[StoredTensor, ...]:
    """The tensors of a safetensors file, in the order in which their bytes lie.

    Every byte of the file must belong to the header or to exactly one tensor. Raises DamagedModel otherwise.
    """
    raw, start = _header_bytes(source)
    header = parse_json_object(raw, f"{source.name}: the header")
    header.pop("__metadata__", None)
    tensors = [_stored_tensor(name, entry, source.name, start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_layout(tensors, start, source)
    return tuple(tensors)


def _header_bytes(source: ByteSource) -> tuple[bytes, int]:
    """The JSON and the offset at which the data starts."""
    if source.size < 8:
        raise DamagedModel(f"{source.name}: truncated", need="8 bytes for the header's length", have=f"{source.size}")
    first = source.read(0, min(source.size, FIRST_READ if source.remote else 8))
    length = int.from_bytes(first[:8], "little")
    if length > MOST_BYTES:
        raise DamagedModel(
            f"{source.name}: not a safetensors file", need=f"a header of at most {MOST_BYTES} bytes", have=f"{length}"
        )
    if 8 + length > source.size:
        raise DamagedModel(
            f"{source.name}: truncated within its header",
            need=f"{8 + length} bytes",
            have=f"{source.size} bytes",
            remedy="download the file again",
        )
    missing = 8 + length - len(first)
    header = first[8 : 8 + length] + (source.read(len(first), missing) if missing > 0 else b"")
    return header, 8 + length


def _stored_tensor(name: str, entry: Any, file: str, start: int) -> StoredTensor:
    """One entry of the header, checked by itself."""
    where = f"{file}: tensor {name!r}"
    try:
        name.encode("utf-8")
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedModel(f"{where} lacks a dtype, a shape or two offsets") from error
    if not isinstance(dtype, str) or dtype not in TORCH_NAMES:
        raise DamagedModel(f"{where} has the unknown data type {dtype!r}", need="one of " + ", ".join(TORCH_NAMES))
    if not isinstance(shape, list) or len(shape) > 64 or not all(_is_size(size) for size in shape):
        raise DamagedModel(f"{where} has a shape that is none")
    if not _is_size(begin) or not _is_size(end) or end < begin:
        raise DamagedModel(f"{where} has offsets that are none")
    nbytes = prod(shape) * dtype_bytes(TORCH_NAMES[dtype])
    if nbytes != end - begin:
        raise DamagedModel(
            f"{where} does not fill its place", need=f"{nbytes} bytes for {dtype} {shape}", have=f"{end - begin} bytes"
        )
    return StoredTensor(name, TORCH_NAMES[dtype], tuple(shape), file, start + begin, nbytes)


def _is_size(value: Any) -> bool:
    """A whole number that fits a file offset (True is an int too, and is none)."""
    return type(value) is int and 0 <= value < 2**63


def _check_layout(tensors: list[StoredTensor], start: int, source: ByteSource) -> None:
    """No overlap, no hole, nothing beyond the last tensor, nothing missing."""
    position = start
    for tensor in tensors:
        if tensor.offset != position:
            fault = "overlaps the tensor before it" if tensor.offset < position else "leaves a hole before it"
            raise DamagedModel(f"{source.name}: tensor {tensor.name!r} {fault}", need=f"offset {position - start}",
                               have=f"{tensor.offset - start}")  # fmt: skip
        position += tensor.nbytes
    if source.size < position:
        raise DamagedModel(f"{source.name}: truncated", need=f"{position} bytes", have=f"{source.size} bytes",
                           remedy="download the file again")  # fmt: skip
    if source.size > position:
        raise DamagedModel(f"{source.name}: has bytes that belong to no tensor", need=f"{position} bytes",
                           have=f"{source.size} bytes")  # fmt: skip
