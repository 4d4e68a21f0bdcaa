"""The pickle inside a PyTorch checkpoint, read as data.

A pickle is a program for a small stack machine, and Python's own machine can be told to import and call anything. This
one knows only what describes tensors: it makes dicts, lists, tuples, text, numbers and the three records below, calls
nothing, and imports nothing. Opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from outsize.errors import DamagedModel, OutsizeError, UntrustedModel
from outsize.models.dtypes import BYTES

MOST_BYTES = 64_000_000  # 250 bytes a tensor is usual: enough for a quarter of a million
REMEDY = "a copy of the model as safetensors"

STORAGES = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
}  # fmt: skip
CALLABLES = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
}
ALLOWED = frozenset(
    CALLABLES
    | {f"{module}.{name}" for module in ("torch", "torch.cuda") for name in STORAGES}
    | {f"torch.{dtype}" for dtype in BYTES}
    | {"torch.storage.UntypedStorage"}
)


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle asked for; only a name, never the thing."""

    name: str


@dataclass(frozen=True, slots=True)
class PickledStorage:
    """A run of ``elements`` of one type in the entry ``key``; ``dtype`` is "" where the tensor names its own."""

    key: str
    dtype: str
    elements: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A tensor over a storage; ``offset`` and ``strides`` count elements."""

    storage: PickledStorage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickle(data: bytes, file: str) -> Any:
    """What the pickle describes. Raises DamagedModel if it is broken, UntrustedModel if it asks for anything else."""
    if len(data) > MOST_BYTES:
        raise DamagedModel(f"{file}: its pickle is too large", need=f"at most {MOST_BYTES} bytes", have=f"{len(data)}")
    try:
        return _Machine(data, file).run()
    except OutsizeError:
        raise
    except Exception as error:  # any fault that a broken program can cause: an empty stack, a wrong type, a short text
        raise DamagedModel(f"{file}: its pickle is damaged ({type(error).__name__})", remedy=REMEDY) from error


class _Machine:
    """The stack machine. Keys of dicts are text and numbers only: hashing deep tuples could exhaust the C stack."""

    def __init__(self, data: bytes, file: str) -> None:
        self.data = data
        self.file = file
        self.position = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Execute until STOP."""
        while True:
            opcode = self.take(1)
            if opcode == b".":
                return self.stack.pop()
            step = STEPS.get(opcode)
            if step is None:
                self.refuse(f"uses the opcode {opcode!r}")
            step(self)

    def refuse(self, what: str) -> NoReturn:
        raise UntrustedModel(f"{self.file}: its pickle {what}, which describes no tensor", remedy=REMEDY)

    def take(self, length: int) -> bytes:
        """The next bytes of the program."""
        piece = self.data[self.position : self.position + length]
        if len(piece) != length:
            raise EOFError
        self.position += length
        return piece

    def number(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def line(self) -> str:
        end = self.data.index(b"\n", self.position)
        return self.take(end + 1 - self.position)[:-1].decode("utf-8")

    def to_mark(self) -> list[Any]:
        """What lies above the last mark; the mark is closed."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def push_mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def push_text(self, width: int) -> None:
        self.stack.append(self.take(self.number(width)).decode("utf-8"))

    def push_long(self, width: int) -> None:
        length = self.number(width)
        if length > 16:
            raise ValueError
        self.stack.append(self.number(length, signed=True))

    def push_tuple(self, length: int) -> None:
        if len(self.stack) < length:
            raise IndexError
        self.stack[-length:] = [tuple(self.stack[-length:])]

    def tuple_to_mark(self) -> None:
        items = tuple(self.to_mark())
        self.stack.append(items)

    def put(self, slot: int) -> None:
        self.memo[slot] = self.stack[-1]

    def get(self, slot: int) -> None:
        self.stack.append(self.memo[slot])

    def push_global(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in ALLOWED:
            self.refuse(f"asks for {full[:100]!r}")
        self.stack.append(Global(full))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError
        self.push_global(module, name)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | int | float):
                raise TypeError
            target[key] = value

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError
        target.extend(items)

    def build(self) -> None:
        """Attributes of an object: OrderedDict's ``_metadata``, which says nothing of tensors, is dropped."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            self.refuse("sets the state of an object")

    def persistent(self) -> None:
        kind, of, key, _location, elements, *_view = self.stack.pop()
        if kind != "storage" or not isinstance(of, Global) or not isinstance(key, str) or type(elements) is not int:
            raise TypeError
        short = of.name.rpartition(".")[2]
        dtype = "" if short == "UntypedStorage" else STORAGES[short]
        self.stack.append(PickledStorage(key, dtype, elements))

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global) or function.name not in CALLABLES or not isinstance(arguments, tuple):
            self.refuse("calls something")
        self.stack.append(_described(function.name, arguments))


def _described(function: str, arguments: tuple[Any, ...]) -> Any:
    """What a call of one of the CALLABLES would make, as plain values."""
    match function.rpartition(".")[2], arguments:
        case "OrderedDict", ():
            return {}
        case "OrderedDict", (list(pairs),):
            if not all(isinstance(key, str | int) for key, _ in pairs):
                raise TypeError
            return dict(pairs)
        case "Size", (tuple(sizes) | list(sizes),):
            return tuple(sizes)
        case "_rebuild_parameter" | "_rebuild_parameter_with_state", (PickledTensor() as tensor, *_):
            return tensor
        case "_rebuild_tensor" | "_rebuild_tensor_v2", (PickledStorage() as storage, offset, shape, strides, *_):
            return _tensor(storage, storage.dtype, offset, shape, strides)
        case "_rebuild_tensor_v3", (PickledStorage() as storage, offset, shape, strides, _, _, Global() as dtype, *_):
            return _tensor(storage, dtype.name.removeprefix("torch."), offset, shape, strides)
    raise TypeError


def _tensor(storage: PickledStorage, dtype: str, offset: Any, shape: Any, strides: Any) -> PickledTensor:
    if dtype not in BYTES or len(shape) != len(strides):
        raise ValueError
    return PickledTensor(storage, dtype, _size(offset), _sizes(shape), _sizes(strides))


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise TypeError
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or len(values) > 64:
        raise TypeError
    return tuple(_size(value) for value in values)


STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"N": lambda m: m.stack.append(None),
    b"\x88": lambda m: m.stack.append(True),
    b"\x89": lambda m: m.stack.append(False),
    b"J": lambda m: m.stack.append(m.number(4, signed=True)),  # BININT
    b"K": lambda m: m.stack.append(m.number(1)),  # BININT1
    b"M": lambda m: m.stack.append(m.number(2)),  # BININT2
    b"\x8a": lambda m: m.push_long(1),  # LONG1
    b"G": lambda m: m.stack.append(m.take(8)),  # BINFLOAT: never a size, so its bytes will do
    b"X": lambda m: m.push_text(4),  # BINUNICODE
    b"\x8c": lambda m: m.push_text(1),  # SHORT_BINUNICODE
    b"\x8d": lambda m: m.push_text(8),  # BINUNICODE8
    b"U": lambda m: m.push_text(1),  # SHORT_BINSTRING, from Python 2
    b"}": lambda m: m.stack.append({}),
    b"]": lambda m: m.stack.append([]),
    b")": lambda m: m.stack.append(()),
    b"(": _Machine.push_mark,
    b"t": _Machine.tuple_to_mark,
    b"\x85": lambda m: m.push_tuple(1),
    b"\x86": lambda m: m.push_tuple(2),
    b"\x87": lambda m: m.push_tuple(3),
    b"q": lambda m: m.put(m.number(1)),  # BINPUT
    b"r": lambda m: m.put(m.number(4)),  # LONG_BINPUT
    b"\x94": lambda m: m.put(len(m.memo)),  # MEMOIZE
    b"h": lambda m: m.get(m.number(1)),  # BINGET
    b"j": lambda m: m.get(m.number(4)),  # LONG_BINGET
    b"c": lambda m: m.push_global(m.line(), m.line()),  # GLOBAL
    b"\x93": _Machine.stack_global,
    b"Q": _Machine.persistent,  # BINPERSID
    b"R": _Machine.reduce,
    b"b": _Machine.build,
    b"s": lambda m: m.set_items([*reversed((m.stack.pop(), m.stack.pop()))]),  # SETITEM
    b"u": lambda m: m.set_items(m.to_mark()),  # SETITEMS
    b"a": lambda m: m.append([m.stack.pop()]),  # APPEND
    b"e": lambda m: m.append(m.to_mark()),  # APPENDS
}
