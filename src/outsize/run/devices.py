"""The plan's devices as torch's, and the way of activations between them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from outsize.errors import OutsizeError
from outsize.facts.architecture import Skeleton
from outsize.facts.machine import Machine
from outsize.planning.plan import Plan

CPU = torch.device("cpu")


class Devices:
    """Which torch device each tier computes on. An emulated GPU is the CPU, with a budget of its own."""

    def __init__(self, machine: Machine) -> None:
        self._by_name = {"ram": CPU, "disk": CPU}
        for gpu in machine.gpus:
            self._by_name[gpu.name] = CPU if gpu.emulated else _cuda_device(gpu.uuid, gpu.name)

    def torch_device(self, name: str) -> torch.device:
        """The torch device of a tier of the plan."""
        return self._by_name[name]

    def first_block(self, skeleton: Skeleton, plan: Plan) -> torch.device:
        """Where the first block computes: embeddings of every kind come there, to be added up."""
        pairs = zip(skeleton.units, plan.items, strict=True)
        return next((self._by_name[item.compute] for unit, item in pairs if unit.role == "block"), CPU)


class Mover:
    """Brings activations to the device that computes next.

    Masks and position tables are the same for every block: their copies are kept until the next sweep begins.
    """

    def __init__(self, home: torch.device) -> None:
        self._home = home
        self._kept: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    def to(self, device: torch.device, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Arguments of a forward pass on a device, or None where all of them are there already."""
        if not _elsewhere(device, args) and not _elsewhere(device, kwargs):
            return None
        moved = tree_map_only(torch.Tensor, lambda t: t.to(device, non_blocking=True), args)
        return moved, tree_map_only(torch.Tensor, lambda t: self._keep(t, device), kwargs)

    def home(self, output: Any) -> Any:
        """An embedding's output where the first block wants it."""
        return tree_map_only(torch.Tensor, lambda t: t.to(self._home, non_blocking=True), output)

    def forget(self) -> None:
        """Drops the copies of the last sweep."""
        self._kept.clear()

    def _keep(self, tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        if tensor.device == device:
            return tensor
        key = (id(tensor), device)
        if key not in self._kept:  # the original is kept too, so that its id stays its own
            self._kept[key] = (tensor, tensor.to(device, non_blocking=True))
        return self._kept[key][1]


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
