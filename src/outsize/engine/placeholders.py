"""What stands in a module where its weight is not in memory: tensors of the right shape that hold no data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from outsize.errors import OutsizeError

PASSIVE = frozenset({"aten.detach.default", "aten.alias.default"})  # what wrapping a tensor in a Parameter does


class _NoStorage(torch.Tensor):
    """Whoever asks for the bytes themselves (``save_pretrained`` does) gets the same answer as one who computes."""

    def untyped_storage(self) -> NoReturn:
        """Raises OutsizeError."""
        raise self.refusal()

    def storage(self) -> NoReturn:
        """Raises OutsizeError."""
        raise self.refusal()

    @abstractmethod
    def refusal(self) -> OutsizeError:
        """Why there is nothing to compute with."""


class AbsentTensor(_NoStorage):
    """A weight that is not in memory: it knows its shape, data type and device.

    Computing with it fetches the weight, because some modules use a weight outside the forward pass of the module that
    owns it; without ``fetch`` it is an error.
    """

    weight_name: str
    fetch: Callable[[], torch.Tensor] | None

    @staticmethod
    def __new__(
        cls,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        fetch: Callable[[], torch.Tensor] | None = None,
    ) -> AbsentTensor:
        """A stand-in for the weight of that name."""
        made: AbsentTensor = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        made.weight_name, made.fetch = name, fetch
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"AbsentTensor({self.weight_name}, shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if str(func) in PASSIVE:
            return args[0]

        def present(tensor: AbsentTensor) -> torch.Tensor:
            if tensor.fetch is None:
                raise tensor.refusal()
            found = tensor.fetch()
            return found.detach().as_subclass(torch.Tensor)

        return func(*tree_map_only(cls, present, args), **tree_map_only(cls, present, kwargs or {}))

    def refusal(self) -> OutsizeError:
        """Why there is nothing to compute with."""
        if self.fetch is None:
            return OutsizeError(f"{self.weight_name} is gone: the model was closed")
        return OutsizeError(f"{self.weight_name} is in memory only while its own module computes")


class RowsOnDisk(_NoStorage):
    """An embedding's weight that rests on disk: a look-up or an index reads the rows that it needs, others read all.

    ``read_rows(unique row numbers, ascending)`` gives [rows, width].
    """

    weight_name: str
    read_rows: Callable[[list[int]], torch.Tensor]

    @staticmethod
    def __new__(
        cls, name: str, shape: tuple[int, ...], dtype: torch.dtype, read_rows: Callable[[list[int]], torch.Tensor]
    ) -> RowsOnDisk:
        """A stand-in for the weight [rows, width] of that name."""
        made: RowsOnDisk = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=torch.device("cpu"))
        made.weight_name, made.read_rows = name, read_rows
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:  # type: ignore[override]
        return f"RowsOnDisk({self.weight_name}, shape={tuple(self.shape)}, dtype={self.dtype})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.embedding and isinstance(args[1], cls):
            return args[1].look_up(args[0])
        if func is torch.Tensor.__getitem__ and isinstance(args[0], cls):
            return args[0].at(args[1])
        with torch._C.DisableTorchFunctionSubclass():  # what comes out is a plain tensor
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if str(func) in PASSIVE:
            return args[0]
        return func(*tree_map_only(cls, cls.all_rows, args), **tree_map_only(cls, cls.all_rows, kwargs or {}))

    def refusal(self) -> OutsizeError:
        """That it has no bytes in memory."""
        return OutsizeError(f"{self.weight_name} rests on disk and is looked up by row only")

    def look_up(self, ids: torch.Tensor) -> torch.Tensor:
        """The embeddings of token ids of any shape: [*ids.shape, width]."""
        unique, where = torch.unique(ids, return_inverse=True)  # sorted: rows are read in the order of the file
        if len(unique) and not 0 <= int(unique[0]) <= int(unique[-1]) < self.shape[0]:
            raise IndexError(f"token ids must be in 0..{self.shape[0] - 1}, not {int(unique[0])}..{int(unique[-1])}")
        rows = self.read_rows(unique.tolist())
        return rows[where.to(rows.device)].to(ids.device)  # [*ids.shape, width]

    def at(self, index: Any) -> torch.Tensor:
        """What ``weight[index]`` is: only the rows that the first dimension's index names are read."""
        first, *others = index if isinstance(index, tuple) else (index,)
        if isinstance(first, int) and -self.shape[0] <= first < self.shape[0]:
            return self.look_up(torch.tensor(first % self.shape[0]))[tuple(others)]
        if isinstance(first, slice):
            return self.look_up(torch.arange(*first.indices(self.shape[0])))[(slice(None), *others)]
        return self.all_rows()[index]

    def all_rows(self) -> torch.Tensor:
        """The whole weight, for code of a model that no survey saw use it so: [rows, width]."""
        return self.look_up(torch.arange(self.shape[0]))
