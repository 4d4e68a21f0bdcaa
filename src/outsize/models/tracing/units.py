"""A model's weights, each once, and the units of placement that own them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from outsize.models.formats import Packing
from outsize.models.spec import Role
from outsize.models.tracing.recording import Expression, RecordingTensor


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in the model where a weight goes: ``module._parameters[attribute]`` or ``._buffers[attribute]``."""

    module: nn.Module
    attribute: str
    buffer: bool


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight: its name, its expression over the checkpoint, and every place that shares it (tied weights).

    ``experts``: of a layer's routed experts, the matrices [out, in] of each, whose outputs stand beside each other.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    expression: Expression
    slots: tuple[Slot, ...]
    matmul: bool
    packing: Packing | None = None
    experts: tuple[tuple[Expression, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Unit:
    """A block, its routed experts, or a module outside the blocks that owns weights: the unit of placement.

    ``modules`` are the modules before whose forward pass the weights must be there: the module itself and, where its
    weights are tied, the others that use them.
    """

    name: str
    role: Role
    stack: str
    modules: tuple[nn.Module, ...]
    tied: tuple[str, ...]
    weights: tuple[Weight, ...]


def submodels(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The model, and the models inside it: stacks that may be called by themselves."""
    return (module for module in model.modules() if isinstance(module, PreTrainedModel))


def take_weights(model: PreTrainedModel) -> dict[int, Weight]:
    """Every weight by the identity of its parameter; recording tensors in the model give way to plain ``meta`` ones.

    A parameter that transformers made itself becomes a buffer: it is there, and goes where its module computes.
    """
    found: dict[int, tuple[str, RecordingTensor, list[Slot]]] = {}
    for prefix, module in model.named_modules():
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
            if isinstance(tensor, RecordingTensor):
                name = f"{prefix}.{attribute}" if prefix else attribute
                slot = Slot(module, attribute, attribute in module._buffers)
                found.setdefault(id(tensor), (name, tensor, []))[2].append(slot)
            elif tensor is not None and attribute in module._parameters:
                del module._parameters[attribute]
                module.register_buffer(attribute, tensor.detach())
    weights = {}
    for name, tensor, slots in found.values():
        matmul = any(isinstance(s.module, nn.Linear) and s.attribute == "weight" for s in slots)
        shared: Any = torch.empty_like(tensor.shadow)
        shared = shared if slots[0].buffer else nn.Parameter(shared, requires_grad=False)
        for slot in slots:
            (slot.module._buffers if slot.buffer else slot.module._parameters)[slot.attribute] = shared
        weight = Weight(name, tuple(tensor.shape), tensor.dtype, tensor.expression, tuple(slots), matmul)
        weights[id(shared)] = weight
    return weights


def units_of(model: PreTrainedModel, weights: dict[int, Weight]) -> Iterator[Unit]:
    """Blocks, their experts, and every other module that owns weights; a tied weight is the head's, if that uses it."""
    blocks = _blocks(model)
    inside = {id(m): name for name, block in blocks.items() for m in block.modules()}
    names = {id(module): name for name, module in model.named_modules()}
    owners: dict[str, list[Weight]] = {}
    sharers: dict[str, dict[str, nn.Module]] = {}
    head = model.get_output_embeddings()
    for weight in weights.values():
        users: dict[str, nn.Module] = {}
        for slot in weight.slots:
            name = names[id(slot.module)]
            if not weight.experts:  # which are a unit of their own
                name = inside.get(id(slot.module), name)
            users[name] = blocks.get(name, slot.module)
        owner = next((n for n, m in users.items() if m is head), next(iter(users)))
        owners.setdefault(owner, []).append(weight)
        sharers.setdefault(owner, {}).update(users)
    encoder = _encoder_prefix(model)
    try:
        embeddings = model.get_input_embeddings()
    except NotImplementedError:  # transformers' own base class does not find it, and nobody said where it is
        embeddings = None
    by_name = dict(model.named_modules())
    for owner, owned in owners.items():
        module = by_name[owner]
        users = {owner: module, **sharers[owner]}
        role: Role = "other"
        if owned[0].experts:
            role = "experts"
        elif owner in blocks:
            role = "block"
        elif module is head:
            role = "head"
        elif module is embeddings or isinstance(module, nn.Embedding):
            role = "embedding"
        stack = ("encoder" if owner.startswith(encoder) else "decoder") if encoder else ""
        tied = tuple(name for name in users if name != owner)
        yield Unit(owner, role, stack, tuple(users.values()), tied, tuple(owned))


def _blocks(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The outermost modules of the classes that transformers says must not be split, by name."""
    classes = set(model._no_split_modules or ())
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if type(module).__name__ in classes and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    # A class may be listed that is no repeated layer (an embedding): only members of a list of layers are blocks.
    repeated = {n: m for n, m in found.items() if n.rpartition(".")[2].isdigit()}
    if repeated:
        return repeated
    longest: tuple[str, nn.ModuleList] | None = None
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and (longest is None or len(module) > len(longest[1])):
            longest = name, module
    return {f"{longest[0]}.{i}": m for i, m in enumerate(longest[1])} if longest else {}


def _encoder_prefix(model: PreTrainedModel) -> str:
    if not model.config.is_encoder_decoder:
        return ""
    encoder = model.get_encoder()
    return next(f"{name}." for name, module in model.named_modules() if module is encoder)
