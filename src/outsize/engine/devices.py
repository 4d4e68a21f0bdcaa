"""The plan's devices as torch's, and the way of activations between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from outsize.errors import OutsizeError
from outsize.machine.machine import Machine

CPU = torch.device("cpu")
META = torch.device("meta")  # of weights that are bound later
Copies = dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]]  # originals and their copies
PASSING = frozenset({"hidden_states", "inputs_embeds"})  # arguments that differ from block to block


class Devices:
    """Which torch device each tier computes on. An emulated GPU is the CPU, with a budget of its own."""

    def __init__(self, machine: Machine) -> None:
        self._by_name = {"ram": CPU, "disk": CPU}
        for gpu in machine.gpus:
            self._by_name[gpu.name] = CPU if gpu.emulated else _cuda_device(gpu.uuid, gpu.name)

    def torch_device(self, name: str) -> torch.device:
        """The torch device of a tier of the plan."""
        return self._by_name[name]


class Mover:
    """Brings activations to the device that computes next.

    Masks and position tables are the same for every block: their copies are kept, by the forward pass that they belong
    to, until its next begins. A copy is complete when the call returns, because one to the host would be read too early
    otherwise.
    """

    def __init__(self, home: torch.device) -> None:
        self._home = home

    def to(
        self, device: torch.device, args: Any, kwargs: dict[str, Any], copies: Copies
    ) -> tuple[Any, dict[str, Any]] | None:
        """Arguments of a forward pass on a device, or None where all of them are there already."""
        if not _elsewhere(device, args) and not _elsewhere(device, kwargs):
            return None
        # Hidden states change from block to block: a kept copy of each would fill the device.
        named = {k: move(v, device) if k in PASSING else _copied_tree(v, device, copies) for k, v in kwargs.items()}
        return move(args, device), named

    def inputs(self, args: Any, kwargs: dict[str, Any], copies: Copies) -> tuple[Any, dict[str, Any]] | None:
        """A whole model's inputs where the first block computes: masks and positions are made there."""
        return self.to(self._home, args, kwargs, copies)

    def home(self, output: Any) -> Any:
        """An embedding's output where the first block wants it."""
        return move(output, self._home)


def _copied_tree(tree: Any, device: torch.device, copies: Copies) -> Any:
    return tree_map_only(torch.Tensor, lambda t: _copied(t, device, copies), tree)


def _copied(tensor: torch.Tensor, device: torch.device, copies: Copies) -> torch.Tensor:
    if tensor.device == device:
        return tensor
    key = (id(tensor), device)
    if key not in copies:  # the original is kept too, so that its id stays its own
        copies[key] = (tensor, move(tensor, device))
    return copies[key][1]


def move(tree: Any, device: torch.device) -> Any:
    """The tree with its tensors on a device. Caches are no trees: what they hold stays beside its block."""
    return tree_map_only(torch.Tensor, lambda t: t.to(device), tree)


def move_buffers(module: nn.Module, device: torch.device) -> None:
    """Puts what a module and those inside it compute with besides weights (rotary tables, masks) on a device."""
    for inner in module.modules():
        for name, buffer in inner._buffers.items():
            if buffer is not None and buffer.device not in (device, META):
                inner._buffers[name] = buffer.to(device)


def device_of(args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """Where the first tensor among the inputs is."""
    return next((leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)), None)


def move_outputs(output: Any, device: torch.device) -> Any:
    """A model's output with its tensors on a device; the fields of a ModelOutput are set in place."""
    if not isinstance(output, dict):
        return move(output, device) if isinstance(output, torch.Tensor | tuple) else output
    for key, value in output.items():
        if isinstance(value, torch.Tensor | tuple) and _elsewhere(device, value):
            output[key] = move(value, device)
    return output


def _elsewhere(device: torch.device, tree: Any) -> bool:
    if isinstance(tree, torch.Tensor):
        return tree.device != device
    if isinstance(tree, tuple | list):
        return any(_elsewhere(device, leaf) for leaf in tree)
    if type(tree) is dict:
        return any(_elsewhere(device, leaf) for leaf in tree.values())
    return False


def _cuda_device(uuid: str, name: str) -> torch.device:
    """The CUDA device of that id: CUDA and NVML may number the same GPUs differently."""
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        if str(properties.uuid).removeprefix("GPU-").lower() == uuid.removeprefix("GPU-").lower():
            return torch.device("cuda", index)
    raise OutsizeError(
        f"{name} was planned for, but this torch does not see it",
        have=f"{torch.cuda.device_count()} CUDA devices, torch {torch.__version__}",
        remedy="a torch with CUDA, or --no-gpu",
    )
