"""The tensors of a PyTorch ``.bin`` file: a zip with one pickle that describes them and one stored entry per storage.

Only zip headers and the pickle are read, never the data. Written by ``torch.save`` since PyTorch 1.6.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from math import prod

from outsize.errors import DamagedModel, OutsizeError, UnsupportedModel
from outsize.models.dtypes import dtype_bytes
from outsize.models.files.byte_source import ByteSource
from outsize.models.files.torch_pickle import MOST_BYTES, PickledTensor, read_pickle
from outsize.models.spec import StoredTensor

LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # a pickled magic number opens files from before PyTorch 1.6
LOCAL_HEADER = 30  # bytes before the entry's name
HAS_DESCRIPTOR = 0x8
ENCRYPTED = 0x1
ALIGNMENT = 64  # of the data of each entry, by PyTorch's writer
LARGEST_DIRECTORY = 256 << 20
SAVE_AGAIN = "load it with torch.load(file, weights_only=True) and torch.save it again"


def read_header(source: ByteSource) -> tuple[StoredTensor, ...]:
    """The tensors of a ``.bin`` file, in the order of the state dict. Tensors that share a storage share an offset.

    Raises DamagedModel, UntrustedModel (the pickle asks for anything but tensors) or UnsupportedModel (an old format,
    big-endian data, nested dicts).
    """
    with_magic = source.read(0, min(len(LEGACY), source.size))
    if with_magic == LEGACY:
        raise UnsupportedModel(f"{source.name}: is in the format from before PyTorch 1.6", remedy=SAVE_AGAIN)
    archive = _Archive(source)
    byteorder = archive.small("byteorder")
    if byteorder not in (None, b"little"):
        raise UnsupportedModel(f"{source.name}: its byte order is {byteorder!r}", need="little", remedy=SAVE_AGAIN)
    pickle = archive.small("data.pkl")
    if pickle is None:
        raise DamagedModel(f"{source.name}: has no data.pkl, so it is no PyTorch checkpoint")
    tensors = _tensors(read_pickle(pickle, source.name), source.name)
    return tuple(_stored_tensor(name, tensor, archive) for name, tensor in tensors.items())


class _Archive:
    """The entries of the zip, without their data."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self._placed: dict[str, tuple[int, int]] = {}
        try:
            self._zip = zipfile.ZipFile(_Seekable(source))
            entries = sorted(self._zip.infolist(), key=lambda entry: entry.header_offset)
        except OutsizeError:
            raise
        except Exception as error:  # zipfile raises half a dozen kinds for broken directories
            raise DamagedModel(
                f"{source.name}: is truncated or no PyTorch checkpoint ({error})",
                have=f"{source.size} bytes",
                remedy="download the file again",
            ) from error
        self._entries = {entry.filename: entry for entry in entries}
        ends = [entry.header_offset for entry in entries[1:]] + [self._zip.start_dir]
        self._ends = {entry.filename: end for entry, end in zip(entries, ends, strict=False)}
        if len(self._entries) != len(entries):
            raise DamagedModel(f"{source.name}: has two entries of one name")
        roots = [name for name in self._entries if name.endswith("/data.pkl") and name.count("/") == 1]
        self._root = roots[0].removesuffix("data.pkl") if roots else ""

    def small(self, name: str) -> bytes | None:
        """The content of a small entry, its checksum verified; None if there is no such entry."""
        entry = self._entries.get(self._root + name)
        if entry is None:
            return None
        offset, size = self.place(name)
        if size > MOST_BYTES:
            raise DamagedModel(f"{self.source.name}: {name} is too large", need=f"{MOST_BYTES} bytes", have=f"{size}")
        content = self.source.read(offset, size)
        if zlib.crc32(content) != entry.CRC:
            raise DamagedModel(f"{self.source.name}: the checksum of {name} is wrong", remedy="download the file again")
        return content

    def place(self, name: str) -> tuple[int, int]:
        """Where an entry's data starts, and its bytes. On the hub, storages are placed by rule, not by a request."""
        if name not in self._placed:
            self._placed[name] = self._find(name)
        return self._placed[name]

    def _find(self, name: str) -> tuple[int, int]:
        file = self.source.name
        entry = self._entries.get(self._root + name)
        if entry is None:
            raise DamagedModel(f"{file}: lacks the entry {name!r}", remedy="download the file again")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & ENCRYPTED:
            raise UnsupportedModel(f"{file}: the entry {name!r} is compressed or encrypted", remedy=SAVE_AGAIN)
        size, end = entry.file_size, self._ends[entry.filename]
        if self.source.remote and name.startswith("data/"):
            # Rounding down to the alignment removes the descriptor's longer form (24 bytes), too.
            start = end - size - (16 if entry.flag_bits & HAS_DESCRIPTOR else 0)
            start -= start % ALIGNMENT
        else:
            start = self._after_local_header(entry)
        if start < entry.header_offset + LOCAL_HEADER or start + size > end:
            raise DamagedModel(
                f"{file}: the entry {name!r} overlaps the next", need=f"{size} bytes", have=f"{end - start}"
            )
        return start, size

    def _after_local_header(self, entry: zipfile.ZipInfo) -> int:
        """The name and the padding before the data are as long as the local header says; the directory may differ."""
        if entry.header_offset < 0 or entry.header_offset + LOCAL_HEADER > self.source.size:
            raise DamagedModel(f"{self.source.name}: an entry lies outside the file")
        header = self.source.read(entry.header_offset, LOCAL_HEADER)
        if header[:4] != b"PK\x03\x04":
            raise DamagedModel(f"{self.source.name}: no entry where its directory says")
        name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        return entry.header_offset + LOCAL_HEADER + name + extra


def _tensors(value: object, file: str) -> dict[str, PickledTensor]:
    """The tensors of a state dict; entries that are none (a step count, a version) are left out."""
    if not isinstance(value, dict):
        raise UnsupportedModel(f"{file}: holds no dict of tensors", remedy="save model.state_dict()")
    for key, entry in value.items():
        inner = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list | tuple) else ()
        if any(isinstance(item, PickledTensor | dict) for item in inner):
            raise UnsupportedModel(
                f"{file}: keeps tensors one level down, under {str(key)[:80]!r}",
                need="a dict of tensors",
                remedy="save that entry alone with torch.save",
            )
    return {str(key): entry for key, entry in value.items() if isinstance(entry, PickledTensor)}


def _stored_tensor(name: str, tensor: PickledTensor, archive: _Archive) -> StoredTensor:
    """Where the tensor's bytes lie in the file; of a strided view, the span from its first element to its last."""
    where = f"{archive.source.name}: tensor {name!r}"
    width, storage = dtype_bytes(tensor.dtype), tensor.storage
    elements = prod(tensor.shape)
    if elements * width >= 1 << 63:  # a stride of 0 makes any size of a few bytes; torch counts bytes in 63 bits
        raise DamagedModel(f"{where} is larger than any tensor can be")
    strided = elements > 0 and not _is_contiguous(tensor.shape, tensor.strides)
    steps = zip(tensor.shape, tensor.strides, strict=True)
    span = 1 + sum((size - 1) * stride for size, stride in steps) if strided else elements
    start, size = archive.place(f"data/{storage.key}")
    declared = storage.elements * (dtype_bytes(storage.dtype) if storage.dtype else 1)
    begin, nbytes = tensor.offset * width, span * width
    if declared != size or begin + nbytes > size:
        raise DamagedModel(f"{where} does not fit its storage", need=f"{max(declared, begin + nbytes)} bytes",
                           have=f"{size} bytes")  # fmt: skip
    strides = tensor.strides if strided else None
    return StoredTensor(name, tensor.dtype, tensor.shape, archive.source.name, start + begin, nbytes, strides)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Row-major without gaps; the stride of a dimension of size one does not matter."""
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


class _Seekable:
    """A ByteSource as the seekable file that zipfile wants; the last bytes are kept, where the directory lies."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._position = 0
        self._tail_start = max(0, source.size - (1 << 17 if source.remote else 1 << 12))
        self._tail = source.read(self._tail_start, source.size - self._tail_start)

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; a place outside the file is an error that zipfile understands."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise OSError("seek before the start")
        self._position = base + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes from the position."""
        left = max(0, self._source.size - self._position)
        length = left if size < 0 else min(size, left)
        if length > LARGEST_DIRECTORY:
            raise DamagedModel(f"{self._source.name}: its directory is too large", have=f"{length} bytes")
        start, self._position = self._position, self._position + length
        if start >= self._tail_start:
            return self._tail[start - self._tail_start :][:length]
        return self._source.read(start, length)
