"""Weights in and out of a model's modules: views of a buffer that the stream filled, or stand-ins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from outsize.engine.placeholders import AbsentTensor, RowsOnDisk
from outsize.kernels.cpu.library import kernels
from outsize.kernels.weights import NativeWeight, PackedWeight
from outsize.models.bf12_layout import bf12_bytes
from outsize.models.spec import StoredTensor
from outsize.models.tracing.recording import replay, sources
from outsize.models.tracing.units import Slot, Unit, Weight
from outsize.store.buffer import Memory
from outsize.store.embedding import RowReader
from outsize.store.layout import Layout, lay_out
from outsize.store.views import tensor_at


class Binding:
    """Weights that are read together, and where they go in the model.

    ``skip``: modules that are filled apart (embeddings looked up on disk). ``encoded``: weights of a bf12 group that
    are kept in 12 bits.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        device: torch.device,
        skip: tuple[nn.Module, ...] = (),
        encoded: frozenset[str] = frozenset(),
    ) -> None:
        self.weights = weights
        self.device = device
        self.encoded = encoded
        self.layout: Layout = lay_out(s for weight in weights for s in sources(weight.expression))
        self._slots = {
            weight.name: tuple(slot for slot in weight.slots if not any(slot.module is m for m in skip))
            for weight in weights
        }

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that own the weights, each once."""
        return tuple({id(s.module): s.module for slots in self._slots.values() for s in slots}.values())

    def bind(self, memory: Memory, *, copy: bool = False, encode: bool = False) -> bool:
        """Puts the weights, as they lie in ``memory``, into their modules.

        ``copy``: into memory of their own, on the device, so that the buffer may be reused. ``encode``: those
        named in ``encoded`` into the lossless 12-bit form. False, and nothing is bound, where that has no room for one.
        """
        made = []
        for weight in self.weights:
            tensor: torch.Tensor | None = replay(weight.expression, self._fetch(memory), PackedWeight)
            assert tensor is not None
            if encode and weight.name in self.encoded:
                tensor = encoded(tensor)
            elif copy:
                tensor = tensor.to(self.device, copy=True)  # done when it returns
            if tensor is None:
                return False
            made.append((weight, tensor))
        for weight, tensor in made:
            self._put(weight, tensor)
        return True

    def unbind(self, bring: Callable[[], None] | None = None) -> None:
        """Puts stand-ins in place of the weights, so that nothing can compute with a buffer's next contents.

        ``bring`` binds the weights when a stand-in is computed with all the same; without it that is an error.
        """
        for weight in self.weights:
            fetch = None if bring is None else partial(self._bring, weight, bring)
            self._put(weight, AbsentTensor(weight.name, weight.shape, weight.dtype, self.device, fetch))

    def _bring(self, weight: Weight, bring: Callable[[], None]) -> torch.Tensor:
        bring()
        slot = self._slots[weight.name][0]
        tensor = (slot.module._buffers if slot.buffer else slot.module._parameters)[slot.attribute]
        assert tensor is not None
        return tensor

    def _put(self, weight: Weight, tensor: torch.Tensor) -> None:
        shared: torch.Tensor | None = None
        for slot in self._slots[weight.name]:
            if shared is None:
                shared = tensor if slot.buffer else self._parameter(weight, tensor)
            put(slot, shared)

    def _parameter(self, weight: Weight, tensor: torch.Tensor) -> torch.Tensor:
        """What a module holds: a plain parameter, or what the kernels multiply with, where they do."""
        plain = type(tensor) is torch.Tensor
        if plain and weight.matmul and self.device.type == "cpu" and kernels() is not None:
            seen = tensor.as_subclass(NativeWeight)
            seen._is_param = True  # all that nn.Parameter checks in subclasses
            return seen
        return nn.Parameter(tensor, requires_grad=False)

    def _fetch(self, memory: Memory) -> Callable[[StoredTensor], torch.Tensor]:
        def fetch(stored: StoredTensor) -> torch.Tensor:
            return tensor_at(memory.view, self.layout.position(stored), stored)

        return fetch


def encoded(weight: torch.Tensor) -> torch.Tensor | None:
    """A bfloat16 weight in the lossless 12-bit form, in memory of its own; None where that has no room for it."""
    from outsize.kernels.bf12 import encode

    memory = Memory(bf12_bytes(*weight.shape))
    return encode(weight.contiguous(), into=torch.frombuffer(memory.view, dtype=torch.uint8))


def put(slot: Slot, tensor: torch.Tensor) -> None:
    """Sets one place of a module, past nn.Module's checks of what kind of tensor was there."""
    if slot.buffer:
        slot.module._buffers[slot.attribute] = tensor
    else:
        slot.module._parameters[slot.attribute] = tensor  # type: ignore[assignment]


def bind_rows(unit: Unit, modules: tuple[nn.Module, ...], rows: RowReader) -> None:
    """Makes embeddings look their rows up on disk."""

    def read(weight: Weight, numbers: list[int]) -> torch.Tensor:
        (stored,) = sources(weight.expression)
        raw = rows.read(stored, numbers)
        found = torch.frombuffer(raw, dtype=getattr(torch, stored.dtype)).view(len(numbers), -1)
        return found.to(weight.dtype)  # [rows, width]

    for weight in unit.weights if modules else ():
        stand_in = RowsOnDisk(weight.name, weight.shape, weight.dtype, partial(read, weight))
        shared = nn.Parameter(stand_in, requires_grad=False)
        for slot in weight.slots:
            if any(slot.module is module for module in modules):
                put(slot, shared)
