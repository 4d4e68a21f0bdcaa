"""Write a ``torch.save`` file tensor by tensor, without ever holding the tensors.

The file is a zip of stored (not compressed) records: ``archive/data.pkl``, which rebuilds tensors from storages that it
names by number, and ``archive/data/<number>``, each storage's bytes, starting at a multiple of 64 as torch aligns them.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import IO, Any

_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30
_ZIP64_EXTRA_BYTES = 20
_PADDING_TAG = 0x4246  # "FB", the extra field that torch pads with

Source = tuple[str, tuple[int, ...], Callable[[], Iterator[memoryview]]]


class _Storage:
    """Stands for a storage in the pickle: its number in the zip and its length in values."""

    def __init__(self, number: int, values: int) -> None:
        self.number = number
        self.values = values


class _Tensor:
    """Pickles as torch pickles a contiguous tensor that owns its storage."""

    def __init__(self, number: int, shape: tuple[int, ...]) -> None:
        self.shape = shape
        strides = [1]
        for extent in reversed(shape):
            strides.append(strides[-1] * extent)
        self.storage = _Storage(number, strides.pop())
        self.strides = tuple(reversed(strides))

    def __reduce__(self) -> tuple[Any, ...]:
        from torch._utils import _rebuild_tensor_v2

        return _rebuild_tensor_v2, (self.storage, 0, self.shape, self.strides, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def __init__(self, file: IO[bytes], dtype: str) -> None:
        super().__init__(file, protocol=2)
        import torch

        self.storage_class = {
            "bfloat16": torch.BFloat16Storage,
            "float16": torch.HalfStorage,
            "float32": torch.FloatStorage,
        }[dtype]

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, _Storage):
            return ("storage", self.storage_class, str(obj.number), "cpu", obj.values)
        return None


def write_torch_zip(file: IO[bytes], sources: list[Source], dtype: str) -> None:
    """Write (name, shape, pieces of bytes) triples as an ordered dict of tensors that ``torch.load`` reads."""
    table = io.BytesIO()
    tensors = OrderedDict((name, _Tensor(number, shape)) for number, (name, shape, _) in enumerate(sources))
    _Pickler(table, dtype).dump(tensors)
    item = {"bfloat16": 2, "float16": 2, "float32": 4}[dtype]
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        archive.writestr("archive/data.pkl", table.getvalue())
        archive.writestr("archive/byteorder", "little")
        for number, (name, _, pieces) in enumerate(sources):
            record = zipfile.ZipInfo(f"archive/data/{number}")
            record.file_size = tensors[name].storage.values * item
            record.extra = _padding(file.tell(), len(record.filename), record.file_size)
            with archive.open(record, "w") as target:
                for piece in pieces():
                    target.write(piece)
        archive.writestr("archive/version", "3\n")


def _padding(start: int, name_bytes: int, size: int) -> bytes:
    """An extra field that makes the record's data start at a multiple of 64 bytes."""
    # zipfile adds a zip64 field of its own to records that may pass 2 GiB, by this very comparison.
    zip64 = _ZIP64_EXTRA_BYTES if size * 1.05 > zipfile.ZIP64_LIMIT else 0
    before = start + _LOCAL_HEADER_BYTES + name_bytes + zip64 + 4
    fill = -before % _ALIGNMENT
    return struct.pack("<HH", _PADDING_TAG, fill) + b"\0" * fill
